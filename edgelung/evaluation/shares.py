"""Shares of tiles, averaged over groups, with intervals that resample whole groups."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import Share
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
    count = len(counts)
    share, tail = float(shares.mean()), (1 - LEVEL) / 2
    if shares.min() == shares.max() and share in (0.0, 1.0):
        bound = tail ** (1 / count)
        low, high = (bound, 1.0) if share else (0.0, 1 - bound)
    else:
        rng = np.random.default_rng(0)
        rows = max(1, MAX_CELLS // count)  # in blocks: without groups every tile is one
        drawn = np.concatenate(
            [
                rng.multinomial(count, np.full(count, 1 / count), size=block) @ shares / count
                for block in [rows] * (RESAMPLES // rows) + [RESAMPLES % rows]
            ]
        )
        low, high = np.quantile(drawn, [tail, 1 - tail])
    return Share(share=share, interval=(float(low), float(high)), tiles=len(flags), groups=count)
