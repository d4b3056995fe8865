"""Lists of tiles as people's programs write them: plain lists, `find -print0`, CSV of any dialect.

One parser for `infer --files` and `train --groups`. It reads what pandas, Excel, QuPath and shells
write: commas, semicolons, tabs or bars; UTF-8 with or without a byte-order mark, UTF-16; column
names in any case. What it cannot read it names in one line. Rows are read as they are needed, so a
list may be a pipe.
"""

import codecs
import contextlib
import csv
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgelung.core.errors import EdgelungError, one_line

STANDARD_INPUT = Path("-")
# The column that names the tile, in order of preference.
PATH_COLUMNS = (
    *("path", "filepath", "file_path", "image_path", "img_path", "tile_path"),
    *("filename", "file_name", "file", "image_name", "image", "tile"),
)
DELIMITERS = ",;\t|"
BLOCK_BYTES = 1 << 16
_SPREADSHEETS = {b"PK\3\4": "a zip archive or an .xlsx", b"\xd0\xcf\x11\xe0": "an old .xls"}

Row = dict[str, str]


def list_name(path: Path) -> str:
    """How a list is called in messages."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def read_rows(path: Path, wanted: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a list; every row has the key `path`.

    A CSV needs one of `PATH_COLUMNS`; its other columns keep their names, in lower case. `wanted`
    names columns that must be there, `a|b` either of two. Anything else is a plain list with a path
    per line, or per NUL as `find -print0` writes it, if no other column is `wanted`.

    Raises:
        EdgelungError: the list cannot be read, is a spreadsheet, or lacks a wanted column.
    """
    name = list_name(path)
    try:
        with _open(path) as source:
            first = _first_line(source, b"")
            if first.lower().startswith((b"sep=", codecs.BOM_UTF8 + b"sep=")):  # Excel's own line
                first = _first_line(source, first.partition(b"\n")[2])
            stream: io.BufferedReader = io.BufferedReader(_Prefixed(first, source))
            yield from _rows(stream, first, name, wanted)
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


def _first_line(source: io.BufferedReader, read: bytes) -> bytes:
    """Read until the first line is complete; a pipe delivers it in pieces."""
    while more := source.read1(BLOCK_BYTES) if not _has_line(read) else b"":
        read += more
    return read


def _has_line(read: bytes) -> bool:
    wide = read.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # holds NULs anyway
    return b"\n" in read or b"\r" in read or (b"\0" in read and not wide)


def _rows(
    stream: io.BufferedReader, first: bytes, name: str, wanted: Sequence[str]
) -> Iterator[Row]:
    for magic, kind in _SPREADSHEETS.items():
        if first.startswith(magic):
            raise EdgelungError(f"{name} is {kind}, not text; save it as CSV")
    if _is_unmarked_utf16(first):
        raise EdgelungError(f"{name} is UTF-16 without a byte-order mark; save it as UTF-8")
    encoding = _encoding(first)
    header = _header(first, encoding)
    column = path_column(split_header(header))
    if column is not None:
        yield from _table(stream, name, encoding, header, wanted)
    elif wanted:
        found = ", ".join(split_header(header)) or "(none)"
        raise EdgelungError(
            f"{name} has the columns {found}; expected {_spoken(['path', *wanted])} in its "
            "first line"
        )
    elif encoding == "utf-8-sig" and b"\0" in first:
        yield from ({"path": path} for path in _between_zeros(stream))
    else:
        yield from ({"path": path} for path in _lines(stream, encoding))


def _is_unmarked_utf16(first: bytes) -> bool:
    """Whether every second of the first bytes is NUL: UTF-16 of either order, without its mark."""
    start = first[:8]
    zeros = [not any(start[offset::2]) for offset in (0, 1)]
    return len(start) >= 4 and zeros[0] != zeros[1]


def path_column(columns: Sequence[str]) -> str | None:
    """The column that names the tile; None where none does."""
    return next((name for name in PATH_COLUMNS if name in columns), None)


def split_header(line: str) -> list[str]:
    """Names of the columns of a header line, in lower case."""
    fields = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return [field.strip().lower() for field in fields]


def _spoken(columns: Sequence[str]) -> str:
    return " and ".join(names.replace("|", " or ") for names in columns)


def _delimiter(line: str) -> str:
    """The delimiter that occurs most often in the header; a comma where none does."""
    return max(DELIMITERS, key=line.count)


def _encoding(first: bytes) -> str:
    if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig"


def _header(first: bytes, encoding: str) -> str:
    """Decode the first line; incomplete bytes after it are ignored."""
    text = first.decode(encoding, "replace")
    return re.split("[\n\r\0]", text.lstrip("\ufeff"), maxsplit=1)[0].strip()


def _table(
    stream: io.BufferedReader, name: str, encoding: str, header: str, wanted: Sequence[str]
) -> Iterator[Row]:
    columns = split_header(header)
    column = path_column(columns)
    assert column is not None
    missing = [names for names in wanted if not any(n in columns for n in names.split("|"))]
    if missing:
        raise EdgelungError(
            f"{name} has the columns {', '.join(columns)}; expected {_spoken(missing)} too"
        )
    # Bytes of a name that are not UTF-8 go through unchanged.
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")
    try:
        reader = csv.reader(text, delimiter=_delimiter(header))
        next(reader)
        for fields in reader:
            if any(field.strip() for field in fields):  # else a blank line
                yield _row(columns, column, fields, f"{name}, line {reader.line_num}")
    finally:
        text.detach()  # the stream is closed by whoever opened it


def _row(columns: Sequence[str], column: str, fields: Sequence[str], where: str) -> Row:
    """One line of a table. Raises EdgelungError for one that does not fit the header."""
    if any(field.strip() for field in fields[len(columns) :]):
        raise EdgelungError(
            f"{where}: {len(fields)} cells, but the header has {len(columns)}; put quotes around "
            "names that hold the delimiter"
        )
    cells = [*fields, *[""] * (len(columns) - len(fields))]
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
