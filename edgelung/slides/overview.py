"""A small picture of a whole slide, put together from bands of rows in flat memory."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.slides.base import EIGHTHS, Level
from edgelung.tiles.resize import Tile


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

    Where no scale makes at least half of `most_pixels`, the one that makes the most is taken.
    """
    enough = [i for i, one in enumerate(levels) if 2 * one.width * one.height >= most_pixels]
    number = enough[-1] if enough else 0
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


def reduce_bands(bands: Iterable[Tile], reduction: Reduction) -> Tile:
    """Put bands of rows (h, width, 3), from the top down, together to the picture (H, W, 3)."""
    factor = reduction.factor
    out = np.empty((-(-reduction.height // factor), -(-reduction.width // factor), 3), np.uint8)
    if factor == 1:
        top = 0
        for band in bands:
            out[top : top + len(band)] = band
            top += len(band)
        return out
    starts = np.arange(0, reduction.width, factor)
    columns = np.diff([*starts, reduction.width])[:, None]
    sums = np.zeros((reduction.width, 3), np.int64)  # of the rows of one row of the picture
    top = 0  # row of the decoded level
    for band in bands:
        bottom = top + len(band)
        for row in range(top // factor, -(-bottom // factor)):
            first, last = row * factor, min((row + 1) * factor, reduction.height)
            sums += band[max(first - top, 0) : last - top].sum(0, dtype=np.int64)
            if last <= bottom:
                totals = np.add.reduceat(sums, starts, axis=0)
                out[row] = _mean(totals, columns * (last - first))
                sums[:] = 0
        top = bottom
    return out


def _mean(sums: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Tile:
    """The mean, rounded to the nearest level."""
    means: Tile = ((sums + counts // 2) // counts).astype(np.uint8)
    return means
