"""One row as it is written down: in the journal, and from there in the output."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from edgelung.inference.pipeline import Row, Stamp
from edgelung.tiles.find import class_of

REVIEW = "review"  # predicted, but not surely enough to decide
# Statuses that are no failure; 'skipped' was never meant to be a tile.
HARMLESS = ("ok", REVIEW, "skipped")


class Record(NamedTuple):
    """What stays of one file, in types that JSON keeps exactly.

    `path` is printable (see there); `probabilities` and `reference` hold float32 values; `truth` is
    the index of the class that a folder above the file is named after.
    """

    path: str
    status: str
    error: str
    probabilities: list[float] | None
    reference: list[float] | None
    truth: int | None
    stamp: Stamp | None

    @property
    def best(self) -> int | None:
        """Index of the likeliest class, decided or not."""
        chances = self.probabilities
        return None if chances is None else chances.index(max(chances))

    @property
    def decided(self) -> int | None:
        """Index of the class that the row is labelled with; None where it was left to people."""
        return self.best if self.status == "ok" else None


def record_of(row: Row, classes: Sequence[str], min_confidence: float | None) -> Record:
    """The record of a row; less sure than `min_confidence` (0…1, of six decimals) is `review`."""
    found, beside = row.probabilities, row.reference
    chances = None if found is None else found.tolist()
    status, error = row.status, row.error
    if chances is not None and min_confidence is not None:
        confidence = round(max(chances), 6)
        if confidence < min_confidence:
            status, error = REVIEW, f"confidence {confidence:.6f} is under {min_confidence:g}"
    return Record(
        printable(row.file.path),
        status,
        error.encode("utf-8", "backslashreplace").decode(),
        chances,
        None if beside is None else beside.tolist(),
        _truth(os.path.dirname(row.file.location), tuple(classes)),
        row.stamp,
    )


@lru_cache(maxsize=1024)
def _truth(folder: str, classes: tuple[str, ...]) -> int | None:
    return class_of(os.path.join(folder, "tile"), classes)


def printable(path: str) -> str:
    r"""The path as valid UTF-8, different for different names.

    Bytes that are not UTF-8 are written \xNN, and a backslash of the name's own is doubled.
    """
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
