"""Which files a run is about: below folders, or named in a list."""

import codecs
import contextlib
import csv
import io
import os
import posixpath
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file
from edgelung.tiles.find import FoundFile, find_files

STANDARD_INPUT = Path("-")
_BLOCK = 1 << 16


def gather(
    inputs: Sequence[Path],
    listing: Path | None,
    subset: str | None,
    out: Path,
    also_written: Sequence[Path | None] = (),
    *,
    missing_ok: bool = False,
) -> Iterable[FoundFile]:
    """The files to predict: all below the folders, or those that `listing` names.

    Rows are named relative to the folder, or to what several folders have in common. What the run
    itself writes (`out` and `also_written`) is no input. A folder that does not exist is an
    EdgelungError, or with `missing_ok` has no files.
    """
    if subset is not None and not listing:
        raise EdgelungError("--subset needs --files with a CSV that has a `subset` column")
    if listing:
        if listing != STANDARD_INPUT and out.exists() and out.samefile(listing):
            raise EdgelungError(f"--out {out} is the list of --files; choose another name")
        if len(inputs) != 1 or not inputs[0].is_dir():
            raise EdgelungError(
                "--files expects exactly one FOLDER, which its paths are relative to"
            )
        return _listed(inputs[0], listing, subset)
    for folder in inputs:
        if not (missing_ok or folder.exists()):
            raise EdgelungError(f"{folder} does not exist; expected a folder of tiles")
    _refuse_overlap(inputs)
    written = {
        (path.name, path.absolute().parent.resolve()) for path in (out, *also_written) if path
    }
    names = {name for name, _ in written}
    return (
        file
        for file in _found(inputs, missing_ok)
        if os.path.basename(file.location) not in names or not _is_own(file, written)
    )


def describe_source(
    inputs: Sequence[Path], listing: Path | None, subset: str | None
) -> dict[str, Any]:
    """What `gather` goes by, for the journal and the audit record."""
    lists = None
    if listing == STANDARD_INPUT:
        lists = "standard input"
    elif listing and listing.is_file():
        lists = sha256_file(listing)
    elif listing:
        lists = "a stream"
    folders = [
        os.fsencode(folder.absolute()).decode(errors="backslashreplace") for folder in inputs
    ]
    return {"inputs": folders, "--files": lists, "--subset": subset}


def _is_own(file: FoundFile, written: set[tuple[str, Path]]) -> bool:
    path = Path(file.location)
    return (path.name, path.parent.resolve()) in written


def _refuse_overlap(inputs: Sequence[Path]) -> None:
    given: dict[Path, Path] = {}
    for folder in inputs:
        if (resolved := folder.resolve()) in given:
            same = given[resolved]
            raise EdgelungError(f"{folder} is {same}; its files would have two rows each")
        given[resolved] = folder
    for resolved, folder in given.items():
        for parent in resolved.parents:
            if parent in given:
                raise EdgelungError(
                    f"{given[parent]} is named too, and {folder} lies in it; its files would have "
                    "two rows each"
                )


def _found(inputs: Sequence[Path], missing_ok: bool) -> Iterator[FoundFile]:
    if len(inputs) == 1:
        yield from find_files(inputs[0])
        return
    folders = [folder.absolute() for folder in inputs]
    names = [PurePosixPath(*folder.parts) for folder in folders]
    shared = 0
    with contextlib.suppress(IndexError):
        while len({name.parts[shared] for name in names}) == 1:
            shared += 1
    entered: set[tuple[int, int]] = set()
    for folder, name in zip(folders, names, strict=True):
        if missing_ok and not os.path.exists(folder):
            continue
        prefix = "/".join(name.parts[shared:])
        for file in find_files(folder, entered):
            own = prefix if not folder.is_dir() else f"{prefix}/{file.path}".lstrip("/")
            yield FoundFile(own, file.location, file.reason, file.listed)


