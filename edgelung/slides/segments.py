"""The tiles or strips that a level of a TIFF is stored in: file → uint8 RGB, one at a time."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgelung.slides.base import EIGHTHS
from edgelung.slides.file_bytes import FileBytes
from edgelung.slides.overview import WHITE
from edgelung.tiles.budget import DECODING
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.jpeg_segments import SegmentDecoder
from edgelung.tiles.resize import Tile
from edgelung.tiles.tiff import read_segment
from edgelung.tiles.tiff_codecs import decoding_memory
from edgelung.tiles.tiff_layout import Layout

HEADER = 8  # bytes of a file before which no data can begin
EXCESS = 2**16  # bytes that a segment may be longer than four times its pixels


class LevelSegments:
    """The segments of one level; for several threads.

    Attributes:
        layout: what the TIFF says of the level.
        width, height: of a segment, pixels.
        across, down: segments in a row and in a column.
        eighths: the scales M/8 at which a segment can be decoded.
    """

    def __init__(
        self, file: FileBytes, layout: Layout, contested: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """`contested`: as `find_contested` returns it for this level; None: no segment is."""
        self.layout = layout
        self._contested = contested
        self.width, self.height = layout.segment_width, layout.segment_height
        self.across, self.down = layout.across, -(-layout.height // layout.segment_height)
        self._file = file
        self._most = _most_bytes(layout)
        self._decoder: SegmentDecoder | None = None
        if layout.kind.compression == "JPEG" and layout.tiled:
            transform = layout.kind.colour == "YCbCr"
            self._decoder = SegmentDecoder(layout.tables, transform, self.width, self.height)
        scales = self._decoder is not None and self.width % EIGHTHS == self.height % EIGHTHS == 0
        self.eighths: Sequence[int] = range(1, EIGHTHS + 1) if scales else (EIGHTHS,)

    def __len__(self) -> int:
        return self.across * self.down

    def read(self, number: int, eighths: int = EIGHTHS) -> Tile:
        """RGB (H, W, 3) of a segment at `eighths` / 8; white where nothing is stored (0 bytes).

        The last strip may have fewer rows; a tile never has.

        Raises:
            TileError: it is damaged or lies beyond the end of the file.
        """
        if not self.layout.separate:
            return self._read_part(number, eighths)
        planes = [self._read_part(number + plane * len(self), eighths) for plane in range(3)]
        return np.dstack([plane[..., 0] for plane in planes])

    def fill(self, part: Tile, numbers: range, eighths: int) -> list[int]:
        """Decode neighbours side by side into a white part. Returns the places of damaged ones."""
        damaged, wide = [], self.width * eighths // EIGHTHS
        for place, number in enumerate(numbers):
            if not self.is_blank(number):
                try:
                    pixels = self.read(number, eighths)
                except TileError:
                    damaged.append(place)
                else:
                    part[: len(pixels), place * wide : (place + 1) * wide] = pixels
        return damaged

    def is_blank(self, number: int) -> bool:
        """True if nothing is stored for a segment: it is white."""
        planes = 3 if self.layout.separate else 1
        return not self.layout.counts[number :: len(self)][:planes].any()

    def span(self, numbers: npt.NDArray[np.intp]) -> tuple[int, int]:
        """Where the bytes of these segments begin and end in the file."""
        offsets, counts = self.layout.offsets[numbers], self.layout.counts[numbers]
        stored = counts > 0
        if not stored.any():
            return 0, 0
        return int(offsets[stored].min()), int((offsets + counts)[stored].max())

    def _read_part(self, place: int, eighths: int) -> Tile:
        """One tile or strip, (H, W, 3), or (H, W, 1) of one plane."""
        count = int(self.layout.counts[place])
        rows = min(self.height, self.layout.height - place % len(self) // self.across * self.height)
        if not count:
            high, wide = self.height if self.layout.tiled else rows, self.width
            shape = (high * eighths // EIGHTHS, wide * eighths // EIGHTHS, 3)
            return np.full(shape, WHITE, np.uint8)
        if self._contested is not None and self._contested[place]:
            raise TileError(Status.CORRUPT, "its data overlaps that of another tile in the file")
        if count > self._most:
            reason = f"{count} bytes of a TIFF segment of {self.width}×{self.height} pixels"
            raise TileError(Status.CORRUPT, reason)
        data = self._file.read(int(self.layout.offsets[place]), count)
        if self._decoder is not None:
            pixels = self._decoder.decode(data, eighths)
            channels = 1 if self.layout.separate else 3
            if pixels.shape[2:] != ((channels,) if channels == 3 else ()):
                raise TileError(Status.CORRUPT, "JPEG data with other colours than its TIFF says")
            return pixels if channels == 3 else pixels[..., None]
        with DECODING:
            DECODING.reserve(self._memory(count))
            part = read_segment(data, self.layout, 0 if self.layout.tiled else rows)
        return part[: self.height if self.layout.tiled else rows].astype(np.uint8, copy=False)

    def _memory(self, count: int) -> int:
        """Bytes that decoding a segment of `count` bytes needs at most."""
        samples = self.width * self.height * (1 if self.layout.separate else self.layout.samples)
        return samples + decoding_memory(self.layout.kind.compression, samples, 1, count)


def find_contested(layouts: Sequence[Layout], length: int) -> list[npt.NDArray[np.bool_]]:
    """For each level, which segments share only a part of their bytes with another one.

    One of the two would show wrong pixels, and nothing says which. Segments of the very same bytes
    are allowed: programs store equal tiles once. JPEG data that begins at a wrong place cannot be
    decoded, so there only the same place with two lengths counts. What a file of `length` bytes
    cannot hold, or no segment can be, costs no other segment.
    """
    begin = np.concatenate([one.offsets for one in layouts]).astype(np.int64)
    end = begin + np.concatenate([one.counts for one in layouts]).astype(np.int64)
    most = np.concatenate([np.full(len(one.offsets), _most_bytes(one)) for one in layouts])
    is_jpeg = np.concatenate(
        [np.full(len(one.offsets), one.kind.compression == "JPEG") for one in layouts]
    )
    contested = np.zeros(len(begin), bool)
    order = np.flatnonzero((end > begin) & (end <= length) & (end - begin <= most))
    order = order[np.lexsort((end[order], begin[order]))]
    first, last = begin[order], end[order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(first) != 0) | (np.diff(last) != 0)
    group = np.cumsum(is_new) - 1
    first, last = first[is_new], last[is_new]
    begins_twice, overlaps = np.zeros(len(first), bool), first < HEADER
    begins_twice[1:] |= first[1:] == first[:-1]
    begins_twice[:-1] |= first[1:] == first[:-1]
    overlaps[1:] |= first[1:] < np.maximum.accumulate(last)[:-1]
    overlaps[:-1] |= last[:-1] > first[1:]
    contested[order] = np.where(is_jpeg[order], begins_twice[group], overlaps[group])
    ends = np.cumsum([len(one.offsets) for one in layouts])
    return np.split(contested, ends[:-1])


def _most_bytes(layout: Layout) -> int:
    """How many bytes a segment may have; more are never read."""
    return 4 * layout.samples * layout.segment_width * layout.segment_height + EXCESS
