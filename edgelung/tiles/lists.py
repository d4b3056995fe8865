"""Lists of tiles as people's programs write them: plain lists, `find -print0`, CSV of any dialect.

One parser for `infer --files` and `train --groups`. It reads what pandas, Excel, QuPath and shells
write: commas, semicolons, tabs or bars; UTF-8 with or without a byte-order mark, UTF-16; column
names in any case, with blanks or hyphens for `_`. What it cannot read it names in one line. Rows
are read as they are needed, so a list may be a pipe.
"""

import codecs
import contextlib
import csv
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelung.core.csv_cells import raw_cell
from edgelung.core.errors import EdgelungError, one_line

STANDARD_INPUT = Path("-")
# The column that names the tile, in order of preference.
PATH_COLUMNS = (
    *("path", "filepath", "file_path", "image_path", "img_path", "tile_path", "fullname"),
    *("filename", "file_name", "file", "image_name", "tile_name", "image", "tile", "image_id"),
)
DELIMITERS = ",;\t|"
BLOCK_BYTES = 1 << 16
_SPREADSHEETS = {b"PK\3\4": "a zip archive or an .xlsx", b"\xd0\xcf\x11\xe0": "an old .xls"}

# Byte-order marks and their codecs. UTF-32's marks begin with those of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
_LINE_END = r"(?: \r\n | \n | \r )"
# Before the header: blank lines, Excel's `sep=;`, or PowerShell's `#TYPE System.IO.FileInfo`.
_PREAMBLE = re.compile(
    rf"""(?: [\s,;|]* | "?sep=[ -~\t]{{0,3}} | \#TYPE\ [ -~]* ) {_LINE_END}""",
    re.VERBOSE | re.IGNORECASE,
)

Row = dict[str, str]


@dataclass(frozen=True)
class _Head:
    """What was read ahead of a list.

    Attributes:
        first: the bytes from the header on, behind the byte-order mark. The header is complete.
        skipped: lines before the header.
    """

    first: bytes
    skipped: int

    @property
    def encoding(self) -> str:
        codec = _mark_and_codec(self.first)[1]
        return "utf-8-sig" if codec == "utf-8" else codec[:6]

    @property
    def header(self) -> str:
        """The first line; incomplete bytes after it are ignored."""
        text = self.first.decode(self.encoding, "replace")
        return re.split("[\n\r\0]", text.lstrip("\ufeff"), maxsplit=1)[0].strip()

    @property
    def columns(self) -> list[str]:
        return split_header(self.header)


def list_name(path: Path) -> str:
    """How a list is called in messages."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def read_rows(path: Path, wanted: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a list; every row has the key `path`.

    A CSV needs one of `PATH_COLUMNS`; its other columns keep their names, in lower case and with
    `_` for blanks and hyphens. Bytes that are not UTF-8 become surrogates, as in `os.fsdecode`;
    `is_utf8` tells. `wanted`
    names columns that must be there, `a|b` either of two. Anything else is a plain list with a path
    per line, or per NUL as `find -print0` writes it, if no other column is `wanted`.

    Raises:
        EdgelungError: the list cannot be read, is a spreadsheet, lacks a wanted column or has it
            twice, or a row does not fit the header.
    """
    name = list_name(path)
    try:
        with _open(path) as source:
            head = _read_head(source)
            stream: io.BufferedReader = io.BufferedReader(_Prefixed(head.first, source))
            yield from _rows(stream, head, name, wanted)
    except OSError as error:
        raise EdgelungError(f"cannot read the list {name}: {error.strerror}") from error
    except csv.Error as error:
        raise EdgelungError(
            f"cannot read the list {name}: {one_line(error)}; expected a text file with a path "
            "per line, or a CSV"
        ) from error
    except UnicodeError as error:
        raise EdgelungError(
            f"cannot read the list {name}: {one_line(error)}; save it as UTF-8"
        ) from error


def unknown_columns(path: Path) -> list[str]:
    """Columns of a regular file that looks like a table but is read as a plain list; else []."""
    with path.open("rb") as source:
        columns = _read_head(source).columns
    return columns if len(columns) > 1 and path_column(columns) is None else []


