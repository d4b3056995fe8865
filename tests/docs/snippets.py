"""The commands and Python snippets of a page, for test_snippets.py.

A ```console block holds commands (`$ …`) and, if lines follow a command, its output. The ```python
blocks of a page run in one namespace after its commands. Comments before a block change that:

    <!-- not run: REASON -->     never run; REASON is one of `REASONS`
    <!-- slow: REASON -->        run by tests marked `slow` only
    <!-- exit code: 0, 4 -->     exit codes that its commands may have; 0 without this comment
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "quickstart.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    ROOT / "docs" / "reference" / "python-api.md",
]
REASONS = ("needs ", "runs until Ctrl-C", "takes minutes", "`make test` builds")
_BLOCK = re.compile(
    r"(?P<comments>(?:^<!-- [^\n]* -->\n)*)^```(?P<kind>console|python)\n(?P<body>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Command:
    """A command, and the lines that it prints if the page shows any."""

    text: str
    output: str


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and what its comments say."""

    kind: str
    body: str
    not_run: str
    slow: str
    exit_codes: frozenset[int]

    @property
    def commands(self) -> list[Command]:
        """The commands of a console block."""
        found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", self.body, flags=re.MULTILINE)
        return [Command(text, output) for text, output in found]


def blocks(page: Path) -> list[Block]:
    """The console and Python blocks of a page, in their order."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        comments = dict(re.findall(r"^<!-- ([\w ]+): (.*) -->$", match["comments"], re.MULTILINE))
        codes = frozenset(map(int, comments.pop("exit code", "0").split(",")))
        not_run, slow = comments.pop("not run", ""), comments.pop("slow", "")
        assert not comments, f"{page.name}: unknown comment {comments}"
        found.append(Block(match["kind"], match["body"], not_run, slow, codes))
    return found


_NUMBER = re.compile(r"\d+\.\d+")


def is_like(shown: str, printed: str, tolerance: float = 0.03) -> bool:
    """True if the texts are equal but for decimals, which may differ by `tolerance`.

    Probabilities differ a little between CPUs with and without BF16.
    """
    if _NUMBER.sub("#", shown) != _NUMBER.sub("#", printed):
        return False
    numbers = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True)
    return all(abs(float(first) - float(second)) <= tolerance for first, second in numbers)
