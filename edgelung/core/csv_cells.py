"""Text in CSV cells that no spreadsheet takes for a formula.

A spreadsheet computes a cell that begins with `=`, `+`, `-` or `@`, also after blanks, and some
drop a tab or a line end in front. One that is set to semicolons or tabs begins a cell within ours.
In all these places an apostrophe goes in front, which a spreadsheet shows as text. Reading takes it
away: `raw_cell(safe_cell(text)) == text` for every text, and any other text is not changed.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

# Where a cell may begin; marks that are there already; blanks, and quotes, which are dropped where
# a spreadsheet begins a cell within ours; what makes a formula.
_FORMULA = re.compile(
    r"(?:^|(?<=[;\t\r\n]))'*[\" \u00a0\u200b\u3000\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n]"
)


T = TypeVar("T")


class RowWriter(Protocol):
    """What `csv.writer` returns."""

    def writerow(self, row: Iterable[object], /) -> object:
        """Write one row."""
        ...


def safe_cell(text: str) -> str:
    """Put an apostrophe wherever a spreadsheet would begin a formula."""
    return _FORMULA.sub(r"'\g<0>", text)


def raw_cell(cell: str) -> str:
    """The text that `safe_cell` made `cell` of."""
    return _FORMULA.sub(lambda found: found[0].removeprefix("'"), cell)


def write_safely(writer: RowWriter, rows: Iterable[Sequence[object]]) -> None:
    """Write rows whose text is safe; numbers stay as they are."""
    for row in rows:
        writer.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])


def raw_row(row: dict[str, str]) -> dict[str, str]:
    """A row of `csv.DictReader` as it was before it was made safe."""
    return {_raw(name): _raw(cell) for name, cell in row.items()}


def _raw(cell: T) -> T | str:
    """As `raw_cell`; None or a list, where a row and the header differ in length, is kept."""
    return raw_cell(cell) if isinstance(cell, str) else cell
