"""How good a model is on a site's labelled tiles: the figures of `edgelung evaluate`.

All figures are of the most probable class, whatever the status of a tile: what leaving out unknown
and blank tiles changes is a figure of its own.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.evaluation import (
    AgainstTest,
    DifferenceVerdict,
    GroupCount,
    KeptTiles,
    PredictionSets,
    Subset,
    UnknownTiles,
)
from edgelung.artifacts.results import Estimate, Estimates, VariantTest
from edgelung.evaluation.intervals import estimates
from edgelung.evaluation.metrics import Floats, Labels, confusion_matrix
from edgelung.evaluation.shares import share_of
from edgelung.tiles.status import PREDICTED, Status

Flags = npt.NDArray[np.bool_]  # (N,)

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the tiles that `kept_tiles` keeps
RECALL = "recall:"  # before the name of a class, in the names of figures
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "ROC AUC",
    "expected_calibration_error": "calibration error",
}


@dataclass(frozen=True)
class LabelledTiles:
    """N labelled tiles with what the model says about them, C classes.

    Attributes:
        statuses: of each tile, length N.
        truth: int64 (N,), class indices.
        groups: source of each tile, length N.
        columns: name → value of each tile, length N.
        probabilities: float64 (N, C); zeros where a tile has no prediction.
        sets: bool (N, C), the classes in the prediction set of each tile; None without sets.
    """

    statuses: tuple[str, ...]
    truth: Labels
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    probabilities: Floats
    sets: npt.NDArray[np.bool_] | None = None

    def has_status(self, *statuses: str) -> Flags:
        """Which tiles have one of these statuses."""
        return np.isin(self.statuses, list(statuses))

    @property
    def predicted(self) -> Flags:
        """Which tiles have a prediction."""
        return self.has_status(*PREDICTED)

    def groups_of(self, flags: Flags) -> list[str]:
        """The groups of the tiles with a flag."""
        return [self.groups[i] for i in np.flatnonzero(flags)]

    def estimates_of(self, flags: Flags) -> Estimates | None:
        """The figures of the tiles with a flag, which have predictions; None without a tile."""
        if not flags.any():
            return None
        return estimates(self.probabilities[flags], self.truth[flags], self.groups_of(flags))


def subset_of(tiles: LabelledTiles, flags: Flags) -> Subset:
    """The figures of the tiles with a flag."""
    predicted = flags & tiles.predicted
    classes = tiles.probabilities.shape[1]
    labels = tiles.probabilities[predicted].argmax(axis=1)
    return Subset(
        statuses=dict(Counter(tiles.statuses[i] for i in np.flatnonzero(flags)).most_common()),
        figures=tiles.estimates_of(predicted),
        confusion=confusion_matrix(tiles.truth[predicted], labels, classes).tolist(),
    )


def by_column(tiles: LabelledTiles, column: str) -> dict[str, Subset]:
    """The figures of each value of a column, in the order of the values."""
    values = np.array(tiles.columns[column], object)
    return {value: subset_of(tiles, values == value) for value in sorted(set(values))}


def unknown_tiles(tiles: LabelledTiles, *, can_tell: bool) -> UnknownTiles | None:
    """What leaving out unknown and blank tiles changes; None without a predicted tile.

    `can_tell`: the bundle can tell unknown tissue.
    """
    predicted = tiles.predicted
    if not predicted.any():
        return None
    groups = tiles.groups_of(predicted)
    unknown, blank = tiles.has_status(Status.UNKNOWN), tiles.has_status(Status.BLANK)
    return UnknownTiles(
        unknown=share_of(unknown[predicted], groups),
        blank=share_of(blank[predicted], groups),
        can_tell=can_tell,
        without=tiles.estimates_of(predicted & ~unknown & ~blank),
    )


def kept_tiles(tiles: LabelledTiles) -> list[KeptTiles]:
    """Accuracy of the most confident tiles, for each of SHARES; tiles of one confidence together.

    The accuracy–coverage curve of selective classification (El-Yaniv and Wiener 2010).
    """
    confidence, accuracy = accuracy_by_confidence(tiles)
    kept = []
    for share in SHARES if len(confidence) else ():
        last = max(1, round(share * len(confidence))) - 1
        least = confidence[last]
        count = int((confidence >= least).sum())
        kept.append(
            KeptTiles(
                share=count / len(confidence),
                tiles=count,
                least_confidence=float(least),
                accuracy=float(accuracy[count - 1]),
            )
        )
    return kept


def accuracy_by_confidence(tiles: LabelledTiles) -> tuple[Floats, Floats]:
    """Confidences, falling, and the accuracy of the tiles up to each of them; (N,) both."""
    predicted = tiles.predicted
    probabilities = tiles.probabilities[predicted]
    confidence = probabilities.max(axis=1) if len(probabilities) else np.zeros(0)
    order = np.argsort(-confidence, kind="stable")
    hits = (probabilities.argmax(axis=1) == tiles.truth[predicted])[order]
    return confidence[order], hits.cumsum() / np.arange(1, len(hits) + 1)


def prediction_sets(tiles: LabelledTiles, asked: str) -> PredictionSets | None:
    """Coverage and size of the prediction sets; None without sets or predicted tiles."""
    predicted = tiles.predicted
    if tiles.sets is None or not predicted.any():
        return None
    sets, truth = tiles.sets[predicted], tiles.truth[predicted]
    return PredictionSets(
        asked=asked,
        coverage=share_of(sets[np.arange(len(truth)), truth], tiles.groups_of(predicted)),
        mean_size=float(sets.sum(axis=1).mean()),
    )


def group_counts(tiles: LabelledTiles) -> list[GroupCount]:
    """The groups with wrong labels, those with the most first."""
    predicted = tiles.predicted
    wrong = tiles.probabilities.argmax(axis=1) != tiles.truth
    count = Counter(tiles.groups_of(predicted))
    errors = Counter(tiles.groups_of(predicted & wrong))
    order = sorted(errors, key=lambda group: (-errors[group], group))
    return [GroupCount(group=one, tiles=count[one], wrong=errors[one]) for one in order]


def title_of(figure: str) -> str:
    """The name of a figure for people."""
    if figure.startswith(RECALL):
        return f"recall of {figure.removeprefix(RECALL)}"
    return TITLES[figure]


def named_figures(figures: Estimates, classes: list[str]) -> dict[str, Estimate]:
    """The figures by their names, such as `accuracy` and `recall:lung_n`."""
    recall = {f"{RECALL}{name}": one for name, one in zip(classes, figures.recall, strict=True)}
    return {
        "accuracy": figures.accuracy,
        "balanced_accuracy": figures.balanced_accuracy,
        "roc_auc": figures.roc_auc,
        "expected_calibration_error": figures.expected_calibration_error,
        **recall,
    }


def against_test(
    figures: Estimates, test: VariantTest, classes: list[str]
) -> dict[str, AgainstTest]:
    """Each figure beside the one of the bundle's own test."""
    theirs = {
        "accuracy": Estimate(value=test.accuracy, interval=test.intervals.accuracy),
        "balanced_accuracy": Estimate(
            value=test.balanced_accuracy, interval=test.intervals.balanced_accuracy
        ),
        "roc_auc": Estimate(value=test.roc_auc, interval=None),
        "expected_calibration_error": Estimate(
            value=test.expected_calibration_error, interval=None
        ),
    } | {
        f"{RECALL}{name}": Estimate(value=value, interval=None)
        for name, value in zip(classes, test.recall, strict=True)
    }
    return {
        name: _compared(here, theirs[name])
        for name, here in named_figures(figures, classes).items()
    }


def _compared(here: Estimate, test: Estimate) -> AgainstTest:
    difference = difference_of(here, test)
    return AgainstTest(here=here, test=test, difference=difference, verdict=_verdict(difference))


def _verdict(difference: Estimate) -> DifferenceVerdict | None:
    if difference.interval is None:
        return None
    low, high = difference.interval
    if low <= 0 <= high:
        return "no difference shown"
    return "worse here" if high < 0 else "better here"


def difference_of(first: Estimate, second: Estimate) -> Estimate:
    """first − second, of independent groups.

    Reference: Zou and Donner (2008), MOVER: an interval of a difference from two intervals.
    """
    if first.value is None or second.value is None:
        return Estimate(value=None, interval=None)
    value = first.value - second.value
    if first.interval is None or second.interval is None:
        return Estimate(value=value, interval=None)
    (low, high), (other_low, other_high) = first.interval, second.interval
    if low == high or other_low == other_high:  # an interval without width says nothing
        return Estimate(value=value, interval=None)
    below = np.hypot(first.value - low, other_high - second.value)
    above = np.hypot(high - first.value, second.value - other_low)
    return Estimate(value=value, interval=(float(value - below), float(value + above)))
