"""Tiles drawn on a picture of the slide: the mean of all tiles that cover a pixel.

Neighbouring pixels that the same tiles cover have one value. It is computed once for each such
cell, then the cells are spread over the picture: the time hardly depends on the overlap.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.slide_tiles import SlideTiles

Cells = npt.NDArray[np.float64]  # (cell rows, cell columns)


@dataclass(frozen=True)
class Raster:
    """A picture of the slide from its upper left corner.

    Attributes:
        width, height: pixels.
        downsample: pixels of level 0 per pixel.
    """

    width: int
    height: int
    downsample: float

    @classmethod
    def of_slide(cls, width: int, height: int, downsample: float) -> "Raster":
        """The raster that covers a slide of `width` × `height` pixels of level 0."""
        return cls(math.ceil(width / downsample), math.ceil(height / downsample), downsample)

    def reduced(self, most: int) -> "Raster":
        """The same, with whole pixels joined until no side is longer than `most`."""
        factor = max(1, math.ceil(max(self.width, self.height) / most))
        width, height = (math.ceil(size / factor) for size in (self.width, self.height))
        return Raster(width, height, self.downsample * factor)


class _Axis:
    """Along one axis: which tiles cover which pixels.

    Attributes:
        first, end: for each cell, the range of columns (or rows) of tiles that cover it.
        cell: the cell of each pixel.
    """

    def __init__(self, pixels: int, downsample: float, tiles: SlideTiles, count: int) -> None:
        centre = (np.arange(pixels) + 0.5) * downsample
        first = np.floor((centre - tiles.side) / tiles.step).astype(np.int64) + 1
        end = np.floor(centre / tiles.step).astype(np.int64) + 1
        first, end = np.clip(first, 0, count), np.clip(end, 0, count)
        begins = np.ones(pixels, bool)
        begins[1:] = (np.diff(first) != 0) | (np.diff(end) != 0)
        self.cell = np.cumsum(begins) - 1
        self.first, self.end = first[begins], np.maximum(first, end)[begins]


class TileRaster:
    """The tiles of a slide on one raster."""

    def __init__(self, tiles: SlideTiles, raster: Raster) -> None:
        self.tiles, self.raster = tiles, raster
        if not len(tiles):
            return
        self._column = np.rint(tiles.x / tiles.step).astype(np.int64)
        self._row = np.rint(tiles.y / tiles.step).astype(np.int64)
        self._shape = int(self._row.max()) + 1, int(self._column.max()) + 1
        self._down = _Axis(raster.height, raster.downsample, tiles, self._shape[0])
        self._across = _Axis(raster.width, raster.downsample, tiles, self._shape[1])

    def mean(self, values: npt.NDArray[np.floating]) -> Cells:
        """Mean of the finite values (N,) of the tiles over each cell; NaN where there is none."""
        if not len(self.tiles):
            return np.full((1, 1), np.nan)
        finite = np.isfinite(values)
        total = self._sums(np.where(finite, values, 0.0))
        count = self._sums(finite.astype(np.float64))
        mean = np.full(total.shape, np.nan)
        np.divide(total, count, out=mean, where=count > 0.5)
        return mean

    def bands(self, cells: npt.NDArray[np.uint8], rows: int) -> Iterator[npt.NDArray[np.uint8]]:
        """The picture of one value per cell, in bands (rows, width); the last may be lower."""
        if not len(self.tiles):
            whole = np.zeros((self.raster.height, self.raster.width), np.uint8)
            yield from (whole[top : top + rows] for top in range(0, len(whole), rows))
            return
        for top in range(0, self.raster.height, rows):
            lines = self._down.cell[top : top + rows]
            first = int(lines[0])  # a band has few rows of cells
            yield cells[first : int(lines[-1]) + 1][:, self._across.cell][lines - first]

    def picture(self, cells: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture (height, width) of one value per cell."""
        return next(self.bands(cells, self.raster.height))

    def _sums(self, values: npt.NDArray[np.float64]) -> Cells:
        """Sum over the tiles that cover each cell, by a summed-area table."""
        table = np.zeros((self._shape[0] + 1, self._shape[1] + 1))
        np.add.at(table, (self._row + 1, self._column + 1), values)
        table = table.cumsum(axis=0).cumsum(axis=1)
        down, across = self._down, self._across
        below = table[down.end][:, across.end] - table[down.end][:, across.first]
        above = table[down.first][:, across.end] - table[down.first][:, across.first]
        sums: Cells = below - above
        return sums
