"""The record of one file: a line's worth of JSON in the journal, from which its row is written."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from edgelung.artifacts.predictions import DECIMALS, Prediction
from edgelung.inference.pipeline import Row, Stamp
from edgelung.tiles.find import class_of

OK = "ok"
REVIEW = "review"  # predicted, but not confidently enough to decide
SKIPPED = "skipped"  # no image by its name and its first bytes
NOT_FAILED = (OK, REVIEW, SKIPPED)


class Record(NamedTuple):
    """What is kept of one file, in types that JSON stores exactly.

    Attributes:
        path: printable form of the file's path.
        status, error: as in the row.
        probabilities: float32 values, one per class; None without a prediction.
        reference: the same from full precision; None where it did not run.
        truth: index of the class that a folder above the file is named after; None without one.
        stamp: the file's size and time before it was read; None if it could not be looked at.
    """

    path: str
    status: str
    error: str
    probabilities: list[float] | None
    reference: list[float] | None
    truth: int | None
    stamp: Stamp | None

    @property
    def decided(self) -> int | None:
        """Index of the class that the row is labelled with; None if it is left to people."""
        if self.probabilities is None or self.status != OK:
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


def record_of(row: Row, classes: Sequence[str], min_confidence: float | None) -> Record:
    """The record of a pipeline row.

    A prediction less confident than `min_confidence` (0…1) becomes 'review'. The confidence is
    rounded first, so that the rule holds for the number that is printed.
    """
    probabilities = None if row.probabilities is None else row.probabilities.tolist()
    status, error = row.status, row.error
    if probabilities is not None and min_confidence is not None:
        confidence = round(max(probabilities), DECIMALS)
        if confidence < min_confidence:
            status = REVIEW
            error = f"confidence {confidence:.{DECIMALS}f} is under {min_confidence:g}"
    return Record(
        printable(row.file.path),
        status,
        error.encode("utf-8", "backslashreplace").decode(),
        probabilities,
        None if row.reference is None else row.reference.tolist(),
        _truth(os.path.dirname(row.file.location), tuple(classes)),
        row.stamp,
    )


@lru_cache(maxsize=1024)
def _truth(folder: str, classes: tuple[str, ...]) -> int | None:
    return class_of(os.path.join(folder, "tile"), classes)


def printable(path: str) -> str:
    r"""The path as valid UTF-8, different for different names.

    Bytes that are not UTF-8 are written \xNN; a backslash in the name is doubled.
    """
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
