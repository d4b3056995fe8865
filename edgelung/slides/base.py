"""What every slide looks like to the rest, whichever library reads it.

Positions are pixels from the upper left corner of the slide's bounds: the part of the file that was
scanned. Level 0 is the full resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgelung.tiles.jpeg_segments import EIGHTHS as EIGHTHS
from edgelung.tiles.resize import Tile


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width, height: pixels of this level, within the bounds.
        downsample: pixels of level 0 per pixel of this level, in each direction.
    """

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class StatedScale:
    """What the file says about its physical size; None where it says nothing.

    Attributes:
        mpp_x, mpp_y: micrometres per pixel of level 0.
        objective: magnification of the scanner's objective, such as 20.
        source: where the file says the micrometres, such as 'aperio.MPP'; '' if it does not.
    """

    mpp_x: float | None = None
    mpp_y: float | None = None
    objective: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Overview:
    """A small picture of the whole slide.

    Attributes:
        pixels: uint8 RGB (H, W, 3).
        downsample: pixels of level 0 per pixel of the picture.
        damaged: how many parts could not be decoded; they are white.
        unread: where these parts are, (H, W); None if there are none.
    """

    pixels: Tile
    downsample: float
    damaged: int = 0
    unread: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Grid:
    """Squares on one level of a slide, from its upper left corner; none hangs over the edge.

    Attributes:
        level: which level is read.
        eighths: the level is decoded at `eighths` / 8 of its size; 8: at full size. With less,
            `side` and `step` are multiples of 8, so that each tile begins on a whole pixel.
        side: side of a tile, pixels of the level.
        step: from the corner of a tile to that of its neighbour, pixels of the level.
        downsample: of the level.
        cells: the tiles to read as column and row, int32 (N, 2), row by row.
    """

    level: int
    eighths: int
    side: int
    step: int
    downsample: float
    cells: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.cells)

    def corner(self, index: int) -> tuple[int, int]:
        """Upper left corner of a tile, pixels of the level."""
        column, row = self.cells[index]
        return int(column) * self.step, int(row) * self.step

    @property
    def corners0(self) -> npt.NDArray[np.int64]:
        """Upper left corners (N, 2) as x, y; pixels of level 0."""
        corners: npt.NDArray[np.int64] = np.rint(self.cells * (self.step * self.downsample)).astype(
            np.int64
        )
        return corners

    @property
    def side0(self) -> int:
        """Side of a tile, pixels of level 0."""
        return round(self.side * self.downsample)

    @property
    def overlap(self) -> float:
        """Share of a tile's side that its neighbour also covers; a step is whole pixels."""
        return 1 - self.step / self.side

    @property
    def read_side(self) -> int:
        """Side of the pixels that `TileReader.read` returns."""
        return self.side * self.eighths // EIGHTHS


def check_scale(grid: Grid, eighths: Sequence[int]) -> None:
    """Raise ValueError for a grid at a scale that is not among `eighths`, those of its slide."""
    if grid.eighths not in eighths:
        raise ValueError(f"a grid at {grid.eighths}/8 of a slide that has {list(eighths)}")


class TileReader(Protocol):
    """The tiles of a grid. Made by `Slide.open_tiles`; read by several threads."""

    def read(self, index: int) -> Tile:
        """Pixels of a tile, uint8 RGB (grid.read_side, grid.read_side, 3).

        Each tile is read once, about in the order of the grid. Alpha lies over white.

        Raises:
            TileError: this tile is damaged; other tiles can still be read.
        """
        ...

    def close(self) -> None:
        """Free what the reader holds."""
        ...


class Slide(Protocol):
    """An open slide, or one scene of a file with several.

    Attributes:
        path: the file (or the folder of a DICOM slide).
        scene: name of the scene; '' in a file with one.
        kind: format and reader in words, such as 'Aperio SVS; JPEG tiles read directly'.
        reader: 'direct' or 'openslide'.
        levels: largest first; levels[0].downsample is 1.
        scale: what the file says about micrometres per pixel.
        offset: where the bounds begin in the file's level 0, x and y.
        eighths: the scales M at which tiles can be decoded, such as (8,) or (1, …, 8).
    """

    path: Path
    scene: str
    kind: str
    reader: str
    levels: Sequence[Level]
    scale: StatedScale
    offset: tuple[int, int]
    eighths: Sequence[int]

    def overview(self, most_pixels: int) -> Overview:
        """A picture of the whole slide of at most `most_pixels` pixels, from the lowest level that
        has at least half as many, or by decoding the tiles of a larger one at a smaller scale."""
        ...

    def open_tiles(self, grid: Grid) -> TileReader:
        """Prepare to read the tiles of a grid."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...
