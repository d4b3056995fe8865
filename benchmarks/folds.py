"""What a cross-validation says: figures, errors of each group, coverage of prediction sets.

    edgelung train TILES --groups groups.csv --recipe quick --folds 5 --out FOLDS
    python benchmarks/folds.py FOLDS [--json FILE] [--csv FILE]

The prediction sets are those that `edgelung export` would write into a bundle of each fold: the
temperature and the level come from the validation groups of the fold. Coverage is counted on the
tiles that the fold tests and pooled over folds, so every group counts once. Writes JSON and a CSV
with what was predicted for every tile.

results/folds-quick.tar.xz holds the folders of the five folds of `quick`, without weights: enough
for this script, for `teachers.py` and for `edgelung export --cross-validation`.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.typed_json import plain
from edgelung.evaluation.known import set_level
from edgelung.evaluation.metrics import at_temperature, fit_temperature
from edgelung.evaluation.shares import share_of
from edgelung.export.known import COVERAGES

RESULTS = Path(__file__).parent / "results"
Floats = npt.NDArray[np.float64]


def main() -> None:
    """Read, count, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folds", type=Path)
    parser.add_argument("--json", type=Path, default=RESULTS / "folds-quick.json")
    parser.add_argument("--csv", type=Path, default=RESULTS / "folds-quick.csv")
    options = parser.parse_args()
    folder = FoldsFolder(options.folds)
    config = folder.read_config()
    parts = [run.read_predictions() for run in folder.fold_runs()]
    student = folder.read_predictions()
    result = {
        "recipe": config.recipe,
        "data": {"tiles": len(student), "groups": len(set(student.groups)), "made": config.groups},
        "split_sha256": config.split_sha256,
        "precision": config.precision,
        "metrics": plain(folder.read_metrics()),
        "minutes_of_each_fold": [
            round(sum(record.seconds for record in run.read_history()) / 60, 1)
            for run in folder.fold_runs()
        ],
        "groups": group_table(student),
        "prediction_sets": {
            f"{coverage:g}": coverage_of_sets(parts, coverage) for coverage in COVERAGES
        },
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    write_predictions(options.csv, folder, student)
    for name, found in result["prediction_sets"].items():
        print(name, json.dumps(found))


def group_table(tiles: RunPredictions) -> list[dict[str, Any]]:
    """Tiles and errors of each group with an error, the most errors first."""
    wrong = tiles.probabilities.argmax(axis=1) != tiles.labels
    groups = np.array(tiles.groups)
    rows = []
    for name in np.unique(groups[wrong]):
        own = groups == name
        label = tiles.classes[tiles.labels[own][0]]
        rows.append({"group": str(name), "class": label, "tiles": int(own.sum())})
        rows[-1]["wrong"] = int(wrong[own].sum())
    return sorted(rows, key=lambda row: (-row["wrong"], row["group"]))


def coverage_of_sets(parts: Sequence[RunPredictions], coverage: float) -> dict[str, Any]:
    """Coverage of the sets over the tests of all folds, and their sizes."""
    covered, sizes, groups, levels = [], [], [], []
    for part in parts:
        val, test = part.subset("val"), part.subset("test")
        logits = np.log(np.maximum(val.probabilities, 1e-30))
        temperature = fit_temperature(logits, val.labels)
        level = set_level(of_truth(val, temperature), val.groups, coverage)
        scaled = at_temperature(test.probabilities, temperature)
        least = np.minimum(level, scaled.max(axis=1))  # never empty
        covered.append(of_truth(test, temperature) >= least)
        sizes.append((scaled >= least[:, None]).sum(axis=1))
        groups += test.groups
        levels.append(level)
    size = np.concatenate(sizes)
    return {
        "coverage": plain(share_of(np.concatenate(covered), groups)),
        "by_fold": [
            share_of(one, part.subset("test").groups).share
            for one, part in zip(covered, parts, strict=True)
        ],
        "mean_size": float(size.mean()),
        "share_of_sizes": {str(n): float((size == n).mean()) for n in np.unique(size)},
        "levels": levels,
    }


def of_truth(tiles: RunPredictions, temperature: float) -> Floats:
    """The probability of each tile's own class, (N,)."""
    probabilities: Floats = at_temperature(tiles.probabilities, temperature)
    return probabilities[np.arange(len(tiles)), tiles.labels]


def write_predictions(path: Path, folder: FoldsFolder, student: RunPredictions) -> None:
    """The fold, the group and the probabilities of student and teacher for every tile."""
    fold_of, teacher = folder.read_folds(), folder.read_predictions("teacher")
    assert teacher.paths == student.paths
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [f"{role} {name}" for role in ("student", "teacher") for name in student.classes]
        writer.writerow(["path", "class", "group", "fold", *names])
        for row, tile in enumerate(student.paths):
            values = [*student.probabilities[row], *teacher.probabilities[row]]
            label = student.classes[student.labels[row]]
            facts = [tile, label, student.groups[row], fold_of[tile]]
            writer.writerow([*facts, *(f"{value:.5f}" for value in values)])


if __name__ == "__main__":
    main()
