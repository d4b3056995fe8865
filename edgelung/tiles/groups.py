"""Names of groups as people's programs write them: which mean no group, and which may mean one."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from edgelung.core.errors import EdgelungError

# What programs write into an empty cell, in lower case.
NO_GROUP = frozenset(
    ["", "na", "n/a", "<na>", "#na", "#n/a", "#n/a n/a", "nan", "-nan", "none", "null", "nil"]
)


def check_groups(path: Path, groups: Iterable[str]) -> None:
    """Raise EdgelungError for two groups of the list `path` that may be one source."""
    spellings: dict[str, str] = {}
    for group in groups:
        plain = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
        plain = re.sub(r"^([0-9]+)\.0+$", r"\1", plain)  # pandas writes 1.0 for 1
        if (other := spellings.setdefault(plain, group)) != group:
            raise EdgelungError(
                f"{path} has the groups {other!r} and {group!r}, which differ only in case, blanks "
                "or .0; write one group in one way, or give two groups other names"
            )
