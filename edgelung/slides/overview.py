"""A small picture of a whole slide, put together in flat memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.slides.base import EIGHTHS, Level, Overview
from edgelung.tiles.resize import Tile

WHITE = 255
COARSEST = 16
SHRINK_ROWS = 512  # that `shrink` copies at once


@dataclass(frozen=True)
class Reduction:
    """How a level becomes the picture.

    Attributes:
        level: its index.
        eighths: it is decoded at this scale.
        factor: squares of so many decoded pixels a side become one by their mean.
        width, height: of the decoded level.
        downsample: pixels of level 0 per pixel of the picture.
    """

    level: int
    eighths: int
    factor: int
    width: int
    height: int
    downsample: float


def plan(levels: Sequence[Level], eighths: Sequence[int], most_pixels: int) -> Reduction:
    """Choose the lowest level with at least half of `most_pixels`, and the smallest scale of it.

    Where only the full resolution has so many, the next level is taken if it has at least a
    sixteenth: a picture a quarter as wide is enough to find tissue, and takes far less time. Where
    no scale makes at least half of `most_pixels`, the one that makes the most is taken.
    """
    enough = [i for i, one in enumerate(levels) if 2 * one.width * one.height >= most_pixels]
    number = enough[-1] if enough else 0
    if number == 0 and len(levels) > 1:
        below = levels[1]
        number = int(COARSEST * below.width * below.height >= most_pixels)
    level = levels[number]
    best: tuple[int, Reduction] | None = None
    for scale in sorted(eighths):
        width = max(1, level.width * scale // EIGHTHS)
        height = max(1, level.height * scale // EIGHTHS)
        factor = max(1, math.isqrt(max(0, width * height - 1) // max(1, most_pixels)))
        while -(-width // factor) * -(-height // factor) > most_pixels:
            factor += 1
        pixels = -(-width // factor) * -(-height // factor)
        downsample = level.downsample * EIGHTHS / scale * factor
        if best is None or pixels > best[0]:
            best = pixels, Reduction(number, scale, factor, width, height, downsample)
        if 2 * pixels >= most_pixels:
            break
    assert best is not None, "a slide has a scale"
    return best[1]


class Picture:
    """The picture, put together from parts of the decoded level in flat memory."""

    def __init__(self, reduction: Reduction) -> None:
        factor = self._factor = reduction.factor
        self._size = reduction.width, reduction.height
        self._downsample = reduction.downsample
        self._unread: npt.NDArray[np.bool_] | None = None
        self._damaged = 0
        shape = -(-reduction.height // factor), -(-reduction.width // factor), 3
        self._pixels = np.full(shape, WHITE, np.uint8)
        # Rows of the picture that are not yet whole → how much their decoded pixels lack to white,
        # int64 (W, 3). So what is not added is white.
        self._sums: dict[int, npt.NDArray[np.int64]] = {}

    def add(self, x: int, y: int, part: Tile) -> None:
        """Add the decoded pixels (h, w, 3) from the corner (x, y) on; what hangs over is cut off.

        Each decoded pixel is added at most once; what is never added is white.
        """
        factor, (width, height) = self._factor, self._size
        part = part[: height - y, : width - x]
        if 0 in part.shape:
            return
        if factor == 1:
            self._pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
            return
        part = WHITE - part
        right = x + part.shape[1]
        first = x // factor
        starts = np.maximum(np.arange(first * factor, right, factor) - x, 0)
        for row in range(y // factor, -(-(y + len(part)) // factor)):
            lines = part[max(row * factor - y, 0) : (row + 1) * factor - y]
            sums = self._sums.get(row)
            if sums is None:
                sums = self._sums[row] = np.zeros((self._pixels.shape[1], 3), np.int64)
            columns = np.add.reduceat(lines.sum(0, dtype=np.int64), starts, axis=0)
            sums[first : first + len(starts)] += columns

    def finish(self, bottom: int) -> None:
        """All parts above the decoded row `bottom` have been added."""
        factor, (width, height) = self._factor, self._size
        done = [row for row in self._sums if min((row + 1) * factor, height) <= bottom]
        wide = np.minimum(factor, width - np.arange(0, width, factor))[:, None]
        for row in done:
            counts = wide * min(factor, height - row * factor)
            self._pixels[row] = WHITE - (self._sums.pop(row) + counts // 2) // counts

    def leave_out(self, x: int, y: int, wide: int, high: int) -> None:
        """A part of the decoded level cannot be read: it stays white, and is known as unread."""
        if self._unread is None:
            self._unread = np.zeros(self._pixels.shape[:2], bool)
        factor, self._damaged = self._factor, self._damaged + 1
        rows = slice(y // factor, -(-(y + high) // factor))
        self._unread[rows, x // factor : -(-(x + wide) // factor)] = True

    def overview(self) -> Overview:
        """The picture, when all of it is finished."""
        return Overview(self._pixels, self._downsample, self._damaged, self._unread)


def shrink(pixels: Tile, factor: int) -> Tile:
    """The mean of `factor` × `factor` pixels, band by band: Pillow copies what it reduces."""
    rows = max(SHRINK_ROWS // factor, 1) * factor
    parts = [
        np.asarray(Image.fromarray(pixels[top : top + rows]).reduce(factor))
        for top in range(0, len(pixels), rows)
    ]
    return np.concatenate(parts)
