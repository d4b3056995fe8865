"""Confidence intervals that resample whole groups.

Tiles of one group are not independent, so groups are the sampling unit: a percentile bootstrap over
clusters (Davison and Hinkley 1997, Section 3.8). It resamples within each class, so every resample
has as many groups of a class as the test set.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import ClassMetrics, Estimate, Estimates, Interval, Intervals
from edgelung.evaluation.metrics import BINS, Floats, Labels, confidence_gaps, evaluate

RESAMPLES = 2000
LEVEL = 0.95
FEW_GROUPS = 10  # per class; with fewer a bootstrap interval is too narrow
MAX_CELLS = 2**24  # of an array of resamples × groups or tiles: 128 MiB

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


def estimates(probabilities: Floats, truth: Labels, groups: Sequence[str]) -> Estimates:
    """The main figures of a model with their 95 % intervals from resampled groups.

    A class without tiles has no recall, and the averages are over the other classes. A rate of
    exactly 1 or 0 in all resamples gets the exact binomial bound, as in `intervals`.

    Args:
        probabilities: (N, C), N ≥ 1.
        truth: int64 (N,), class indices.
        groups: source of each tile, length N.
    """
    figures = evaluate(probabilities, truth)
    names, index = np.unique(groups, return_inverse=True)
    holds = np.zeros((len(names), probabilities.shape[1]), bool)
    holds[index, truth] = True
    of_class = holds.sum(axis=0)  # groups that hold tiles of each class
    drawn = _resampled_figures(probabilities, truth, groups, index)
    recall = [
        _estimate(value, drawn["recall"][:, label], int(of_class[label]))
        for label, value in enumerate(figures.recall)
    ]
    return Estimates(
        tiles=figures.tiles,
        groups=len(names),
        fewest_groups=int(of_class[of_class > 0].min()),
        accuracy=_estimate(figures.accuracy, drawn["accuracy"], len(names)),
        balanced_accuracy=_estimate(
            figures.balanced_accuracy, drawn["balanced_accuracy"], len(names)
        ),
        roc_auc=_estimate(figures.roc_auc, drawn["roc_auc"], len(names)),
        expected_calibration_error=_unbiased(
            figures.expected_calibration_error, drawn["expected_calibration_error"], least=0
        ),
        recall=recall,
    )


def calibration_estimate(
    probabilities: Floats, truth: Labels, groups: Sequence[str], before: Floats | None = None
) -> Estimate:
    """The expected calibration error with its interval; arguments as in `estimates`.

    With `before`, other probabilities of the same tiles: how much the error has changed since.
    """
    _, index = np.unique(groups, return_inverse=True)
    ours = _gaps_of_groups(probabilities, truth, index)
    theirs = None if before is None else _gaps_of_groups(before, truth, index)

    def errors(weights: Counts) -> Counts:
        found = _calibration_errors(weights, ours)
        return found if theirs is None else found - _calibration_errors(weights, theirs)

    value = errors(np.ones((1, len(ours))))[0]
    drawn = errors(_weights(truth, groups))
    return _unbiased(float(value), drawn, least=0 if before is None else -1)


def _unbiased(value: float, drawn: Counts, least: float) -> Estimate:
    """A calibration error, or its change, with the interval of its resamples.

    The error of a resample is larger on average, since absolute values add up more noise. The
    interval is moved by the mean of that (Efron and Tibshirani 1993, Section 10.2), down to `least`
    at most.
    """
    low, high = _interval(drawn - (drawn.mean() - value))
    low = max(low, least)
    return Estimate(value=value, interval=(low, high) if low < high else None)


def _estimate(value: float | None, drawn: Counts, groups: int) -> Estimate:
    """A rate that rests on so many groups, with the interval of its resamples."""
    if value is None:
        return Estimate(value=None, interval=None)
    low, high = _interval(drawn[np.isfinite(drawn)])
    if low == high:
        tail = (1 - LEVEL) / 2
        if value == 1:
            low = tail ** (1 / groups)
        elif value == 0:
            high = 1 - tail ** (1 / groups)
    return Estimate(value=value, interval=(low, high) if low < high else None)


def _resampled_figures(
    probabilities: Floats, truth: Labels, groups: Sequence[str], index: Labels
) -> dict[str, Counts]:
    """Each figure of `estimates` in each resample: (R,), for recall (R, C)."""
    classes = probabilities.shape[1]
    counts = _confusions(probabilities.argmax(axis=1), truth, groups, classes)
    gaps = _gaps_of_groups(probabilities, truth, index)
    blocks: list[dict[str, Counts]] = []
    for weights in _weight_blocks(truth, groups):
        confusions = weights @ counts
        blocks.append(
            _metrics(confusions)
            | {
                "recall": _recalls(confusions),
                "roc_auc": _roc_aucs(probabilities, truth, index, weights),
                "expected_calibration_error": _calibration_errors(weights, gaps),
            }
        )
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _gaps_of_groups(probabilities: Floats, truth: Labels, index: Labels) -> Counts:
    """Per group the sums of `confidence_gaps` and the number of tiles, (G, BINS + 1)."""
    sums = np.zeros((index.max() + 1, BINS + 1))
    np.add.at(sums[:, :BINS], index, confidence_gaps(probabilities, truth))
    np.add.at(sums[:, BINS], index, 1)
    return sums


def _calibration_errors(weights: Counts, sums: Counts) -> Counts:
    """The expected calibration error of each resample, (R,), from `_gaps_of_groups`."""
    totals = weights @ sums
    errors: Counts = np.abs(totals[:, :BINS]).sum(axis=1) / totals[:, BINS]
    return errors


def _roc_aucs(probabilities: Floats, truth: Labels, index: Labels, weights: Counts) -> Counts:
    """ROC AUC of each resample, (R,): that of `metrics.roc_auc` if tiles are repeated by weight.

    NaN where a resample holds fewer than two classes.
    """
    areas, present = np.zeros(len(weights)), np.zeros(len(weights))
    rows = max(1, MAX_CELLS // (32 * len(truth)))  # several arrays of this size at once
    for label, scores in enumerate(probabilities.T):
        positive = truth == label
        if positive.any() and not positive.all():
            order = np.argsort(scores, kind="stable")
            starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # ties are one step
            of_group, is_ours = index[order], positive[order]
            for start in range(0, len(weights), rows):
                drawn = weights[start : start + rows, of_group]  # (≤ rows, N)
                ours = np.add.reduceat(drawn * is_ours, starts, axis=1)
                others = np.add.reduceat(drawn * ~is_ours, starts, axis=1)
                below = others.cumsum(axis=1) - others / 2
                pairs = ours.sum(axis=1) * others.sum(axis=1)
                won = (ours * below).sum(axis=1)
                areas[start : start + rows] += np.divide(
                    won, pairs, out=np.zeros_like(won), where=pairs > 0
                )
                present[start : start + rows] += pairs > 0
    with np.errstate(invalid="ignore"):
        mean: Counts = areas / present
    return mean


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
    return np.concatenate(list(_weight_blocks(truth, groups)))


def _weight_blocks(truth: Labels, groups: Sequence[str]) -> Iterator[Counts]:
    """The rows of `_weights` in blocks of bounded memory; one block unless there are many groups.

    Without groups every tile is one.
    """
    names, first_tile = np.unique(groups, return_index=True)
    stratum = truth[first_tile]  # a group of several classes belongs to that of its first tile
    rng = np.random.default_rng(0)
    rows = max(1, MAX_CELLS // len(names))
    for start in range(0, RESAMPLES, rows):
        weights = np.zeros((min(rows, RESAMPLES - start), len(names)))
        for label in np.unique(stratum):
            members = np.flatnonzero(stratum == label)
            uniform = np.full(len(members), 1 / len(members))
            weights[:, members] = rng.multinomial(len(members), uniform, size=len(weights))
        yield weights


def _recalls(confusions: Counts) -> Counts:
    """The recall of each class, (R, C), of confusion matrices (R, C²); NaN without a tile."""
    classes = round(confusions.shape[1] ** 0.5)
    matrices = confusions.reshape(-1, classes, classes)
    with np.errstate(invalid="ignore"):
        recall: Counts = np.diagonal(matrices, axis1=1, axis2=2) / matrices.sum(axis=2)
    return recall


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
