"""A Deep Zoom pyramid of a slide: the whole picture as JPEG tiles, for a browser.

The slide is read once, from the top, in bands as high as a tile. Each level is made from the one
above it: a band waits until the next one completes a row of tiles. Memory depends on the width of
the slide, not on its height.

    zoom.dzi            the description, for other viewers
    zoom_files/17/3_2.jpeg   level, column, row; level 0 is one pixel
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from edgelung.core.files import atomic_folder, atomic_write
from edgelung.slides.base import EIGHTHS, Grid, Slide
from edgelung.tiles.errors import TileError
from edgelung.tiles.resize import Tile

DESCRIPTION, FOLDER = "zoom.dzi", "zoom_files"
SIDE = 256  # pixels of a tile
QUALITY = 80
WHITE = 255


@dataclass(frozen=True)
class Pyramid:
    """What was written.

    Attributes:
        width, height: pixels of the largest level.
        levels: number of levels.
        damaged: parts of the slide that could not be read; they are white.
    """

    width: int
    height: int
    levels: int
    damaged: int


def write_zoom(
    folder: Path, slide: Slide, advance: Callable[[int], None] = lambda rows: None
) -> Pyramid:
    """Write zoom_files/ and zoom.dzi into a folder.

    Args:
        folder: the folder of the slide's results; zoom_files/ must not be there.
        slide: an open slide.
        advance: called with the number of rows of pixels that were read.
    """
    width, height = slide.levels[0].width, slide.levels[0].height
    bands = SlideBands(slide)

    def counted() -> Iterator[Tile]:
        for band in bands:
            advance(len(band))
            yield band

    with atomic_folder(folder / FOLDER) as inside:
        levels = write_pyramid(inside, width, height, counted())
    with atomic_write(folder / DESCRIPTION, "w", encoding="utf-8") as file:
        file.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" '
            f'Format="jpeg" Overlap="0" TileSize="{SIDE}">'
            f'<Size Width="{width}" Height="{height}"/></Image>\n'
        )
    return Pyramid(width, height, levels, bands.damaged)


class SlideBands:
    """The rows of a slide's level 0 from the top, SIDE at a time; the last band may be lower.

    Attributes:
        damaged: squares that could not be read so far; they are white.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._width, self._height = slide.levels[0].width, slide.levels[0].height
        self._side = min(SIDE, self._width, self._height)
        self.damaged = 0

    def __iter__(self) -> Iterator[Tile]:
        """Yield uint8 RGB (rows, width, 3). The array is used again for the next band."""
        # No square may hang over the edge: the last of a row or column is moved back.
        side = self._side
        lefts = _begins(0, self._width, side)
        bands = [
            _begins(top, min(top + SIDE, self._height), side)
            for top in range(0, self._height, SIDE)
        ]
        corners = [(left, top) for tops in bands for top in tops for left in lefts]
        cells = np.array(corners, np.int32)
        reader = self._slide.open_tiles(Grid(0, EIGHTHS, side, 1, 1.0, cells))
        band = np.empty((SIDE, self._width, 3), np.uint8)
        index = 0
        try:
            for number, tops in enumerate(bands):
                first = number * SIDE
                for top in tops:
                    hidden = max(0, first - top)  # rows of the band before
                    for left in lefts:
                        rows = slice(top + hidden - first, top + side - first)
                        part = band[rows, left : left + side]
                        try:
                            part[:] = reader.read(index)[hidden:]
                        except TileError:
                            part[:] = WHITE
                            self.damaged += 1
                        index += 1
                yield band[: min(SIDE, self._height - first)]
        finally:
            reader.close()


def write_pyramid(folder: Path, width: int, height: int, bands: Iterable[Tile]) -> int:
    """Write the tiles of all levels into a folder; returns the number of levels.

    Args:
        folder: an empty folder.
        width, height: pixels of the largest level.
        bands: uint8 RGB (rows, width, 3) from the top; all but the last have SIDE rows.
    """
    top_level = (max(width, height) - 1).bit_length()
    levels = [_Level(folder / str(number)) for number in range(top_level + 1)]
    for number, level in enumerate(levels):
        level.folder.mkdir()
        level.below = levels[number - 1] if number else None
    for band in bands:
        levels[-1].add(band)
    levels[-1].finish()
    return len(levels)


class _Level:
    """One level: rows wait until they make a row of tiles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.below: _Level | None = None
        self._waiting: list[Tile] = []
        self._row = 0

    def add(self, rows: Tile) -> None:
        """Take the next rows: SIDE, SIDE / 2, or fewer at the end of the slide."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) == SIDE:
            self._write()

    def finish(self) -> None:
        """Write what waits, then finish the level below."""
        if self._waiting:
            self._write()
        if self.below is not None:
            self.below.finish()

    def _write(self) -> None:
        band = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting = []
        rows, width, _ = band.shape
        half = np.empty((-(-rows // 2), -(-width // 2), 3), np.uint8)
        for column, left in enumerate(range(0, width, SIDE)):
            tile = np.ascontiguousarray(band[:, left : left + SIDE])
            data = simplejpeg.encode_jpeg(tile, quality=QUALITY, colorsubsampling="420")
            (self.folder / f"{column}_{self._row}.jpeg").write_bytes(data)
            # The mean of 2 × 2 pixels; at odd edges, of those that are there.
            half[:, left // 2 : (left + SIDE) // 2] = Image.fromarray(tile).reduce(2)
        self._row += 1
        if self.below is not None:
            self.below.add(half)


def _begins(first: int, end: int, side: int) -> list[int]:
    """Where squares begin that cover first…end; the last one ends there and may begin before."""
    begins = list(range(first, end, side))
    begins[-1] = max(0, end - side)
    return begins
