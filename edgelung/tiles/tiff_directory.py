"""The directories (IFDs) of a TIFF or BigTIFF, of an EXIF block and of a JPEG's MPF segment.

Every offset and count is checked against the file's length before it is used, values are read only
when asked for, and the chain of directories cannot lead in a circle.
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgelung.tiles.errors import Status, TileError


class Data(Protocol):
    """The bytes of a file: read as a whole, mapped, or read where they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


MAX_DIRECTORIES = 256  # enough to say how many levels a slide has
MAX_ENTRIES = 2**12  # of one directory
MAX_ALL_ENTRIES = 2**15  # of all directories that are kept
MAX_VALUES = 2**12  # of one entry
MAX_SEGMENTS = 2**19  # strips or tiles; more than tiles of 16×16 px in MAX_PIXELS
MAX_TEXT = 4 * 2**20 + 1  # bytes of one text that are read

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}


class Directory:
    """One directory: tag → its values, and where the next directory begins (0 for none)."""

    def __init__(self, data: Data, offset: int, needs_next: bool = True) -> None:
        self.data = data
        self.order = "<" if data[:1] == b"I" else ">"
        self.big = data[2:4] in (b"+\0", b"\0+")
        self.next = 0
        self._entries: dict[int, tuple[int, int, int]] = {}  # tag → type, count, offset of value
        count_code, entry_code, inline = ("Q", "HHQ", 8) if self.big else ("H", "HHI", 4)
        count_size, entry_size = (8, 20) if self.big else (2, 12)
        if offset < 8 or offset + count_size > len(data):
            raise TileError(Status.TRUNCATED, "a TIFF directory lies beyond the end of the file")
        (count,) = self._unpack(count_code, offset)
        start = offset + count_size
        end = start + count * entry_size
        if end + (inline if needs_next else 0) > len(data):
            raise TileError(Status.TRUNCATED, "a TIFF directory ends beyond the end of the file")
        if count > MAX_ENTRIES:
            raise TileError(
                Status.TOO_LARGE, f"a TIFF directory of {count} entries; at most {MAX_ENTRIES}"
            )
        for at in range(start, end, entry_size):
            tag, kind, values = self._unpack(entry_code, at)
            value_at = at + entry_size - inline
            if _SIZES.get(kind, 1) * values > inline:
                (value_at,) = self._unpack("Q" if self.big else "I", value_at)
            self._entries.setdefault(tag, (kind, values, value_at))
        if end + inline <= len(data):
            (self.next,) = self._unpack("Q" if self.big else "I", end)

    def _unpack(self, code: str, offset: int) -> tuple[int, ...]:
        size = struct.calcsize("=" + code)
        return struct.unpack(self.order + code, self.data[offset : offset + size])

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def count(self, tag: int) -> int:
        """Number of values of `tag`; 0 where it is missing."""
        return self._entries.get(tag, (0, 0, 0))[1]

    def raw(self, tag: int, most: int | None = None) -> bytes:
        """The bytes of the values of `tag`, the first `most`; empty where it is missing."""
        kind, count, at = self._entries.get(tag, (1, 0, 0))
        size = _SIZES.get(kind, 1) * count
        if at + size > len(self.data):
            raise TileError(
                Status.TRUNCATED, f"the values of TIFF tag {tag} lie beyond the file's end"
            )
        return self.data[at : at + (size if most is None else min(size, most))]

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of an integer tag; TileError `corrupt` where it holds another type."""
        if tag not in self._entries:
            return default
        code, count = self._integer_code(tag, MAX_VALUES)
        return struct.unpack(f"{self.order}{count}{code}", self.raw(tag))

    def array(self, tag: int, most: int = MAX_SEGMENTS) -> npt.NDArray[np.uint64]:
        """As `integers`, for up to `most` values: uint64 (N,); empty where it is missing."""
        if tag not in self._entries:
            return np.empty(0, np.uint64)
        code, count = self._integer_code(tag, most)
        size = struct.calcsize("=" + code)
        values = np.frombuffer(self.raw(tag), f"{self.order}u{size}", count)
        return values.astype(np.uint64)

    def _integer_code(self, tag: int, most: int) -> tuple[str, int]:
        """The struct code and the number of the values of an integer tag; raises TileError."""
        kind, count, _ = self._entries[tag]
        if kind not in _INTEGERS or not count:
            raise TileError(Status.CORRUPT, f"TIFF tag {tag} holds {count} values of type {kind}")
        _check_number(tag, count, most)
        return _INTEGERS[kind], count

    def integer(self, tag: int, default: int) -> int:
        """The first value of an integer tag."""
        return self.integers(tag, (default,))[0]

    def numbers(self, tag: int) -> tuple[float, ...]:
        """The values of an integer, rational or floating-point tag; empty for any other type."""
        kind, count, _ = self._entries.get(tag, (0, 0, 0))
        _check_number(tag, count, MAX_VALUES)
        if kind in (5, 10):
            code = f"{self.order}{2 * count}{'iI'[kind == 5]}"
            parts = struct.unpack(code, self.raw(tag))
            return tuple(a / b if b else 0.0 for a, b in zip(parts[::2], parts[1::2], strict=True))
        codes = _INTEGERS | {6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
        if kind not in codes:
            return ()
        values = struct.unpack(f"{self.order}{count}{codes[kind]}", self.raw(tag))
        return tuple(map(float, values))

    def text(self, tag: int) -> str:
        """The first MAX_TEXT bytes of a text up to its NUL; damaged UTF-8 is replaced."""
        return bytes(self.raw(tag, MAX_TEXT)).split(b"\0", 1)[0].decode("utf-8", "replace")


def _check_number(tag: int, count: int, most: int) -> None:
    if count > most:
        raise TileError(Status.TOO_LARGE, f"TIFF tag {tag} holds {count} values; at most {most}")


def first_directory(data: Data, needs_next: bool = True) -> Directory:
    """The first directory of a TIFF, BigTIFF or EXIF block; raises TileError.

    `needs_next`: whether it must end with the offset of the next one, which some EXIF blocks lack.
    """
    if data[:4] not in TIFF_MARKS:
        raise TileError(Status.CORRUPT, "the TIFF header cannot be read")
    big = data[2:4] in (b"+\0", b"\0+")
    if len(data) < (16 if big else 8):
        raise TileError(Status.TRUNCATED, "the TIFF ends within its header")
    order = "<" if data[:1] == b"I" else ">"
    if big and struct.unpack(order + "HH", data[4:8]) != (8, 0):
        raise TileError(Status.CORRUPT, "the BigTIFF header cannot be read")
    (offset,) = struct.unpack(order + ("Q" if big else "I"), data[8:16] if big else data[4:8])
    return Directory(data, offset, needs_next)


def directories(data: Data) -> list[Directory]:
    """The chain of main directories, at most MAX_DIRECTORIES; raises TileError."""
    return _bounded(_chain(data, first_directory(data)))


def sub_directories(pages: Iterable[Directory], tag: int) -> list[Directory]:
    """The directories that `tag` of the pages refers to, each once, at most MAX_DIRECTORIES.

    Raises TileError.
    """
    return _bounded(_children(pages, tag))


def _children(pages: Iterable[Directory], tag: int) -> Iterator[Directory]:
    seen = {0}
    for page in pages:
        for at in page.integers(tag):
            if at not in seen:
                seen.add(at)
                yield Directory(page.data, at)


def _bounded(found: Iterable[Directory]) -> list[Directory]:
    kept: list[Directory] = []
    entries = 0
    for directory in islice(found, MAX_DIRECTORIES):
        kept.append(directory)
        entries += len(directory)
        if entries > MAX_ALL_ENTRIES:
            reason = f"TIFF directories of more than {MAX_ALL_ENTRIES} entries"
            raise TileError(Status.TOO_LARGE, reason)
    return kept


def _chain(data: Data, directory: Directory) -> Iterator[Directory]:
    seen: set[int] = set()
    yield directory
    while directory.next and len(seen) < MAX_DIRECTORIES:
        if directory.next in seen:
            raise TileError(Status.CORRUPT, "the TIFF directories lead in a circle")
        seen.add(directory.next)
        directory = Directory(data, directory.next)
        yield directory
