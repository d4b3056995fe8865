"""Intervals that respect groups: tiles of one group are not independent, groups are resampled.

The percentile bootstrap over clusters (Davison and Hinkley 1997, Section 3.8), within each class,
so that a resample holds as many groups of a class as the test set does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelung.evaluation.metrics import Labels

RESAMPLES = 2000
LEVEL = 0.95
FEW_GROUPS = 10  # of a class, below which an interval is too narrow to be leaned on

Counts = npt.NDArray[np.float64]
Interval = tuple[float, float]


def intervals(
    predicted: Labels, truth: Labels, groups: Sequence[str], classes: int
) -> dict[str, Interval]:
    """95 % intervals of accuracy, balanced accuracy and macro F1; fractions.

    `predicted`, `truth` int64 (N,); `groups`: the source of each tile. Where no tile is wrong every
    resample is perfect too, which says nothing of sources that are not here: the lower end is then
    what G sources without a failure leave possible, if a source fails wholly or not at all
    (Clopper and Pearson 1934). With fewer groups than FEW_GROUPS a class it is still too narrow,
    and where no resample differs from another it says nothing.
    """
    counts, weights = _confusions(predicted, truth, groups, classes), _weights(truth, groups)
    found = {name: _interval(values) for name, values in _metrics(weights @ counts).items()}
    if np.array_equal(predicted, truth):
        low = ((1 - LEVEL) / 2) ** (1 / weights.shape[1])
        return dict.fromkeys(found, (low, 1.0))
    return found


def written(bounds: Interval) -> str:
    """An interval of fractions in percent; a dash for one of no width, which says nothing."""
    low, high = bounds
    return f"{100 * low:.2f} – {100 * high:.2f} %" if low < high else "–"


def table_cells(test: Mapping[str, Any]) -> list[str]:
    """Accuracy, macro precision, recall and F1 (the paper's Table II) of test metrics, in percent.

    Below the first, the third and the last stands the interval.
    """
    spans = {"accuracy": "accuracy", "macro_recall": "balanced_accuracy", "macro_f1": "macro_f1"}
    cells = []
    for name in ("accuracy", "macro_precision", "macro_recall", "macro_f1"):
        span = f"\n{written(test['intervals'][spans[name]])}" if name in spans else ""
        cells.append(f"{100 * test[name]:.2f}{span.removesuffix(' %')}")
    return cells


def caution(fewest_groups: int) -> str:
    """A line to stand beside intervals from so few test groups in some class; '' where enough."""
    if fewest_groups >= FEW_GROUPS:
        return ""
    return (
        f"{fewest_groups} group(s) of a class in the test set: intervals from fewer than "
        f"{FEW_GROUPS} are too narrow, whatever they say"
    )


def paired_intervals(
    first: Labels, second: Labels, truth: Labels, groups: Sequence[str], classes: int
) -> dict[str, Interval]:
    """95 % intervals of second − first on the same tiles: both see the same resampled groups."""
    weights = _weights(truth, groups)
    ours = _metrics(weights @ _confusions(second, truth, groups, classes))
    theirs = _metrics(weights @ _confusions(first, truth, groups, classes))
    return {name: _interval(ours[name] - theirs[name]) for name in ours}


def _confusions(predicted: Labels, truth: Labels, groups: Sequence[str], classes: int) -> Counts:
    """The confusion matrix of each group, (G, classes²)."""
    names, group = np.unique(groups, return_inverse=True)
    cell = (group * classes + truth) * classes + predicted
    counts = np.bincount(cell, minlength=len(names) * classes * classes)
    return counts.reshape(len(names), classes * classes).astype(np.float64)


def _weights(truth: Labels, groups: Sequence[str]) -> Counts:
    """How often each resample drew each group, (RESAMPLES, G)."""
    names, first = np.unique(groups, return_index=True)
    stratum = truth[first]  # the class of a group, of its first tile where it holds several
    rng = np.random.default_rng(0)
    weights = np.zeros((RESAMPLES, len(names)))
    for label in np.unique(stratum):
        members = np.flatnonzero(stratum == label)
        even = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), even, size=RESAMPLES)
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