def _listed(folder: Path, listing: Path, subset: str | None) -> Iterator[FoundFile]:
    """The files of the list, each once, read on as they are needed; refuses a bad list at once."""
    name = "standard input" if listing == STANDARD_INPUT else str(listing)
    if listing.is_file():  # a pipe is read once
        deque(_paths(listing, name, subset), maxlen=0)  # a bad last line is a mistake now
    paths = _paths(listing, name, subset)
    first = next(paths, None)
    if first is None:
        where = "" if subset is None else f" in subset {subset!r}"
        raise EdgelungError(f"{name} names no files{where}")

    def files(path: str | None) -> Iterator[FoundFile]:
        seen: set[bytes] = set()  # hashes: the names of a million files would fill memory
        while path is not None:
            path = _plain(folder, path)
            key = blake2b(os.fsencode(path), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                yield FoundFile(path, str(folder / path), listed=True)
            path = next(paths, None)

    return files(first)


def _plain(folder: Path, path: str) -> str:
    """Without `.` and `..`, by which one file would have many names; `..` behind a link stays."""
    plain = posixpath.normpath(path)
    if ".." in path.split("/"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: a NUL
            if os.path.realpath(folder / path) != os.path.realpath(folder / plain):
                return str(PurePosixPath(path))
    return plain


def _paths(listing: Path, name: str, subset: str | None) -> Iterator[str]:
    try:
        with _open(listing) as source:
            first = b""  # a pipe may bring a name in pieces
            while not (b"\n" in first or b"\0" in first) and (more := source.read1(_BLOCK)):
                first += more
            file: io.BufferedReader = io.BufferedReader(_Again(first, source))
            head = first.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].lower()
            if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise EdgelungError(f"{name} is UTF-16; save it as UTF-8")
            if b"\0" in first and not first.startswith(b"PK"):  # find -print0
                if subset is not None:
                    raise EdgelungError(f"{name} has no `path` and `subset` columns for --subset")
                yield from _between_zeros(file)
            elif b"path" in re.split(rb"[,;\t]", head.strip().replace(b'"', b"")):
                yield from _column(file, name, subset)
            elif subset is not None:
                raise EdgelungError(f"{name} has no `path` and `subset` columns for --subset")
            elif first[:4] == b"PK\3\4":
                raise EdgelungError(f"{name} is a zip archive or a spreadsheet; save it as CSV")
            else:
                yield from _lines(file)
    except OSError as error:
        raise EdgelungError(f"cannot read the list {name}: {error.strerror}") from error


@contextlib.contextmanager
def _open(listing: Path) -> Iterator[io.BufferedReader]:
    if listing == STANDARD_INPUT:
        if sys.stdin is None:
            raise EdgelungError("standard input is closed; expected a list of files on it")
        yield sys.stdin.buffer  # type: ignore[misc]
    else:
        with listing.open("rb") as file:
            yield file


class _Again(io.RawIOBase):
    """What was read of a file, then the rest of it."""

    def __init__(self, first: bytes, rest: io.BufferedReader) -> None:
        self._first, self._rest = first, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._first[: len(buffer)] or self._rest.read1(len(buffer))
        self._first = self._first[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _lines(file: io.BufferedReader) -> Iterator[str]:
    for number, line in enumerate(file):
        if number == 0:
            line = line.removeprefix(codecs.BOM_UTF8)  # Excel puts a byte-order mark in front
        path = os.fsdecode(line.rstrip(b"\n").strip(b"\r"))
        if path.strip():
            yield path


def _between_zeros(file: io.BufferedReader) -> Iterator[str]:
    rest = b""
    while block := file.read1(_BLOCK):
        *whole, rest = (rest + block).split(b"\0")
        yield from (os.fsdecode(name) for name in whole if name)
    if rest:
        yield os.fsdecode(rest)


def _column(file: io.BufferedReader, name: str, subset: str | None) -> Iterator[str]:
    # Bytes of a name that are not UTF-8 go through unchanged.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        rows = csv.DictReader(text)
        found = rows.fieldnames or []
        needed = ["path"] if subset is None else ["path", "subset"]
        if missing := [column for column in needed if column not in found]:
            raise EdgelungError(
                f"{name} has the columns {', '.join(found)}; expected {', '.join(missing)} "
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
        text.detach()  # closing the file is whose it is
