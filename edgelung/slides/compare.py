"""Whether OpenSlide reads the same pixels: a few tiles of each level, when a slide is opened.

The two readers share nothing but libjpeg's algorithms. A wrong colour transform, a wrong order of
levels or tiles laid out in another way show here before they cost a slide its predictions.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from edgelung.core.errors import EdgelungError
from edgelung.slides.direct import DirectSlide
from edgelung.slides.libraries import find_openslide
from edgelung.slides.openslide_reader import SharedHandle
from edgelung.slides.segments import LevelSegments
from edgelung.tiles.errors import TileError
from edgelung.tiles.resize import Tile

TILES = 3  # of level 0; one of each other level
TRIES = 12  # tiles of a level that are looked at for some that both readers can read
LOWER_TRIES = 3  # OpenSlide makes parts of a lower level from many tiles of level 0
MOST_SIDE = 1024  # pixels of a tile that are compared
OPAQUE = 255
ROUNDING = 2  # levels of grey that interpolation may add

SAME, DIFFERENT = "compared with OpenSlide", "different"


def compare(slide: DirectSlide) -> str:
    """SAME, DIFFERENT, or the reason why the slide was not compared."""
    if find_openslide() is None:
        return "not compared: OpenSlide is not installed"
    try:
        handle = SharedHandle(slide.path)
    except EdgelungError:
        return "not compared: OpenSlide does not open it"
    try:
        sizes = list(handle.handle.level_dimensions)
        if sizes[0] != (slide.levels[0].width, slide.levels[0].height):
            return "not compared: OpenSlide sees another size"
        verdicts: list[bool] = []
        for number, segments in enumerate(slide.segments):
            size = slide.levels[number].width, slide.levels[number].height
            if size in sizes:
                factor = slide.levels[number].downsample
                verdicts += _compare_level(segments, handle, sizes.index(size), factor)
                if not all(verdicts):
                    return DIFFERENT
        return SAME if verdicts else "not compared: no tile can be read by both"
    finally:
        handle.close()


def _compare_level(
    segments: LevelSegments, handle: SharedHandle, level: int, factor: float
) -> list[bool]:
    """For each of a few tiles whether the readers agree; damaged and empty ones say nothing."""
    verdicts: list[bool] = []
    for number in islice(telling_tiles(segments), TRIES if level == 0 else LOWER_TRIES):
        row, column = divmod(number, segments.across)
        x, y = column * segments.width, row * segments.height
        width = min(segments.width, segments.layout.width - x, MOST_SIDE)
        height = min(segments.height, segments.layout.height - y, MOST_SIDE)
        try:
            ours = segments.read(number)[:height, :width]
            corner = round(x * factor), round(y * factor)
            theirs = handle.read_rgba(*corner, level, width, height)
        except TileError:
            continue
        # Where level 0 holds nothing, OpenSlide shows nothing of lower levels either.
        if (theirs[..., 3] < OPAQUE).any():
            continue
        theirs = theirs[..., :3]
        same = np.array_equal(ours, theirs) if level == 0 else is_shifted(ours, theirs)
        verdicts.append(same)
        if not same or len(verdicts) == (TILES if level == 0 else 1):
            break
    return verdicts


def telling_tiles(segments: LevelSegments) -> Iterator[int]:
    """Numbers of tiles spread over the level, of those with the most bytes: not of plain glass."""
    counts = segments.layout.counts[: len(segments)]
    largest = np.argsort(-counts, kind="stable")[: max(TRIES, len(counts) // 10)]
    places = np.linspace(0, len(largest) - 1, min(TRIES, len(largest))).astype(int)
    order = sorted(range(len(places)), key=lambda at: (at % TILES, at))
    for at in order:
        number = int(largest[places[at]])
        if counts[number]:
            yield number


def is_shifted(ours: Tile, theirs: Tile) -> bool:
    """True if `theirs` can be `ours` moved by less than a pixel, in any direction.

    OpenSlide is asked for a corner in pixels of level 0; where a level's factor is no whole number
    it interpolates between pixels. So each of its pixels lies between the least and the largest of
    the 3×3 pixels around it. The outermost pixels, whose neighbours are in other tiles, are left
    out.
    """
    if min(ours.shape[:2]) < 3:
        return True
    high, wide = ours.shape[0] - 2, ours.shape[1] - 2
    around = [ours[dy : dy + high, dx : dx + wide] for dy in range(3) for dx in range(3)]
    low = np.minimum.reduce(around).astype(np.int16) - ROUNDING
    top = np.maximum.reduce(around).astype(np.int16) + ROUNDING
    inner = theirs[1:-1, 1:-1]
    return bool(((inner >= low) & (inner <= top)).all())
