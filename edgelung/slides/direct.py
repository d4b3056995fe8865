"""Tiled TIFF read without a slide library: SVS, pyramidal TIFF, BigTIFF, OME-TIFF.

Each stored tile is read from the file once, in the file's order, and decoded once, although several
tiles of a grid share it. JPEG is decoded at M/8 of its size where the grid asks for that.
"""

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.slides.base import EIGHTHS, Grid, Level, Overview, StatedScale, check_scale
from edgelung.slides.file_bytes import FileBytes
from edgelung.slides.overview import WHITE, Picture, plan
from edgelung.slides.segments import LevelSegments, find_contested
from edgelung.slides.shared import MOST_BYTES, SharedSegments
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.resize import Tile
from edgelung.tiles.tiff_layout import Layout

PART_PIXELS = 2**20  # decoded pixels that an overview sums up at once


class DirectSlide:
    """A slide in a TIFF, as `base.Slide`.

    Attributes:
        segments: the tiles or strips of each level.
    """

    reader = "direct"
    offset = (0, 0)

    def __init__(
        self,
        file: FileBytes,
        layouts: Sequence[Layout],
        scale: StatedScale,
        kind: str,
        scene: str = "",
    ) -> None:
        """
        Args:
            file: open; closed with the slide.
            layouts: the levels, largest first.
        """
        self.path: Path = file.path
        self.scene, self.kind, self.scale = scene, kind, scale
        self.levels: Sequence[Level] = measure_levels([(one.width, one.height) for one in layouts])
        self.segments = [
            LevelSegments(file, layout, contested)
            for layout, contested in zip(layouts, find_contested(layouts, len(file)), strict=True)
        ]
        common = set.intersection(*(set(one.eighths) for one in self.segments))
        self.eighths: Sequence[int] = sorted(common)
        self._file = file

    def only_full_size(self) -> None:
        """Its JPEG data cannot be decoded at a smaller scale."""
        self.eighths = (EIGHTHS,)

    def leave_out(self, numbers: Collection[int]) -> None:
        """Go without these levels."""
        kept = [number for number in range(len(self.levels)) if number not in numbers]
        self.levels = [self.levels[number] for number in kept]
        self.segments = [self.segments[number] for number in kept]

    def overview(self, most_pixels: int) -> Overview:
        reduction = plan(self.levels, self.eighths, most_pixels)
        picture = Picture(reduction)
        segments, scale = self.segments[reduction.level], reduction.eighths
        wide, high = segments.width * scale // EIGHTHS, segments.height * scale // EIGHTHS
        at_once = max(1, PART_PIXELS // (wide * high))
        for row in range(segments.down):
            for column in range(0, segments.across, at_once):
                first = row * segments.across + column
                numbers = range(first, first + min(at_once, segments.across - column))
                if all(segments.is_blank(number) for number in numbers):
                    continue
                part = np.full((high, wide * len(numbers), 3), WHITE, np.uint8)
                for place in segments.fill(part, numbers, scale):
                    picture.leave_out((column + place) * wide, row * high, wide, high)
                picture.add(column * wide, row * high, part)
            picture.finish((row + 1) * high)
        return picture.overview()

    def open_tiles(self, grid: Grid) -> "DirectTiles":
        check_scale(grid, self.eighths)
        return DirectTiles(self._file, self.segments[grid.level], grid)

    def close(self) -> None:
        self._file.close()


class DirectTiles:
    """The tiles of a grid, as `base.TileReader`."""

    def __init__(
        self, file: FileBytes, segments: LevelSegments, grid: Grid, most_bytes: int = MOST_BYTES
    ) -> None:
        self._file, self._segments, self._grid = file, segments, grid
        self._side = grid.read_side
        self._scaled = (
            segments.width * grid.eighths // EIGHTHS,
            segments.height * grid.eighths // EIGHTHS,
        )
        uses = count_uses(grid, segments)
        self._used_rows = uses.reshape(segments.down, segments.across) > 0
        self._fetched = np.zeros(segments.down, bool)
        self._fetching = threading.Lock()
        self._shared = SharedSegments(self._decode, uses, segments.across, most_bytes)

    def read(self, index: int) -> Tile:
        grid, segments = self._grid, self._segments
        x, y = grid.corner(index)
        columns = range(x // segments.width, (x + grid.side - 1) // segments.width + 1)
        rows = range(y // segments.height, (y + grid.side - 1) // segments.height + 1)
        if columns[-1] >= segments.across or rows[-1] >= segments.down:
            raise TileError(Status.FAILED, "the tile hangs over the edge of its level")
        for row in rows:
            if not self._fetched[row]:
                self._fetch(row)
        numbers = [row * segments.across + column for row in rows for column in columns]
        try:
            pieces = self._shared.take(numbers)
        finally:
            self._shared.release(numbers)
        left, top = x * grid.eighths // EIGHTHS, y * grid.eighths // EIGHTHS
        return self._join(pieces, columns, rows, left, top)

    def close(self) -> None:
        self._shared.clear()

    def _decode(self, number: int) -> Tile:
        return self._segments.read(number, self._grid.eighths)

    def _fetch(self, row: int) -> None:
        """Let the system fetch a row of segments in the file's order: neighbours of the grid are
        read from two rows in turn, which is slow where the file lies on a network drive."""
        with self._fetching:
            if self._fetched[row]:
                return
            self._fetched[row] = True
        numbers = np.flatnonzero(self._used_rows[row]) + row * self._segments.across
        if len(numbers):
            self._file.will_need(*self._segments.span(numbers))

    def _join(self, pieces: list[Tile], columns: range, rows: range, left: int, top: int) -> Tile:
        """Cut the tile with its corner at (left, top), scaled pixels, out of its segments."""
        side, (wide, high) = self._side, self._scaled
        out = np.empty((side, side, 3), np.uint8)
        spans = [(column * wide - left, column) for column in columns]
        number = 0
        for row in rows:
            at = row * high - top
            first, last = max(at, 0), min(at + high, side)
            for start, _ in spans:
                begin, end = max(start, 0), min(start + wide, side)
                piece = pieces[number]
                out[first:last, begin:end] = piece[
                    first - at : last - at, begin - start : end - start
                ]
                number += 1
        return out


def measure_levels(sizes: Sequence[tuple[int, int]]) -> list[Level]:
    """Levels from their sizes, as OpenSlide does: the mean of both directions' factors."""
    width, height = sizes[0]
    return [Level(w, h, (width / w + height / h) / 2) for w, h in sizes]


def count_uses(grid: Grid, segments: LevelSegments) -> npt.NDArray[np.int32]:
    """How many tiles of the grid touch each segment, int32 (segments,)."""
    corners = grid.cells.astype(np.int64) * grid.step
    first = corners // (segments.width, segments.height)
    last = (corners + grid.side - 1) // (segments.width, segments.height)
    last = np.minimum(last, (segments.across - 1, segments.down - 1))
    uses = np.zeros(len(segments), np.int64)
    most = (last - first).max(0, initial=0)
    for down in range(int(most[1]) + 1):
        for right in range(int(most[0]) + 1):
            at = first + np.array([right, down])
            touched = at[(at <= last).all(1)]
            uses += np.bincount(
                touched[:, 1] * segments.across + touched[:, 0], minlength=len(uses)
            )
    return uses.astype(np.int32)
