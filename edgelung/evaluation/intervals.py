"""Confidence intervals that resample whole groups.

Tiles of one group are not independent, so groups are the sampling unit: a percentile bootstrap over
clusters (Davison and Hinkley 1997, Section 3.8). It resamples within each class, so every resample
has as many groups of a class as the test set.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import ClassMetrics, Interval, Intervals
from edgelung.evaluation.metrics import Labels

RESAMPLES = 2000
LEVEL = 0.95
FEW_GROUPS = 10  # per class; with fewer a bootstrap interval is too narrow

Counts = npt.NDArray[np.float64]


def intervals(predicted: Labels, truth: Labels, groups: Sequence[str], classes: int) -> Intervals:
    """95 % intervals of accuracy, balanced accuracy and macro F1 from resampled groups.

    Args:
        predicted: int64 (N,), class indices.
        truth: int64 (N,), class indices.
        groups: source of each tile, length N.
        classes: number of classes.

    If no tile is wrong, every resample is perfect too, which says nothing about other sources. The
    lower bound is then the exact binomial bound for G groups without a failure, where a group fails
    as a whole or not at all (Clopper and Pearson 1934). With fewer than FEW_GROUPS groups per class
    an interval is too narrow. An interval of zero width carries no information.
    """
    counts, weights = _confusions(predicted, truth, groups, classes), _weights(truth, groups)
    metrics = _metrics(weights @ counts)
    bounds = {name: _interval(values) for name, values in metrics.items()}
    if np.array_equal(predicted, truth):
        low = ((1 - LEVEL) / 2) ** (1 / weights.shape[1])
        bounds = dict.fromkeys(bounds, (low, 1.0))
    return Intervals(**bounds)


def written(bounds: Interval) -> str:
    """An interval of fractions as text in percent; a dash for an interval of zero width."""
    low, high = bounds
    return f"{100 * low:.2f} – {100 * high:.2f} %" if low < high else "–"


def table_cells(metrics: ClassMetrics, intervals: Intervals) -> list[str]:
    """Accuracy, macro precision, recall and F1 (the paper's Table II), in percent.

    The cells of accuracy, recall and F1 have the interval on a second line.
    """

    def cell(value: float | None, bounds: Interval | None) -> str:
        figure = "–" if value is None else f"{100 * value:.2f}"
        return figure if bounds is None else f"{figure}\n{written(bounds).removesuffix(' %')}"

    return [
        cell(metrics.accuracy, intervals.accuracy),
        cell(metrics.macro_precision, None),
        cell(metrics.macro_recall, intervals.balanced_accuracy),
        cell(metrics.macro_f1, intervals.macro_f1),
    ]


def caution(fewest_groups: int) -> str:
    """A warning if the smallest class has few test groups; '' if it has enough."""
    if fewest_groups >= FEW_GROUPS:
        return ""
    return (
        f"{fewest_groups} group(s) of a class in the test set: intervals from fewer than "
        f"{FEW_GROUPS} groups are too narrow"
    )


def paired_intervals(
    first: Labels, second: Labels, truth: Labels, groups: Sequence[str], classes: int
) -> Intervals:
    """95 % intervals of second − first on the same tiles.

    Both are computed on the same resampled groups. Arguments as in `intervals`.
    """
    weights = _weights(truth, groups)
    ours = _metrics(weights @ _confusions(second, truth, groups, classes))
    theirs = _metrics(weights @ _confusions(first, truth, groups, classes))
    return Intervals(**{name: _interval(ours[name] - theirs[name]) for name in ours})


def _confusions(predicted: Labels, truth: Labels, groups: Sequence[str], classes: int) -> Counts:
    """The confusion matrix of each group, (G, classes²)."""
    names, group = np.unique(groups, return_inverse=True)
    cell = (group * classes + truth) * classes + predicted
    counts = np.bincount(cell, minlength=len(names) * classes * classes)
    return counts.reshape(len(names), classes * classes).astype(np.float64)


def _weights(truth: Labels, groups: Sequence[str]) -> Counts:
    """How often each resample draws each group, (RESAMPLES, G)."""
    names, first_tile = np.unique(groups, return_index=True)
    stratum = truth[first_tile]  # a group of several classes belongs to that of its first tile
    rng = np.random.default_rng(0)
    weights = np.zeros((RESAMPLES, len(names)))
    for label in np.unique(stratum):
        members = np.flatnonzero(stratum == label)
        uniform = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), uniform, size=RESAMPLES)
    return weights


def _metrics(confusions: Counts) -> dict[str, Counts]:
    """Each metric (R,) of confusion matrices (R, classes²), as in `classification_metrics`."""
    classes = round(confusions.shape[1] ** 0.5)
    matrices = confusions.reshape(-1, classes, classes)
    hits = np.diagonal(matrices, axis1=1, axis2=2)  # (R, classes)
    actual, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    present = actual > 0
    recall = np.divide(hits, actual, out=np.zeros_like(hits), where=present)
    f1 = np.divide(2 * hits, actual + predicted, out=np.zeros_like(hits), where=present)
    return {
        "accuracy": hits.sum(axis=1) / actual.sum(axis=1),
        "balanced_accuracy": recall.sum(axis=1) / present.sum(axis=1),
        "macro_f1": f1.sum(axis=1) / present.sum(axis=1),
    }


def _interval(values: Counts) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
