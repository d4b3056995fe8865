"""Shares of tiles, averaged over groups, with intervals that resample whole groups."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import Interval, Share
from edgelung.evaluation.intervals import LEVEL, MAX_CELLS, RESAMPLES


def share_of(flags: npt.NDArray[np.bool_], groups: Sequence[str]) -> Share:
    """The share of the tiles with a flag, each group weighing the same, with its 95 % interval.

    A percentile bootstrap over groups. If all or none of the tiles have the flag, resamples cannot
    differ; the open side is then the exact binomial bound for G groups that are alike (Clopper and
    Pearson 1934).

    Args:
        flags: (N,), N ≥ 1.
        groups: the source of each tile, length N.
    """
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shares = np.bincount(index, weights=flags) / counts  # of each group
    share, count = float(shares.mean()), len(counts)
    interval = _interval(shares, np.ones(count))
    return Share(share=share, interval=interval, tiles=len(flags), groups=count)


def interval_of_tiles(flags: npt.NDArray[np.bool_], groups: Sequence[str]) -> Interval:
    """The 95 % interval of the share of tiles with a flag, each tile weighing the same.

    Groups are resampled as in `share_of`; arguments as there.
    """
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shares = np.bincount(index, weights=flags) / counts
    return _interval(shares, counts.astype(np.float64))


def _interval(shares: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> Interval:
    """Interval of the weighted mean of the groups' shares; exact where all are 0 or all are 1."""
    count, tail = len(shares), (1 - LEVEL) / 2
    if shares.min() == shares.max() and shares[0] in (0.0, 1.0):
        bound = tail ** (1 / count)
        return (bound, 1.0) if shares[0] else (0.0, 1 - bound)
    rng, even = np.random.default_rng(0), np.full(count, 1 / count)
    rows = max(1, MAX_CELLS // count)  # in blocks: without groups every tile is one
    means = []
    for block in [rows] * (RESAMPLES // rows) + [RESAMPLES % rows]:
        drawn = rng.multinomial(count, even, size=block)
        means.append(drawn @ (shares * weights) / (drawn @ weights))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
