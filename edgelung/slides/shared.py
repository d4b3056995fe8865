"""Decoded segments that several tiles of a grid share, each decoded once.

A grid of 224 px over JPEG tiles of 256 px touches each of them about five times.
"""

import threading
from array import array
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.resize import Tile

MOST_BYTES = 64 * 2**20  # a row of JPEG tiles of 256 px across 87,000 px at full size
RECENT = 16  # segments that the tiles being read and their neighbours need


class _Entry:
    """A segment: a placeholder while `ready` is locked, then its pixels or its error."""

    __slots__ = ("error", "pixels", "ready", "size")

    def __init__(self) -> None:
        self.size = 0  # bytes, once they are counted
        self.pixels: Tile | None = None
        self.error: TileError | None = None
        self.ready = threading.Lock()
        self.ready.acquire()


class SharedSegments:
    """Keeps a decoded segment until all tiles that touch it have been read; for several threads."""

    def __init__(
        self,
        decode: Callable[[int], Tile],
        uses: npt.NDArray[np.int32],
        across: int,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """
        Args:
            decode: number of a segment → its pixels; raises TileError.
            uses: how many tiles will take each segment, int32 (segments,).
            across: segments in a row.
            most_bytes: of decoded pixels that are kept; what had to be dropped is decoded again.
        """
        self._decode = decode
        self._left = array("i", uses.astype(np.intc).tobytes())
        self._across = across
        self._most = most_bytes
        self._lock = threading.Lock()
        self._kept: dict[int, _Entry] = {}
        self._bytes = 0

    def take(self, numbers: Sequence[int]) -> list[Tile]:
        """The pixels of the segments of one tile, in order; call `release` after it in any case.

        Raises:
            TileError: one of them is damaged.
        """
        entries, missing = [], []
        with self._lock:
            for number in numbers:
                entry = self._kept.get(number)
                if entry is None:
                    entry = self._kept[number] = _Entry()
                    missing.append((number, entry))
                entries.append(entry)
        if missing:
            self._fill(missing, numbers[0] // self._across * self._across)
        pieces = []
        for entry in entries:
            if entry.pixels is None and entry.error is None:
                with entry.ready:  # another thread decodes it
                    pass
            if entry.pixels is None:
                error = entry.error
                assert error is not None, "an entry without pixels has an error"
                raise TileError(error.status, error.reason)
            pieces.append(entry.pixels)
        return pieces

    def release(self, numbers: Sequence[int]) -> None:
        """Count one use of each segment; those that no other tile needs are freed."""
        with self._lock:
            for number in numbers:
                self._left[number] -= 1
                if self._left[number] <= 0:
                    self._drop(number)

    def clear(self) -> None:
        """Free all segments."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _fill(self, missing: list[tuple[int, _Entry]], first: int) -> None:
        """Decode what this thread has placeholders for. It waits for no other thread meanwhile."""
        for number, entry in missing:
            try:
                entry.pixels = self._decode(number)
            except TileError as error:
                entry.error = error
            except BaseException:
                self._abandon(missing)
                raise
            entry.ready.release()
            if entry.pixels is not None:
                self._count(number, entry, entry.pixels.nbytes, first)

    def _abandon(self, missing: list[tuple[int, _Entry]]) -> None:
        """An interrupt, or a bug: whoever waits for these segments must not wait forever."""
        for number, entry in missing:
            if entry.pixels is None and entry.error is None:
                entry.error = TileError(Status.FAILED, "reading it was interrupted")
                entry.ready.release()
                with self._lock:
                    self._drop(number)

    def _count(self, number: int, entry: _Entry, size: int, first: int) -> None:
        """Add to the bytes that are kept, and drop segments until they are few enough.

        Tiles are read row by row. The segments before `first`, with which the row of this tile
        begins, are no longer needed; of the others, the one decoded last is the one needed last,
        its neighbours apart.
        """
        with self._lock:
            if self._kept.get(number) is not entry:
                return
            entry.size = size
            self._bytes += size
            while self._bytes > self._most and self._kept:
                oldest = next(iter(self._kept))
                newest = next(islice(reversed(self._kept), RECENT, None), oldest)
                self._drop(oldest if oldest < first else newest)

    def _drop(self, number: int) -> None:
        """Forget a segment; needs the lock. Tiles that have taken it keep their pixels."""
        entry = self._kept.pop(number, None)
        if entry is not None:
            self._bytes -= entry.size
