"""Lists of files: one path per line, NUL between them (`find -print0`), or a CSV with `path`."""

import codecs
import contextlib
import csv
import io
import os
import posixpath
import re
import sys
from collections import deque
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from edgelung.core.errors import EdgelungError
from edgelung.tiles.find import FoundFile

STANDARD_INPUT = Path("-")
_BLOCK_BYTES = 1 << 16


def listed_files(folder: Path, listing: Path, subset: str | None) -> Iterator[FoundFile]:
    """The files that the list names, each once, read from the list as they are needed.

    Args:
        folder: what relative paths in the list are relative to.
        listing: a file, a pipe, or `-` for standard input.
        subset: of a CSV, only the rows whose column `subset` holds this.

    Raises:
        EdgelungError: the list is wrong or names no file. A regular file is checked to its end
            at once, a stream as it is read.
    """
    name = "standard input" if listing == STANDARD_INPUT else str(listing)
    if listing.is_file():  # a pipe can be read only once
        deque(_paths(listing, name, subset), maxlen=0)
    paths = _paths(listing, name, subset)
    first = next(paths, None)
    if first is None:
        where = "" if subset is None else f" in subset {subset!r}"
        raise EdgelungError(f"{name} names no files{where}")

    def files(path: str | None) -> Iterator[FoundFile]:
        seen: set[bytes] = set()  # hashes: the names of a million files would fill memory
        while path is not None:
            path = _normalized(folder, path)
            key = blake2b(os.fsencode(path), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                yield FoundFile(path, str(folder / path), listed=True)
            path = next(paths, None)

    return files(first)


def _normalized(folder: Path, path: str) -> str:
    """The path without `.` and `..`, so that a file has one name.

    `..` behind a symbolic link stays: there it leads elsewhere than the text says.
    """
    normalized = posixpath.normpath(path)
    if ".." in path.split("/"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL in the name
            if os.path.realpath(folder / path) != os.path.realpath(folder / normalized):
                return str(PurePosixPath(path))
    return normalized


def _paths(listing: Path, name: str, subset: str | None) -> Iterator[str]:
    """The paths in the list, whichever of the three forms it has."""
    try:
        with _opened(listing) as source:
            start = b""
            while not (b"\n" in start or b"\0" in start) and (block := source.read1(_BLOCK_BYTES)):
                start += block  # a pipe may bring the first line in pieces
            file: io.BufferedReader = io.BufferedReader(_Rejoined(start, source))
            header = start.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].lower()
            if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise EdgelungError(f"{name} is UTF-16; save it as UTF-8")
            is_zip = start.startswith(b"PK\3\4")
            has_nul = b"\0" in start and not is_zip
            if not has_nul and b"path" in re.split(rb"[,;\t]", header.strip().replace(b'"', b"")):
                yield from _csv_paths(file, name, subset)
            elif subset is not None:
                raise EdgelungError(f"{name} has no `path` and `subset` columns for --subset")
            elif has_nul:
                yield from _nul_separated(file)
            elif is_zip:
                raise EdgelungError(f"{name} is a zip archive or a spreadsheet; save it as CSV")
            else:
                yield from _lines(file)
    except OSError as error:
        raise EdgelungError(f"cannot read the list {name}: {error.strerror}") from error


@contextlib.contextmanager
def _opened(listing: Path) -> Iterator[io.BufferedReader]:
    if listing == STANDARD_INPUT:
        if sys.stdin is None:
            raise EdgelungError("standard input is closed; expected a list of files on it")
        yield sys.stdin.buffer  # type: ignore[misc]
    else:
        with listing.open("rb") as file:
            yield file


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already: these bytes, then the rest."""

    def __init__(self, start: bytes, rest: io.BufferedReader) -> None:
        self._start, self._rest = start, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[: len(buffer)] or self._rest.read1(len(buffer))
        self._start = self._start[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _lines(file: io.BufferedReader) -> Iterator[str]:
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)  # Excel writes a byte-order mark
        path = os.fsdecode(line.rstrip(b"\n").strip(b"\r"))
        if path.strip():
            yield path


def _nul_separated(file: io.BufferedReader) -> Iterator[str]:
    rest = b""
    while block := file.read1(_BLOCK_BYTES):
        *names, rest = (rest + block).split(b"\0")
        yield from (os.fsdecode(name) for name in names if name)
    if rest:
        yield os.fsdecode(rest)


def _csv_paths(file: io.BufferedReader, name: str, subset: str | None) -> Iterator[str]:
    # surrogateescape keeps the bytes of a name that are not UTF-8.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        rows = csv.DictReader(text)
        names = rows.fieldnames or []
        needed = ["path"] if subset is None else ["path", "subset"]
        if missing := [column for column in needed if column not in names]:
            raise EdgelungError(
                f"{name} has the columns {', '.join(names)}; expected {', '.join(missing)} "
                "too, with commas between"
            )
        for row in rows:
            if subset is None or row["subset"] == subset:
                if not row["path"]:
                    raise EdgelungError(f"{name} has a row without a path")
                yield row["path"]
    except csv.Error as error:
        raise EdgelungError(f"cannot read the list {name}: {error}") from error
    finally:
        text.detach()  # closing `text` would close the file, which the caller does
