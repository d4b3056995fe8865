"""The record of one file: a line's worth of JSON in the journal, from which its row is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgelung.artifacts.predictions import DECIMALS, Prediction
from edgelung.inference.pipeline import Item, Row
from edgelung.inference.reading import Stamp
from edgelung.tiles.find import FoundFile
from edgelung.tiles.names import printable
from edgelung.tiles.sizes import TrainedSizes
from edgelung.tiles.status import PREDICTED, Status

_STATUSES = frozenset(Status)
_TOLERANCE = 1e-6  # of a probability
_SUM_TOLERANCE = 0.01  # engines compute in 16 bits


class Record(NamedTuple):
    """What is kept of one file, in types that JSON stores exactly.

    Attributes:
        path: printable form of the file's path.
        status, error: as in the row.
        probabilities: float32 values, one per class; None without a prediction.
        reference: the same from full precision; None where it did not run.
        stamp: the file's size and time before it was read; None if it could not be looked at.
        other_size: predicted, but of a size in pixels that is far from the training tiles.
        ood: how far it is from the training tiles; None without a prediction or a score.
        prediction_set: indices of the classes that cannot be excluded; None unless asked for.
        stage: 1 if it left the model at the early exit, 2 if not; None if there is none.
    """

    path: str
    status: str
    error: str
    probabilities: list[float] | None
    reference: list[float] | None
    stamp: Stamp | None
    other_size: bool = False
    ood: float | None = None
    prediction_set: list[int] | None = None
    stage: int | None = None

    @property
    def decided(self) -> int | None:
        """Index of the class that the row is labelled with; None if it is left to people."""
        if self.probabilities is None or self.status != Status.OK:
            return None
        return self.probabilities.index(max(self.probabilities))

    def prediction(self, classes: Sequence[str]) -> Prediction:
        """The row of this file."""
        if self.probabilities is None:
            return Prediction(self.path, self.status, error=self.error)
        decided = self.decided
        return Prediction(
            self.path,
            self.status,
            None if decided is None else classes[decided],
            max(self.probabilities),
            tuple(self.probabilities),
            self.error,
            self.ood,
            None if self.prediction_set is None else tuple(classes[i] for i in self.prediction_set),
            self.stage,
        )


def fault_of(record: Record, classes: int | None = None) -> str:
    """What in a record cannot be true; '' if nothing.

    Its types are right already. `classes`: how many there are; None: any number.
    """
    if record.status not in _STATUSES:
        return f"{record.status!r} is no status"
    if (record.probabilities is not None) != (record.status in PREDICTED):
        return f"a row of status {record.status} with or without probabilities"
    if record.reference is not None and record.probabilities is None:
        return "full precision predicted what the variant did not"
    for values in (record.probabilities, record.reference):
        if values is None:
            continue
        if len(values) != (classes or len(values)) or not values:
            return f"{len(values)} probabilities"
        # float32 values, written exactly.
        if not min(values) >= 0 or not max(values) <= 1 + _TOLERANCE:
            return "a probability outside of 0…1"
        if not abs(sum(values) - 1) <= _SUM_TOLERANCE:
            return "probabilities that do not add up to 1"
    if record.ood is not None and not record.ood >= 0:
        return "a score below 0"
    if record.prediction_set is not None and not (
        record.prediction_set
        and sorted(set(record.prediction_set)) == record.prediction_set
        and record.prediction_set[0] >= 0
        and record.prediction_set[-1] < (classes or len(record.probabilities or ()))
    ):
        return "a set that is empty or names a class that is none"
    if record.stage not in (None, 1, 2) or (record.stage and record.probabilities is None):
        return f"a prediction of stage {record.stage}"
    if record.stamp is not None and record.stamp[0] < 0:
        return "a size below 0"
    return ""


@dataclass(frozen=True)
class LabelRule:
    """Which predictions give a label; the others keep their probabilities.

    Attributes:
        min_confidence: 0…1; less confident rows become 'review'. None: none does.
        trained_sizes: pixel sizes of the training tiles.
        strict_size: rows of sizes far from those become 'other-size'.
        marks_unknown: rows without tissue become 'blank', and rows above `known_up_to` 'unknown'.
        known_up_to: the highest score of tissue that the model knows; None if it cannot tell.
        set_level: classes whose probabilities are at least this are in the row's set, and the most
            probable one always; None: rows have no set.
    """

    min_confidence: float | None = None
    trained_sizes: TrainedSizes = field(default_factory=lambda: TrainedSizes({}))
    strict_size: bool = False
    marks_unknown: bool = True
    known_up_to: float | None = None
    set_level: float | None = None

    def set_of(self, probabilities: Sequence[float]) -> list[int] | None:
        """Indices of the classes that cannot be excluded."""
        if self.set_level is None:
            return None
        least = min(self.set_level, max(probabilities))
        return [i for i, value in enumerate(probabilities) if value >= least]


def record_of(row: Row[FoundFile], rule: LabelRule) -> Record:
    """The record of a file's row."""
    return make_record(row, printable(row.item.path), rule)


def make_record(row: Row[Item], path: str, rule: LabelRule) -> Record:
    """The record of a row under a printable name."""
    probabilities = None if row.probabilities is None else row.probabilities.tolist()
    status, error, other_size = row.status, row.error, False
    if probabilities is not None:
        other_size = row.size is not None and rule.trained_sizes.is_far(row.size)
        status, error = _decide(row, max(probabilities), rule)
    return Record(
        path,
        status,
        error.encode("utf-8", "backslashreplace").decode(),
        probabilities,
        None if row.reference is None else row.reference.tolist(),
        row.stamp,
        other_size,
        row.ood,
        None if probabilities is None else rule.set_of(probabilities),
        row.stage,
    )


def _decide(row: Row[Item], confidence: float, rule: LabelRule) -> tuple[Status, str]:
    """The status of a predicted row, and why it has no label. Numbers are rounded as printed."""
    if rule.marks_unknown and row.blank:
        return Status.BLANK, row.blank
    if rule.marks_unknown and rule.known_up_to is not None and row.ood is not None:
        ood = round(row.ood, DECIMALS)
        if ood > rule.known_up_to:
            return Status.UNKNOWN, (
                f"unlike the training tiles: score {ood:.2f}, known up to {rule.known_up_to:.2f}"
            )
    if rule.strict_size and row.size is not None and rule.trained_sizes.is_far(row.size):
        reason = f"{row.size[0]}×{row.size[1]} px; trained on {rule.trained_sizes}"
        return Status.OTHER_SIZE, reason
    confidence = round(confidence, DECIMALS)
    if rule.min_confidence is not None and confidence < rule.min_confidence:
        reason = f"confidence {confidence:.{DECIMALS}f} is under {rule.min_confidence:g}"
        return Status.REVIEW, reason
    return Status.OK, ""
