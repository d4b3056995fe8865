"""Whether the lower levels of a slide show what its full resolution shows.

A converter that was stopped leaves levels that are white in part, and a faulty one levels of
another slide. Tissue would be missed, or other tissue predicted, without a word.
"""

from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.slides.base import EIGHTHS, Grid
from edgelung.slides.compare import TRIES, telling_tiles
from edgelung.slides.direct import DirectSlide
from edgelung.tiles.errors import TileError
from edgelung.tiles.resize import Tile

SIDE = 16  # pixels of the lower level that are compared at a place
BLOCKS = 4  # a side, whose means are compared: a shift by a pixel does not matter
MOST_DIFFERENCE = 24.0  # levels of grey; copies sharpened by a scanner differ by less than 10
PLACES = 6
ENOUGH = 2  # places that differ: one alone may be an edge that is shifted


def contradicting_levels(slide: DirectSlide) -> list[int]:
    """The numbers of the levels that differ from level 0 at several of a few places.

    Places that cannot be read say nothing.
    """
    return [number for number in range(1, len(slide.levels)) if _differs(slide, number)]


def _differs(slide: DirectSlide, number: int) -> bool:
    segments, found, differing = slide.segments[0], 0, 0
    for tile in islice(telling_tiles(segments), TRIES):
        row, column = divmod(tile, segments.across)
        x, y = (
            (2 * at + 1) * size // 2
            for at, size in ((column, segments.width), (row, segments.height))
        )
        try:
            difference = _difference(slide, number, x, y)
        except TileError:
            continue
        found += 1
        differing += difference > MOST_DIFFERENCE
        if found == PLACES:
            break
    return differing >= min(ENOUGH, max(found, 1))


def _difference(slide: DirectSlide, number: int, x: int, y: int) -> float:
    """Mean difference of a level and level 0 around a place of level 0; raises TileError."""
    whole, level = slide.levels[0], slide.levels[number]
    side = min(SIDE, level.width, level.height)
    eighths = min(slide.eighths) if level.downsample >= EIGHTHS else EIGHTHS
    unit = EIGHTHS if eighths < EIGHTHS else 1
    side0 = max(unit, round(side * level.downsample) // unit * unit)
    side0 = min(side0, min(whole.width, whole.height) // unit * unit)
    if side < BLOCKS or side0 < BLOCKS * EIGHTHS // eighths:
        return 0.0  # too little to say anything
    x0, y0 = (
        min(max(0, at - side0 // 2), size - side0) // unit * unit
        for at, size in ((x, whole.width), (y, whole.height))
    )
    right = min(round(x0 / level.downsample), level.width - side)
    down = min(round(y0 / level.downsample), level.height - side)
    above = _means(slide, 0, eighths, side0, (x0, y0))
    below = _means(slide, number, EIGHTHS, side, (right, down))
    return float(np.abs(above - below).mean())


def _means(
    slide: DirectSlide, number: int, eighths: int, side: int, corner: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """The mean colours of BLOCKS × BLOCKS parts of a square."""
    cells = np.array([corner], np.int32)
    factor = slide.levels[number].downsample
    reader = slide.open_tiles(Grid(number, eighths, side, 1, factor, cells))
    try:
        pixels: Tile = reader.read(0)
    finally:
        reader.close()
    small = Image.fromarray(pixels).resize((BLOCKS, BLOCKS), Image.Resampling.BOX)
    return np.asarray(small, np.float64)
