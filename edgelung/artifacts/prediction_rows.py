"""The rows of predictions: their columns and cells, whatever the file format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct, structs

from edgelung.core.errors import visible

DECIMALS = 6
COLUMNS_BEFORE = ("path", "status", "label", "confidence")
COLUMNS_AFTER = ("ood", "set", "stage", "error")
SEPARATOR = ";"  # between the names in `set`

Cell = str | float | int | None


def probability_column(name: str) -> str:
    """Name of the column that holds the probability of a class."""
    return f"p_{name}"


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the probability columns, in the order of the classes."""
    return [probability_column(name) for name in classes]


def columns(classes: Sequence[str]) -> list[str]:
    """Names of all columns, in their order."""
    return [*COLUMNS_BEFORE, *probability_columns(classes), *COLUMNS_AFTER]


class Prediction(Struct, frozen=True):
    """One row: what the model says about one file.

    Attributes:
        path: the file, relative to the folder that was predicted; valid UTF-8.
        status: 'ok', or why there is no label: see `edgelung.tiles.status.Status`.
        label: the predicted class; None unless the status is 'ok'.
        confidence: the largest probability; None without a prediction.
        probabilities: one per class, in the order of `Predictions.classes`; None without one.
        error: the reason for the status, for people; empty for 'ok'.
        ood: how far the tile is from the training tiles, about 1 for tiles like those; None without
            a prediction, and if the bundle cannot tell.
        prediction_set: classes that cannot be excluded, in the order of the classes; None unless
            asked for (`--coverage`).
        stage: 1 if the tile left the model at its early exit, 2 if it went through all of it; None
            without a prediction, and if the model has no early exit.
    """

    path: str
    status: str
    label: str | None = None
    confidence: float | None = None
    probabilities: tuple[float, ...] | None = None
    error: str = ""
    ood: float | None = None
    prediction_set: tuple[str, ...] | None = None
    stage: int | None = None


@dataclass(frozen=True)
class Predictions:
    """The content of a predictions file. `classes` is empty for JSON Lines without rows."""

    classes: tuple[str, ...]
    rows: tuple[Prediction, ...]

    def to_records(self) -> list[dict[str, Cell]]:
        """One dict per row, keyed by column name, for example for `pandas.DataFrame`."""
        names = columns(self.classes)
        return [dict(zip(names, cells_of(row, self.classes), strict=True)) for row in self.rows]


def cells_of(row: Prediction, classes: Sequence[str]) -> list[Cell]:
    """The cells of a row, in the order of `columns`."""
    numbers = row.probabilities or (None,) * len(classes)
    names = set_cell(row) or None
    return [
        *(row.path, row.status, row.label, row.confidence, *numbers),
        *(row.ood, names, row.stage, row.error or None),
    ]


def set_cell(row: Prediction) -> str:
    return SEPARATOR.join(row.prediction_set or ())


def visible_prediction(row: Prediction) -> Prediction:
    """The row as a terminal may show it: a line end in a name would fake another row."""
    label = None if row.label is None else visible(row.label)
    names = None if row.prediction_set is None else tuple(map(visible, row.prediction_set))
    return structs.replace(
        row, path=visible(row.path), label=label, error=visible(row.error), prediction_set=names
    )


class ByteWriter(Protocol):
    """Accepts bytes: a binary file, or standard output."""

    def write(self, data: bytes, /) -> int:
        """Write all of `data`; returns its length."""
        ...


class VisibleWriter:
    """Writes text to a terminal, which must not obey the control characters in names.

    Line ends are kept: rows go through `visible_prediction` before.
    """

    def __init__(self, file: ByteWriter) -> None:
        self._file = file

    def write(self, data: bytes, /) -> int:
        """See `ByteWriter`."""
        self._file.write(visible(data.decode(), "\r\n").encode())
        return len(data)
