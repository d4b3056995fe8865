"""Who can change a file: for files whose content is trusted because of where they lie."""

import os
import stat
from pathlib import Path

from edgelung.core.errors import EdgelungError


def check_writers(path: Path, what: str) -> None:
    """Check that only this user and root can change a file or replace it.

    Whoever can write to a folder above the file can replace it, so all of them are looked at; a
    folder such as /tmp, where nobody can replace the files of others (sticky bit), is accepted.

    Args:
        path: a file or a folder.
        what: the word for it in the error.

    Raises:
        EdgelungError: if others can; it names the file or folder, and the command that helps.
        OSError: if the file or a folder above it cannot be looked at.
    """
    if not hasattr(os, "geteuid"):  # Windows: access lists decide, and protect both folders
        return
    resolved = path.resolve()
    lineage = dict.fromkeys([resolved, *resolved.parents, *path.absolute().parents])
    for place in lineage:
        info = place.stat()
        if info.st_uid not in (0, os.geteuid()):
            raise EdgelungError(
                f"{place} belongs to the user {info.st_uid}, who could change the {what} {path}; "
                "expected you or root as the owner: move it to a folder of yours"
            )
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX and place != resolved
        if info.st_mode & 0o022 and not sticky:
            raise EdgelungError(
                f"others can write to {place} (mode {stat.S_IMODE(info.st_mode):o}) and so change "
                f"the {what} {path}; run: chmod go-w '{place}'"
            )
