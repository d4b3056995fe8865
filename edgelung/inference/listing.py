"""The files that a list names: see `edgelung.tiles.lists` for the forms a list may have."""

import contextlib
import logging
import os
import posixpath
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from edgelung.core.errors import EdgelungError
from edgelung.inference.record import printable
from edgelung.tiles.find import FoundFile
from edgelung.tiles.lists import STANDARD_INPUT, list_name, read_rows
from edgelung.tiles.names import resolve

logger = logging.getLogger(__name__)

__all__ = ["STANDARD_INPUT", "listed_files"]


def listed_files(
    folder: Path, listing: Path, subset: str | None, *, check: bool = True
) -> Iterator[FoundFile]:
    """The files that the list names, each once, read from the list as they are needed.

    Args:
        folder: what relative paths in the list are relative to.
        listing: a file, a pipe, or `-` for standard input.
        subset: of a CSV, only the rows whose column `subset` holds this.
        check: read a regular file to its end first, and warn if none of its files is there.

    Raises:
        EdgelungError: the list is wrong, or names no file. A regular file is checked to its end at
            once, a stream as it is read.
    """
    name = list_name(listing)
    if check and listing.is_file():  # a pipe can be read only once
        _check(folder, listing, subset)
    names = _names(listing, subset)
    first = next(names, None)
    if first is None:
        raise EdgelungError(f"{name} names no files{_in_subset(subset)}")
    return _files(folder, first, names)


def _check(folder: Path, listing: Path, subset: str | None) -> None:
    """Raise EdgelungError for a list that is wrong; say so if none of its files is there."""
    first, any_there = None, False
    for name in _names(listing, subset):
        first = name if first is None else first
        any_there = any_there or os.path.lexists(_location(folder, resolve(folder, name)))
    if first is not None and not any_there:
        logger.warning(
            "none of the files that %s names%s is there, %s for one; expected paths relative to "
            "%s, or absolute ones",
            *(listing, _in_subset(subset), printable(first), folder),
        )


def _names(listing: Path, subset: str | None) -> Iterator[str]:
    wanted = () if subset is None else ("subset",)
    rows = read_rows(listing, wanted)
    return (row["path"] for row in rows if subset is None or row["subset"] == subset)


def _files(folder: Path, first: str, names: Iterator[str]) -> Iterator[FoundFile]:
    seen: set[bytes] = set()  # hashes: the names of a million files would fill memory
    name: str | None = first
    while name is not None:
        path = _normalized(folder, resolve(folder, name))
        key = blake2b(os.fsencode(path), digest_size=16).digest()
        if key not in seen:
            seen.add(key)
            yield FoundFile(path, str(folder / path), listed=True)
        name = next(names, None)


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


def _location(folder: Path, path: str) -> str:
    return str(folder / path).replace("\0", "")


def _in_subset(subset: str | None) -> str:
    return "" if subset is None else f" in subset {subset!r}"
