"""Read lists of tiles: plain lists, the output of `find -print0`, and CSV of any dialect.

One parser for `infer --files` and `train --groups`. It reads the output of pandas, Excel, QuPath
and shells: commas, semicolons, tabs or vertical bars; UTF-8 with or without a byte-order mark,
UTF-16; column names in upper or lower case. Other input is an error in one line. Rows are read
lazily, so a list may be a pipe.
"""

import codecs
import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgelung.core.errors import EdgelungError, one_line

STANDARD_INPUT = Path("-")
# The column that names the tile, in order of preference.
PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path"),
    *("image", "image_path", "img_path", "image_name", "tile", "tile_path"),
)
DELIMITERS = ",;\t|"
BLOCK_BYTES = 1 << 16
_SPREADSHEETS = {b"PK\3\4": "a zip archive or an .xlsx", b"\xd0\xcf\x11\xe0": "an old .xls"}

Row = dict[str, str]


def list_name(path: Path) -> str:
    """The name of a list in messages."""
    return "standard input" if path == STANDARD_INPUT else str(path)


def read_rows(path: Path, required: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a list; every row has the key `path`.

    A CSV needs one of `PATH_COLUMNS`; its other columns keep their names, in lower case. `required`
    names columns that must be present; `a|b` stands for either of two. Without required columns any
    other text is a plain list: one path per line, or separated by NUL as from `find -print0`.

    Raises:
        EdgelungError: if the list cannot be read, is a spreadsheet, or lacks a required column.
    """
    name = list_name(path)
    try:
        with _open(path) as source:
            first = _first_line(source, b"")
            if first.lower().startswith(
                (b"sep=", codecs.BOM_UTF8 + b"sep=")
            ):  # a line that Excel writes
                first = _first_line(source, first.partition(b"\n")[2])
            stream: io.BufferedReader = io.BufferedReader(_Prefixed(first, source))
            yield from _rows(stream, first, name, required)
    except OSError as error:
        raise EdgelungError(f"cannot read the list {name}: {error.strerror}") from error
    except UnicodeError as error:
        raise EdgelungError(
            f"cannot read the list {name}: {one_line(error)}; save it as UTF-8"
        ) from error


def _first_line(source: io.BufferedReader, read: bytes) -> bytes:
    """Extend `read` until it contains the first line; a pipe delivers its data in pieces."""
    while more := source.read1(BLOCK_BYTES) if not _has_line(read) else b"":
        read += more
    return read


def _has_line(read: bytes) -> bool:
    is_utf16 = read.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # NULs in any text
    return b"\n" in read or (b"\0" in read and not is_utf16)


def _rows(
    stream: io.BufferedReader, first: bytes, name: str, required: Sequence[str]
) -> Iterator[Row]:
    for magic, kind in _SPREADSHEETS.items():
        if first.startswith(magic):
            raise EdgelungError(f"{name} is {kind}, not text; save it as CSV")
    encoding = _encoding(first)
    header = _header(first, encoding)
    column = path_column(split_header(header))
    if column is not None:
        yield from _table(stream, name, encoding, header, required)
    elif required:
        columns = ", ".join(split_header(header)) or "(none)"
        raise EdgelungError(
            f"{name} has the columns {columns}; expected {_in_words(['path', *required])} in its "
            "first line"
        )
    elif encoding == "utf-8-sig" and b"\0" in first:
        yield from ({"path": path} for path in _between_zeros(stream))
    else:
        yield from ({"path": path} for path in _lines(stream, encoding))


def path_column(columns: Sequence[str]) -> str | None:
    """The column with the path of the tile; None if there is none."""
    return next((name for name in PATH_COLUMNS if name in columns), None)


def split_header(line: str) -> list[str]:
    """The column names of a header line, in lower case."""
    fields = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return [field.strip().lower() for field in fields]


def _in_words(columns: Sequence[str]) -> str:
    return " and ".join(names.replace("|", " or ") for names in columns)


def _delimiter(line: str) -> str:
    """The most frequent delimiter in the header; a comma if there is none."""
    return max(DELIMITERS, key=line.count)


def _encoding(first: bytes) -> str:
    if first.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "utf-8-sig"


def _header(first: bytes, encoding: str) -> str:
    """The first line as text. A character cut off after it does not matter."""
    text = first.decode(encoding, "replace")
    return text.split("\n", 1)[0].split("\0", 1)[0].strip("\r\ufeff ")


def _table(
    stream: io.BufferedReader, name: str, encoding: str, header: str, required: Sequence[str]
) -> Iterator[Row]:
    columns = split_header(header)
    column = path_column(columns)
    assert column is not None
    missing = [names for names in required if not any(n in columns for n in names.split("|"))]
    if missing:
        raise EdgelungError(
            f"{name} has the columns {', '.join(columns)}; expected {_in_words(missing)} too"
        )
    # File names may contain bytes that are not UTF-8; they are kept.
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")
    try:
        reader = csv.reader(text, delimiter=_delimiter(header))
        next(reader)
        for number, fields in enumerate(reader, 2):
            if not any(field.strip() for field in fields):
                continue  # editors leave blank lines at the end
            row = dict(zip(columns, fields, strict=False))
            path = row.get(column, "").strip()
            if not path:
                raise EdgelungError(f"{name} has no path in line {number}")
            yield row | {"path": path}
    except csv.Error as error:
        raise EdgelungError(f"cannot read the list {name}: {error}") from error
    finally:
        text.detach()  # the caller closes the stream


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
        path = os.fsdecode(content.rstrip(b"\n").strip(b"\r"))
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
    """A stream of the bytes that were read ahead, then the rest of the source."""

    def __init__(self, first: bytes, rest: io.BufferedReader) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._first[: len(buffer)] or self._rest.read1(len(buffer))
        self._first = self._first[len(data) :]
        buffer[: len(data)] = data
        return len(data)
