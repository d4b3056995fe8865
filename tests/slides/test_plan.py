"""The grid: right level, right size, no tile over the edge."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgelung.core.errors import EdgelungError
from edgelung.slides.base import Level, StatedScale
from edgelung.slides.plan import plan_grid


@dataclass
class Shape:
    """A slide of which only the sizes matter."""

    levels: list[Level]
    eighths: list[int] = field(default_factory=lambda: [8])
    path: Path = Path("slide.svs")
    scene = kind = ""
    reader = "direct"
    scale = StatedScale()
    offset = (0, 0)


def pyramid(width: int, height: int, *downsamples: float) -> list[Level]:
    return [Level(int(width / d), int(height / d), d) for d in (1.0, *downsamples)]


@pytest.mark.parametrize("width", [224, 447, 448, 1000])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_every_tile_lies_wholly_on_the_slide_and_no_further_one_fits(
    width: int, overlap: float
) -> None:
    grid = plan_grid(Shape(pyramid(width, 500)), 0.5, 112.0, 224, overlap)
    assert grid.side == 224
    corners = grid.cells * grid.step
    assert (corners.min(0) == 0).all()
    last = corners.max(0) + grid.side
    assert (last <= (width, 500)).all()
    assert (last + grid.step > (width, 500)).all()
    assert len(np.unique(grid.cells, axis=0)) == len(grid)


def test_tiles_are_in_the_order_of_the_file() -> None:
    grid = plan_grid(Shape(pyramid(700, 700)), 0.5, 112.0, 224)
    assert grid.cells.tolist() == [[c, r] for r in range(3) for c in range(3)]


@pytest.mark.parametrize(
    ("tile_um", "level", "side"),
    [(112, 0, 224), (200, 0, 400), (448, 1, 224), (447, 1, 224), (1800, 2, 225), (56, 0, 112)],
)
def test_the_lowest_level_that_still_has_the_models_pixels_is_read(
    tile_um: float, level: int, side: int
) -> None:
    grid = plan_grid(Shape(pyramid(40_000, 40_000, 4.0, 16.0)), 0.5, tile_um, 224)
    assert (grid.level, grid.side) == (level, side)


@pytest.mark.parametrize("tile_um", [149.5, 298, 300, 384, 383, 111])
def test_a_scaled_decode_covers_the_models_pixels_on_whole_pixels(tile_um: float) -> None:
    slide = Shape(pyramid(10_000, 10_000), list(range(1, 9)))
    grid = plan_grid(slide, 0.5, tile_um, 224)
    assert grid.read_side >= 224 or grid.side < 224
    if grid.eighths < 8:
        assert grid.side % 8 == grid.step % 8 == 0
        assert grid.read_side * 8 == grid.side * grid.eighths
        assert (grid.eighths - 1) * grid.side < 224 * 8
    assert grid.side == pytest.approx(tile_um / 0.5, abs=4)


def test_positions_of_a_level_are_those_of_level_0() -> None:
    grid = plan_grid(Shape(pyramid(8_000, 8_000, 4.0)), 0.5, 448.0, 224)
    assert grid.side0 == 896
    assert grid.corners0[:3].tolist() == [[0, 0], [896, 0], [1792, 0]]


@pytest.mark.parametrize("size", [(223, 5000), (5000, 223), (1, 1)])
def test_a_slide_smaller_than_a_tile_is_refused_with_both_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(EdgelungError, match=r"no tile fits.*--tile-um"):
        plan_grid(Shape(pyramid(*size)), 0.5, 112.0, 224)


def test_a_scale_that_makes_millions_of_tiles_is_refused() -> None:
    with pytest.raises(EdgelungError, match="expected at most"):
        plan_grid(Shape(pyramid(100_000, 80_000)), 1.5, 24.0, 224)


def test_a_tile_of_a_few_pixels_is_refused() -> None:
    with pytest.raises(EdgelungError, match=r"0\.02 pixels; expected at least 16"):
        plan_grid(Shape(pyramid(1000, 500)), 50.0, 1.0, 224)
