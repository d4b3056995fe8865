"""The lines of a journal: each one ends in a checksum over the checksum before and its own bytes.

    <JSON> <tab> <checksum, 32 hexadecimal digits> <newline>

A changed, missing, added or moved line breaks the chain at that line. The checksum has no key: it
finds a bad disk and a careless edit. Whoever changes a line and computes all later checksums anew
is found only by comparing the last checksum with the one in a signed summary.
"""

import io
import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHECKSUM_BYTES = 16
MAX_LINE_BYTES = 1 << 28  # a batch has some kilobytes; bounds the memory that a damaged file takes
READ_BYTES = 1 << 20
_TAIL = 2 + 2 * CHECKSUM_BYTES  # tab, digits, newline


class Line(NamedTuple):
    """A whole line: its JSON, its checksum, and the position behind it."""

    content: bytes
    checksum: bytes
    end: int


def checksum(before: bytes, content: bytes) -> bytes:
    """The checksum of a line after the line with the checksum `before` (b"": the first line)."""
    return blake2b(content, digest_size=CHECKSUM_BYTES, key=before).digest()


def write_line(content: bytes, own: bytes) -> bytes:
    """The line of a file: JSON without a newline, and its checksum."""
    return b"%b\t%b\n" % (content, own.hex().encode())


def read_lines(handle: int, end: int | None = None) -> Iterator[Line]:
    """Yield the lines of a file from its start, up to the first that is cut off or damaged.

    The descriptor's position does not move. `end`: read no further.
    """
    before, position = b"", 0
    for text in _split(handle, end):
        content, tail = text[:-_TAIL], text[-_TAIL:]
        own = checksum(before, content)
        if tail != write_line(b"", own):
            return
        before, position = own, position + len(text)
        yield Line(content, own, position)


def count_lines(handle: int, start: int) -> int:
    """How many newlines there are behind `start`."""
    count = 0
    while data := os.pread(handle, READ_BYTES, start):
        count += data.count(b"\n")
        start += len(data)
    return count


def _split(handle: int, end: int | None) -> Iterator[bytes]:
    with io.BufferedReader(_FromStart(handle, end), READ_BYTES) as file:
        while text := file.readline(MAX_LINE_BYTES):
            yield text


class _FromStart(io.RawIOBase):
    """Reads a descriptor from its start without moving the position at which it is written."""

    def __init__(self, handle: int, end: int | None) -> None:
        self._handle, self._end, self._position = handle, end, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer)
        most = len(view) if self._end is None else min(len(view), self._end - self._position)
        data = os.pread(self._handle, most, self._position)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
