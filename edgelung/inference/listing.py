"""The files that a list names: see `edgelung.tiles.lists` for the forms a list may have."""

import contextlib
import logging
import os
import posixpath
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from edgelung.core.errors import EdgelungError
from edgelung.tiles.find import FoundFile
from edgelung.tiles.lists import (
    PATH_COLUMNS,
    STANDARD_INPUT,
    is_utf8,
    list_name,
    read_rows,
    unknown_columns,
)
from edgelung.tiles.names import printable, resolve

logger = logging.getLogger(__name__)

MOST_SUBSETS = 8  # named in a message

__all__ = ["STANDARD_INPUT", "listed_files"]


def listed_files(
    folder: Path, listing: Path, subset: str | None, *, check: bool = True
) -> Iterator[FoundFile]:
    """The files that the list names, each once, read from the list as they are needed.

    Args:
        folder: what relative paths in the list are relative to.
        listing: a file, a pipe, or `-` for standard input.
        subset: of a CSV, only the rows whose column `subset` holds this.
        check: read a regular file to its end first, and warn if none of its files is there,
            or if one is not because the list is not UTF-8.

    Raises:
        EdgelungError: the list is wrong, or names no file. A regular file is checked to its end at
            once, a stream as it is read.
    """
    name = list_name(listing)
    if check and listing.is_file():  # a pipe can be read only once
        _check(folder, listing, subset)
    subsets: set[str] = set()
    names = _names(listing, subset, subsets)
    first = next(names, None)
    if first is None:
        has = f"; it has the subsets {_shown(subsets)}" if subsets else ""
        raise EdgelungError(f"{name} names no files{_in_subset(subset)}{has}")
    return _files(folder, first, names)


def _check(folder: Path, listing: Path, subset: str | None) -> None:
    """Raise EdgelungError for a list that is wrong; warn if its files are not there."""
    first, not_utf8, any_there = None, None, False
    for name in _names(listing, subset, set()):
        first = name if first is None else first
        other_encoding = not_utf8 is None and not is_utf8(name)
        if any_there and not other_encoding:
            continue  # asking the file system about a million names takes minutes
        there = os.path.lexists(_location(folder, resolve(folder, name)))
        any_there = any_there or there
        if other_encoding and not there:
            not_utf8 = name
    if not_utf8 is not None:
        logger.warning(
            "%s is not UTF-8, and %s is not there; save the list as UTF-8",
            *(list_name(listing), printable(not_utf8)),
        )
    if first is None or any_there:
        return
    logger.warning(
        "none of the files that %s names%s is there, %s for one; expected paths relative to "
        "%s, or absolute ones",
        *(listing, _in_subset(subset), printable(first), folder),
    )
    if columns := unknown_columns(listing):
        logger.warning(
            "the columns of %s were not recognised (%s); if it is a table, name the column of the "
            "paths one of %s",
            *(listing, printable(", ".join(columns)), ", ".join(PATH_COLUMNS)),
        )


def _names(listing: Path, subset: str | None, subsets: set[str]) -> Iterator[str]:
    """Paths in the subset. Adds the names of all subsets that the list has to `subsets`."""
    wanted = () if subset is None else ("subset",)
    for row in read_rows(listing, wanted):
        if subset is None or row["subset"] == subset:
            yield row["path"]
        elif len(subsets) <= MOST_SUBSETS:
            subsets.add(row["subset"])


def _shown(subsets: set[str]) -> str:
    names = [printable(repr(name)) for name in sorted(subsets)]
    return ", ".join(names[:MOST_SUBSETS]) + (" …" if len(names) > MOST_SUBSETS else "")


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
