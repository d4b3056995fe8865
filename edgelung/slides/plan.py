"""Which squares of a slide are read: level, size, grid, and which of them hold tissue."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgelung.core.errors import EdgelungError
from edgelung.slides.base import EIGHTHS, Grid, Level, Slide

MOST_CELLS = 4_000_000
# A level that is this much too small is still read: a difference that scanners have anyway.
SLACK = 0.98
LEAST_SIDE = 16  # pixels of a tile; with less, nothing of a cell can be seen


def plan_grid(slide: Slide, mpp: float, tile_um: float, size: int, overlap: float = 0.0) -> Grid:
    """All squares of `tile_um` that lie wholly on the slide.

    The lowest level is read at which a tile still has `size` pixels; JPEG tiles are decoded at the
    smallest M/8 that covers it, as tile files are.

    Args:
        slide: the open slide.
        mpp: micrometres per pixel of level 0.
        tile_um: side of a tile in micrometres.
        size: side of the model's input, pixels.
        overlap: share of a tile's side that its neighbour also covers; 0 … 0.9.

    Raises:
        EdgelungError: no tile fits on the slide, a tile has too few pixels, or there would be too
                many tiles.
    """
    side0 = tile_um / mpp  # pixels of level 0
    if side0 < LEAST_SIDE:
        raise EdgelungError(
            f"a tile of {tile_um:g} µm has {side0:.2g} pixels; expected at least {LEAST_SIDE}: "
            "check --mpp and --tile-um"
        )
    number, level = _choose_level(slide.levels, side0, size)
    side = max(1, round(side0 / level.downsample))
    whole = 8 * round(side / 8)  # at a smaller scale, its corners are whole pixels too
    eighths = _choose_eighths(slide.eighths, min(side, whole), size)
    if eighths < EIGHTHS:
        side = whole
    step = max(1, round(side * (1 - overlap)))
    if eighths < EIGHTHS:
        step = max(8, 8 * round(step / 8))
    columns, rows = ((length - side) // step + 1 for length in (level.width, level.height))
    if columns < 1 or rows < 1:
        full = slide.levels[0]
        raise EdgelungError(
            f"no tile fits: the slide has {full.width}×{full.height} pixels and a tile of "
            f"{tile_um:g} µm has {side0:.0f}; check --mpp and --tile-um"
        )
    if columns * rows > MOST_CELLS:
        raise EdgelungError(
            f"{columns * rows:,} tiles of {tile_um:g} µm; expected at most {MOST_CELLS:,}: check "
            "--mpp, --tile-um and --overlap"
        )
    return Grid(
        level=number,
        eighths=eighths,
        side=side,
        step=step,
        downsample=level.downsample,
        cells=_all_cells(columns, rows),
    )


def _choose_level(levels: Sequence[Level], side0: float, size: int) -> tuple[int, Level]:
    fitting = [
        (number, level)
        for number, level in enumerate(levels)
        if side0 / level.downsample >= size * SLACK
    ]
    return fitting[-1] if fitting else (0, levels[0])


def _choose_eighths(possible: Sequence[int], side: int, size: int) -> int:
    """The smallest M so that M/8 of `side` still covers the model's input."""
    return min((m for m in possible if m * side >= size * EIGHTHS), default=EIGHTHS)


def _all_cells(columns: int, rows: int) -> npt.NDArray[np.int32]:
    row, column = np.divmod(np.arange(columns * rows, dtype=np.int32), np.int32(columns))
    return np.stack([column, row], axis=1)  # (N, 2)
