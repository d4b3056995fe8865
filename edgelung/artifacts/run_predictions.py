"""predictions.csv of a run: the probabilities of its validation and test tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.predictions import probability_column, probability_columns


@dataclass(frozen=True)
class RunPredictions:
    """predictions.csv of one model: probabilities, float64 (N, classes), of N tiles.

    `labels` int64 (N,): indices of the true classes in `classes`.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    groups: tuple[str, ...]
    subsets: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, name: str) -> "RunPredictions":
        """The rows of 'val' or 'test'."""
        rows = [i for i, subset in enumerate(self.subsets) if subset == name]
        return RunPredictions(
            self.classes,
            tuple(self.paths[i] for i in rows),
            self.labels[rows],
            tuple(self.groups[i] for i in rows),
            tuple(self.subsets[i] for i in rows),
            self.probabilities[rows],
        )

    def to_records(self) -> list[dict[str, str | float]]:
        """One dict per tile, keyed by CSV column, for example for `pandas.DataFrame`."""
        return [
            {
                "path": path,
                "class": self.classes[label],
                "group": group,
                "subset": subset,
                **dict(zip(probability_columns(self.classes), values.tolist(), strict=True)),
            }
            for path, label, group, subset, values in zip(
                *(self.paths, self.labels, self.groups, self.subsets, self.probabilities),
                strict=True,
            )
        ]


def from_rows(rows: Sequence[dict[str, str]]) -> RunPredictions:
    """Convert the rows of a predictions.csv. Raises KeyError or ValueError for a wrong row."""
    columns = list(rows[0]) if rows else []
    prefix = probability_column("")
    classes = tuple(name.removeprefix(prefix) for name in columns if name.startswith(prefix))
    probabilities = [[float(row[name]) for name in probability_columns(classes)] for row in rows]
    return RunPredictions(
        classes,
        tuple(row["path"] for row in rows),
        np.array([classes.index(row["class"]) for row in rows], np.int64),
        tuple(row["group"] for row in rows),
        tuple(row["subset"] for row in rows),
        np.array(probabilities, np.float64).reshape(len(rows), len(classes)),
    )
