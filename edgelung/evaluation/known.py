"""What the model knows: how near a tile's features are to those of the training tiles.

The score is the squared Mahalanobis distance of the mean patch token to the nearest class centre,
with one covariance for all classes (Lee et al. 2018), divided by the number of channels. It is
about 1 for tiles like the training tiles and grows with the distance. The graph computes it as its
output `ood` (`edgelung.export.graph`), in every precision and engine.

A tile whose score is above a threshold shows what the model was not made for. Validation groups,
which fitted nothing, give the threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.evaluation.metrics import Labels

Array = npt.NDArray[np.float64]

SHRINKAGE = 0.01  # of the covariance towards a multiple of the identity


@dataclass(frozen=True)
class KnownTissue:
    """Features of tiles that the model knows, D channels, C classes.

    Attributes:
        block: the features are the mean patch token after this block, counted from 1.
        mean: float64 (D,), of the features.
        whitening: float64 (D, D); (features − mean) @ whitening has the identity as covariance
            within a class, times 1/√D.
        centres: float64 (C, D), the class means, whitened.
    """

    block: int
    mean: Array
    whitening: Array
    centres: Array

    def scores(self, features: npt.ArrayLike) -> Array:
        """The score of each tile, float64 (N,), from its features (N, D)."""
        white = (np.asarray(features, np.float64) - self.mean) @ self.whitening
        distances = white[:, None] - self.centres  # (N, C, D)
        nearest: Array = (distances**2).sum(axis=2).min(axis=1)
        return nearest


def fit_known(features: npt.ArrayLike, labels: Labels, block: int) -> KnownTissue:
    """Fit class centres and their common covariance.

    Args:
        features: (N, D), of training tiles.
        labels: int64 (N,), their classes; every class from 0 to the largest has a tile.
        block: where the features were taken.
    """
    x = np.asarray(features, np.float64)
    mean = x.mean(axis=0)
    centres = np.stack([x[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    within = x - centres[labels]
    covariance = within.T @ within / len(x)
    width = x.shape[1]
    spread = np.trace(covariance) / width
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * np.eye(width)
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, 1e-12) * width)
    return KnownTissue(block, mean, whitening, (centres - mean) @ whitening)


def group_weights(groups: Sequence[str]) -> Array:
    """A weight for each tile, (N,), so that all groups weigh the same; they add up to 1."""
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights: Array = 1.0 / (counts[index] * len(counts))
    return weights


def threshold_of(scores: npt.ArrayLike, groups: Sequence[str], known: float) -> float:
    """The smallest score that a share `known` of the tiles, averaged over groups, is not above.

    Args:
        scores: (N,), of tiles that the model should know.
        groups: the source of each tile, length N.
        known: 0…1.
    """
    values, weights = np.asarray(scores, np.float64), group_weights(groups)
    order = values.argsort()
    # The sum of all weights may be below 1 by rounding.
    passed = np.minimum(np.searchsorted(weights[order].cumsum(), known - 1e-12), len(values) - 1)
    return float(values[order][passed])


def set_level(of_truth: npt.ArrayLike, groups: Sequence[str], coverage: float) -> float:
    """The level of prediction sets: classes of at least this probability are in the set.

    The largest level so that, on average over groups, a share `coverage` of the tiles has its own
    class in the set (split conformal prediction with the least-ambiguous-set score, Sadinle et al.
    2019, calibrated over groups).

    Args:
        of_truth: (N,), the probability of each tile's own class.
        groups: the source of each tile, length N.
        coverage: 0…1.
    """
    return -threshold_of(-np.asarray(of_truth, np.float64), groups, coverage)


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's correlation of two arrays (N,), N ≥ 2; ties share their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: npt.ArrayLike) -> Array:
    _, index, tied = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(tied) - (tied - 1) / 2)[index]
    return ranks