def is_utf8(text: str) -> bool:
    """Whether a path or a cell of a list was UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_head(source: io.BufferedReader) -> _Head:
    """Read until the header is complete, and drop the lines before it."""
    first, skipped = _first_line(source, b""), 0
    while True:
        mark, codec = _mark_and_codec(first)
        preamble = _PREAMBLE.match(first[len(mark) :].decode(codec, "replace"))
        if preamble is None:
            return _Head(first, skipped)
        behind = len(mark) + len(preamble[0].encode(codec))
        skipped += len(re.findall(_LINE_END, preamble[0], re.VERBOSE))
        first = _first_line(source, mark + first[behind:])


def _mark_and_codec(first: bytes) -> tuple[bytes, str]:
    marked = ((mark, codec) for mark, codec in _MARKS.items() if first.startswith(mark))
    return next(marked, (b"", "utf-8"))


def _first_line(source: io.BufferedReader, read: bytes) -> bytes:
    """Read until the first line is complete; a pipe delivers it in pieces."""
    while more := source.read1(BLOCK_BYTES) if not _has_line(read) else b"":
        read += more
    return read


def _has_line(read: bytes) -> bool:
    mark, codec = _mark_and_codec(read)
    if codec != "utf-8":
        return not {"\n", "\r"}.isdisjoint(read[len(mark) :].decode(codec, "ignore"))
    return b"\n" in read or b"\r" in read or b"\0" in read


def _rows(
    stream: io.BufferedReader, head: _Head, name: str, wanted: Sequence[str]
) -> Iterator[Row]:
    for magic, kind in _SPREADSHEETS.items():
        if head.first.startswith(magic):
            raise EdgelungError(f"{name} is {kind}, not text; save it as CSV")
    if _is_unmarked_utf16(head.first):
        raise EdgelungError(f"{name} is UTF-16 without a byte-order mark; save it as UTF-8")
    if path_column(head.columns) is not None:
        yield from _table(stream, name, head, wanted)
    elif wanted:
        found = ", ".join(head.columns) or "(none)"
        raise EdgelungError(
            f"{name} has the columns {found}; expected {_spoken(['path', *wanted])} in its "
            "first line"
        )
    elif head.encoding == "utf-8-sig" and b"\0" in head.first:
        yield from ({"path": path} for path in _between_zeros(stream))
    else:
        yield from ({"path": path} for path in _lines(stream, head.encoding))


def _is_unmarked_utf16(first: bytes) -> bool:
    """Whether every second of the first bytes is NUL: UTF-16 of either order, without its mark."""
    start = first[:8]
    zeros = [not any(start[offset::2]) for offset in (0, 1)]
    return len(start) >= 4 and zeros[0] != zeros[1]


def path_column(columns: Sequence[str]) -> str | None:
    """The column that names the tile; None where none does."""
    return next((name for name in PATH_COLUMNS if name in columns), None)


def split_header(line: str) -> list[str]:
    """Names of the columns of a header line, in lower case, with `_` for blanks and hyphens."""
    fields = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return [re.sub(r"[\s-]+", "_", field.strip().lower()) for field in fields]


def _spoken(columns: Sequence[str]) -> str:
    return " and ".join(names.replace("|", " or ") for names in columns)


def _delimiter(line: str) -> str:
    """The delimiter that occurs most often in the header; a comma where none does."""
    return max(DELIMITERS, key=line.count)


def _table(
    stream: io.BufferedReader, name: str, head: _Head, wanted: Sequence[str]
) -> Iterator[Row]:
    columns = head.columns
    column = path_column(columns)
    assert column is not None
    _check_columns(columns, column, name, wanted)
    # Bytes of a name that are not UTF-8 go through unchanged.
    errors = "surrogateescape" if head.encoding == "utf-8-sig" else "strict"
    text = io.TextIOWrapper(stream, encoding=head.encoding, errors=errors, newline="")
    line = head.skipped + 1
    try:
        reader = csv.reader(text, delimiter=_delimiter(head.header))
        for fields in reader:
            if line > head.skipped + 1 and any(field.strip() for field in fields):
                yield _row(columns, column, fields, f"{name}, line {line}")
            line = head.skipped + reader.line_num + 1  # where the next row begins
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from error
    finally:
        text.detach()  # the stream is closed by whoever opened it


def _check_columns(columns: Sequence[str], column: str, name: str, wanted: Sequence[str]) -> None:
    """Raise EdgelungError unless each wanted column is there exactly once, as the path is."""
    present = [
        [found for found in columns if found in names.split("|")] for names in (column, *wanted)
    ]
    missing = [names for names, found in zip(wanted, present[1:], strict=True) if not found]
    if missing:
        raise EdgelungError(
            f"{name} has the columns {', '.join(columns)}; expected {_spoken(missing)} too"
        )
    if twice := next((found for found in present if len(found) > 1), None):
        raise EdgelungError(
            f"{name} has the columns {' and '.join(twice)}; expected one of them: remove or rename "
            "the others"
        )


def _row(columns: Sequence[str], column: str, fields: Sequence[str], where: str) -> Row:
    """One line of a table. Raises EdgelungError for one that does not fit the header."""
    if any(field.strip() for field in fields[len(columns) :]):
        raise EdgelungError(
            f"{where}: {len(fields)} cells, but the header has {len(columns)}; put quotes around "
            "names that hold the delimiter"
        )
    if any("\n" in field or "\r" in field for field in fields):
        raise EdgelungError(
            f"{where}: a cell goes on in the next line; close the quote in it, or remove the line "
            "break"
        )
    cells = [*map(raw_cell, fields), *[""] * (len(columns) - len(fields))]
    row = dict(zip(columns, cells, strict=False))
    if not row[column].strip():
        raise EdgelungError(f"{where}: a row without a path")
    return row | {"path": row[column]}


def _lines(stream: io.BufferedReader, encoding: str) -> Iterator[str]:
    if encoding != "utf-8-sig":
        text = io.TextIOWrapper(stream, encoding=encoding, newline=None)
        try:
            yield from (line.rstrip("\n") for line in text if line.strip())
        finally:
            text.detach()
        return
    for number, line in enumerate(stream):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        for part in content.rstrip(b"\r\n").split(b"\r"):  # a lone CR ends a line on old Macs
            path = os.fsdecode(part)
            if path.strip():
                yield path


def _between_zeros(stream: io.BufferedReader) -> Iterator[str]:
    rest = b""
    while block := stream.read1(BLOCK_BYTES):
        *whole, rest = (rest + block).split(b"\0")
        yield from (os.fsdecode(name) for name in whole if name)
    if rest:
        yield os.fsdecode(rest)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    if path != STANDARD_INPUT:
        with path.open("rb") as file:
            yield file
    elif sys.stdin is None:
        raise EdgelungError("standard input is closed; expected a list of files on it")
    else:
        yield sys.stdin.buffer  # type: ignore[misc]


class _Prefixed(io.RawIOBase):
    """The bytes that were read ahead, then the rest of the source."""

    def __init__(self, first: bytes, rest: io.BufferedReader) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._first[: len(buffer)] or self._rest.read1(len(buffer))
        self._first = self._first[len(data) :]
        buffer[: len(data)] = data
        return len(data)
