"""How much of the tissue each class covers, with an interval.

Tiles next to each other show the same structure: they are not independent, and an interval from
single tiles is far too narrow. The sampling unit is a square block of tissue, 2 mm wide: as wide as
a large core of a tissue microarray, and wider than most growth patterns. Blocks are drawn with
replacement (percentile bootstrap of a ratio over blocks, Davison and Hinkley 1997, Section 3.8).

The interval says how much the share depends on which parts of this slide were seen. It says nothing
about other slides, other patients or errors of the model.
"""

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import Interval
from edgelung.artifacts.slide_summary import Blocks, ClassShare
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.evaluation.intervals import FEW_GROUPS, LEVEL, RESAMPLES

BLOCK_UM = 2000.0
LEAST_TILES = 4  # a block is at least so many tiles wide
CHUNK = 250  # resamples at a time; bounds the memory

Weights = npt.NDArray[np.float64]


def class_shares(
    tiles: SlideTiles, tissue: Weights | None, mpp: float
) -> tuple[list[ClassShare], Blocks | None]:
    """The share of each class in the labelled tissue.

    Args:
        tiles: the tiles; those without a label do not count.
        tissue: how much of each tile is tissue, 0…1 (N,), see `TissueMask.shares`; None: all of it.
        mpp: micrometres per pixel of level 0.

    Returns:
        One share per class, and the blocks; None without labelled tissue. With fewer than
        FEW_GROUPS effective blocks, the intervals are None: they would be too narrow.
    """
    labels = tiles.labels
    weights = np.ones(len(tiles)) if tissue is None else tissue
    counts = np.bincount(labels[labels >= 0], minlength=len(tiles.classes)).tolist()
    kept = (labels >= 0) & (weights > 0)
    if not kept.any():
        return [
            ClassShare(name=name, tiles=count, share=None, interval=None)
            for name, count in zip(tiles.classes, counts, strict=True)
        ], None
    side = max(BLOCK_UM / mpp, float(LEAST_TILES * tiles.side))  # pixels of level 0
    areas = _areas(tiles, labels, np.where(kept, weights, 0.0), side)
    sizes = areas.sum(axis=1)
    shares = areas.sum(axis=0) / sizes.sum()
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())  # Kish 1965
    blocks = Blocks(
        side_px=side,
        side_um=side * mpp,
        count=len(areas),
        effective=round(effective, 1),
    )
    intervals = _intervals(areas) if effective >= FEW_GROUPS else [None] * len(shares)
    return [
        ClassShare(name=name, tiles=count, share=float(share), interval=interval)
        for name, count, share, interval in zip(
            tiles.classes, counts, shares, intervals, strict=True
        )
    ], blocks


def _areas(
    tiles: SlideTiles, labels: npt.NDArray[np.int64], weights: Weights, side: float
) -> Weights:
    """Tissue of each class in each block that holds some, (B, C), in tiles."""
    column = ((tiles.x + tiles.side / 2) // side).astype(np.int64)
    row = ((tiles.y + tiles.side / 2) // side).astype(np.int64)
    used = weights > 0
    names, block = np.unique(row[used] * (column.max() + 1) + column[used], return_inverse=True)
    count = len(tiles.classes)
    cells = np.bincount(block * count + labels[used], weights[used], minlength=len(names) * count)
    return cells.reshape(len(names), count).astype(np.float64)


def _intervals(areas: Weights) -> list[Interval | None]:
    """95 % interval of each share; blocks are drawn with replacement.

    A class that covers all blocks, or none, is the same in every resample. Then the far end is the
    exact binomial bound for as many blocks without an exception (Clopper and Pearson 1934).
    """
    rng = np.random.default_rng(0)
    count, classes = areas.shape
    shares = np.empty((RESAMPLES, classes))
    for start in range(0, RESAMPLES, CHUNK):
        rows = min(CHUNK, RESAMPLES - start)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=rows) @ areas
        shares[start : start + rows] = drawn / drawn.sum(axis=1, keepdims=True)
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    beyond = 1 - ((1 - LEVEL) / 2) ** (1 / count)
    low = np.where(low == 1, 1 - beyond, low)
    high = np.where(high == 0, beyond, high)
    return list(zip(low.tolist(), high.tolist(), strict=True))
