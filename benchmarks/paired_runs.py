"""Compare students that were tested on the same tiles, paired over groups with the first one.

    python benchmarks/paired_runs.py NAME=RUN[,RUN…] … --about "what differs" --json FILE

RUN: a run, a cross-validation, or one of its folds; several RUNs are joined, if each tests other
tiles. Predictions are enough (benchmarks/results/folds-students.tar.xz). For two whole runs there
is also `edgelung compare`. Writes JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.evaluation.intervals import intervals, paired_intervals
from edgelung.evaluation.metrics import evaluate


@dataclass(frozen=True)
class Student:
    """What a student says of the test tiles, in the order of their paths.

    Attributes:
        folders: the runs that trained it, one for each part of the tiles.
        tested: its predictions.
        part: int64 (N,), the fold or the run that tested each tile.
    """

    folders: list[RunFolder]
    tested: RunPredictions
    part: npt.NDArray[np.int64]

    @property
    def truth(self) -> list[tuple[str, str, str]]:
        """Path, class and group of each tile."""
        tested = self.tested
        labels = [tested.classes[label] for label in tested.labels]
        return list(zip(tested.paths, labels, tested.groups, strict=True))


def main() -> None:
    """Read, pair, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--about", required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    named = [text.partition("=") for text in options.runs]
    names = {name for name, _, _ in named}
    if len(names) < len(named) or not all(all(paths.split(",")) for *_, paths in named):
        raise SystemExit("expected NAME=RUN or NAME=RUN,RUN, each NAME once")
    students = {name: read([Path(path) for path in paths.split(",")]) for name, _, paths in named}
    first = next(iter(students.values()))
    for name, student in students.items():
        if (student.tested.classes, student.truth) != (first.tested.classes, first.truth):
            raise SystemExit(f"{name}: other tiles, classes or groups than the first")
    result = {
        "about": options.about,
        "tiles": len(first.tested),
        "groups": len(set(first.tested.groups)),
        "students": {
            name: row(student) | (paired(first, student) if student is not first else {})
            for name, student in students.items()
        },
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["students"], indent=1))


def read(paths: Sequence[Path]) -> Student:
    """The student of one run, or of several that test other tiles."""
    folders = [RunFolder(path) for path in paths]
    found = [folder.read_predictions("student").subset("test") for folder in folders]
    rows = [
        (path, label, group, index, values)
        for index, one in enumerate(found)
        for path, label, group, values in zip(
            one.paths, one.labels, one.groups, one.probabilities, strict=True
        )
    ]
    if not rows or any(one.classes != found[0].classes for one in found):
        raise SystemExit(f"{', '.join(map(str, paths))}: no tested tiles, or other classes")
    rows.sort(key=lambda row: row[0])
    tested, labels, groups, parts, probabilities = zip(*rows, strict=True)
    if len(set(tested)) < len(tested):
        raise SystemExit(f"{', '.join(map(str, paths))}: a tile is tested twice")
    folds = FoldsFolder(paths[0])
    if len(paths) == 1 and folds.folds_path.is_file():
        of_path = folds.read_folds()
        parts = tuple(of_path[path] for path in tested)
    predictions = RunPredictions(
        found[0].classes,
        tested,
        np.array(labels, np.int64),
        groups,
        ("test",) * len(rows),
        np.array(probabilities),
    )
    return Student(folders, predictions, np.array(parts, np.int64))


def row(student: Student) -> dict[str, Any]:
    """The figures of one student, and of the models that taught it."""
    tested = student.tested
    found = evaluate(tested.probabilities, tested.labels)
    labels = tested.probabilities.argmax(axis=1)
    bounds = intervals(labels, tested.labels, tested.groups, len(tested.classes))
    by_fold = [
        evaluate(tested.probabilities[rows], tested.labels[rows]).balanced_accuracy
        for rows in (student.part == part for part in np.unique(student.part))
    ]
    figures: dict[str, Any] = {
        "balanced_accuracy": found.balanced_accuracy,
        "interval": bounds.balanced_accuracy,
        "recall": found.recall,
        "by_fold": by_fold,
    }
    return figures | {"teachers": [taught_by(folder) for folder in student.folders]}


def taught_by(folder: RunFolder) -> dict[str, float] | None:
    """Balanced accuracy of each model that taught in a run; None if metrics.json is not kept."""
    if not folder.metrics_path.is_file():
        return None
    models = folder.read_metrics().all_models
    return {
        name: model.test.balanced_accuracy for name, model in models.items() if name != "student"
    }


def paired(first: Student, student: Student) -> dict[str, Any]:
    """How a student differs from the first one."""
    one, other = first.tested, student.tested
    found = [evaluate(part.probabilities, one.labels).balanced_accuracy for part in (one, other)]
    labels = [part.probabilities.argmax(axis=1) for part in (one, other)]
    pair = paired_intervals(*labels, one.labels, one.groups, len(one.classes))
    return {
        "difference": found[1] - found[0],
        "difference_interval": pair.balanced_accuracy,
    }


if __name__ == "__main__":
    main()
