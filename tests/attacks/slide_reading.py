"""What the tests of slides share: open one slide, and tiles of it on a grid."""

from pathlib import Path

import numpy as np

from edgelung.slides.base import EIGHTHS, Grid, Slide
from edgelung.slides.open import open_slides
from edgelung.tiles.resize import Tile


def open_one(path: Path) -> Slide:
    (slide,) = open_slides(path)
    return slide


def grid_of(slide: Slide, side: int, step: int = 0, level: int = 0, eighths: int = 8) -> Grid:
    """All tiles of a level."""
    step = step or side
    size = slide.levels[level]
    right, down = (size.width - side) // step + 1, (size.height - side) // step + 1
    cells = [(column, row) for row in range(down) for column in range(right)]
    factor = size.downsample
    return Grid(level, eighths, side, step, factor, np.array(cells, np.int32).reshape(-1, 2))


def read_all(slide: Slide, grid: Grid) -> list[Tile]:
    reader = slide.open_tiles(grid)
    tiles = [reader.read(index) for index in range(len(grid))]
    reader.close()
    return tiles


def region(slide: Slide, x: int, y: int, side: int, level: int = 0) -> Tile:
    """One square with its corner at any pixel of a level."""
    factor = slide.levels[level].downsample
    cells = np.array([[x, y]], np.int32)
    return slide.open_tiles(Grid(level, EIGHTHS, side, 1, factor, cells)).read(0)
