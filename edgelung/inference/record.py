"""The record of one file: a line's worth of JSON in the journal, from which its row is written."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from edgelung.artifacts.predictions import DECIMALS, Prediction
from edgelung.inference.pipeline import Item, Row
from edgelung.inference.reading import Stamp
from edgelung.tiles.find import FoundFile, class_of
from edgelung.tiles.sizes import TrainedSizes
from edgelung.tiles.status import Status

_STATUSES = frozenset(Status)
_PREDICTED = (Status.OK, Status.REVIEW, Status.OTHER_SIZE)
_TOLERANCE = 1e-6  # of a probability
_SUM_TOLERANCE = 0.01  # engines compute in 16 bits


class Record(NamedTuple):
    """What is kept of one file, in types that JSON stores exactly.

    Attributes:
        path: printable form of the file's path.
        status, error: as in the row.
        probabilities: float32 values, one per class; None without a prediction.
        reference: the same from full precision; None where it did not run.
        truth: index of the class that a folder above the file is named after; None without one.
        stamp: the file's size and time before it was read; None if it could not be looked at.
        other_size: predicted, but of a size in pixels that is far from the training tiles.
    """

    path: str
    status: str
    error: str
    probabilities: list[float] | None
    reference: list[float] | None
    truth: int | None
    stamp: Stamp | None
    other_size: bool = False

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
        )


def fault_of(record: Record, classes: int | None = None) -> str:
    """What in a record cannot be true; '' if nothing.

    Its types are right already. `classes`: how many there are; None: any number.
    """
    if record.status not in _STATUSES:
        return f"{record.status!r} is no status"
    if (record.probabilities is not None) != (record.status in _PREDICTED):
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
    if record.truth is not None and not 0 <= record.truth < (classes or record.truth + 1):
        return f"{record.truth} is no class"
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
    """

    min_confidence: float | None
    trained_sizes: TrainedSizes
    strict_size: bool


def record_of(row: Row[FoundFile], classes: Sequence[str], rule: LabelRule) -> Record:
    """The record of a file's row."""
    truth = _truth(os.path.dirname(row.item.location), tuple(classes))
    return make_record(row, printable(row.item.path), rule, truth)


def make_record(row: Row[Item], path: str, rule: LabelRule, truth: int | None = None) -> Record:
    """The record of a row under a printable name; `truth` is the index of its class, if known."""
    probabilities = None if row.probabilities is None else row.probabilities.tolist()
    status, error, other_size = row.status, row.error, False
    if probabilities is not None:
        other_size = row.size is not None and rule.trained_sizes.is_far(row.size)
        if other_size and rule.strict_size and row.size:
            status = Status.OTHER_SIZE
            error = f"{row.size[0]}×{row.size[1]} px; trained on {rule.trained_sizes}"
        # Rounded first, so that the rule holds for the number that is printed.
        elif (
            rule.min_confidence is not None
            and (confidence := round(max(probabilities), DECIMALS)) < rule.min_confidence
        ):
            status = Status.REVIEW
            error = f"confidence {confidence:.{DECIMALS}f} is under {rule.min_confidence:g}"
    return Record(
        path,
        status,
        error.encode("utf-8", "backslashreplace").decode(),
        probabilities,
        None if row.reference is None else row.reference.tolist(),
        truth,
        row.stamp,
        other_size,
    )


@lru_cache(maxsize=1024)
def _truth(folder: str, classes: tuple[str, ...]) -> int | None:
    return class_of(os.path.join(folder, "tile"), classes)


def printable(path: str) -> str:
    r"""The path as valid UTF-8, different for different names.

    Bytes that are not UTF-8 are written \xNN; a backslash in the name is doubled.
    """
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
