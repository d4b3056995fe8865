"""Runs side by side: the paper's Table II, paired where models answered for the same tiles."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelung.artifacts.run import CONFIG, METRICS, ROLES, SPLIT, fewest_test_groups, role_folder
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.intervals import paired_intervals
from edgelung.evaluation.metrics import Labels

METRIC_NAMES = (
    *("tiles", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall"),
    *("macro_f1", "roc_auc", "expected_calibration_error", "intervals"),
)

Answers = dict[str, tuple[str, str, str]]  # path → truth, group, label
Tiles = set[tuple[str, str, str]]  # path, truth, SHA-256: names repeat from set to set


def compare_runs(runs: Sequence[Path]) -> dict[str, Any]:
    """Test metrics of every model of the runs, in their order; each against one reference.

    The reference is the student of the first run, or for models on other tiles the first model
    listed that answered for exactly those. Raises EdgelungError for a folder that is no finished
    run.
    """
    models: list[dict[str, Any]] = []
    answers: list[Answers] = []
    tiles: list[Tiles] = []
    names = _names(runs)
    for run in runs:
        config, metrics = _json(run, CONFIG), _json(run, METRICS)
        hashes = _hashes(run / SPLIT)
        if "student" not in metrics:
            raise EdgelungError(f"{run / METRICS} names no student; train it again")
        for role in (role for role in ROLES if role in metrics):
            try:
                test = metrics[role]["test"]
                figures = {name: test[name] for name in METRIC_NAMES}
                about = {"model": metrics[role]["model"], "split": config["split"]}
                about["fewest_groups"] = fewest_test_groups(config)
            except (KeyError, TypeError) as error:
                raise EdgelungError(
                    f"{run} does not hold {error} of the {role}: it was written by an older "
                    "edgelung, or edited; train it again"
                ) from error
            models.append({"run": names[run], "role": role, **about, **figures})
            own = _answers(role_folder(run, role) / "predictions.csv")
            answers.append(own)
            tiles.append({(path, row[0], hashes.get(path, "")) for path, row in own.items()})
    first_student = next(i for i, model in enumerate(models) if model["role"] == "student")
    for i, model in enumerate(models):
        other = next(j for j in (first_student, *range(i + 1)) if tiles[j] == tiles[i])
        if other == i:
            model["against"] = None
            continue
        reference = models[other]
        model["against"] = f"{reference['run']}: {reference['role']} {reference['model']}"
        model["difference"] = model["balanced_accuracy"] - reference["balanced_accuracy"]
        model["difference_interval"] = _paired(answers[other], answers[i])
    return {"models": models}


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """Each run by its folder's name, or by its path where another has that name too."""
    names = Counter(run.name for run in runs)
    return {run: run.name if run.name and names[run.name] == 1 else str(run) for run in runs}


def _paired(reference: Answers, own: Answers) -> tuple[float, float]:
    """The interval of own − reference in balanced accuracy."""
    paths = sorted(own)
    classes = sorted({answers[p][k] for answers in (own, reference) for p in paths for k in (0, 2)})

    def numbers(answers: Answers, place: int) -> Labels:
        return np.array([classes.index(answers[path][place]) for path in paths], np.int64)

    groups = [own[path][1] for path in paths]
    first, second = numbers(reference, 2), numbers(own, 2)
    found = paired_intervals(first, second, numbers(own, 0), groups, len(classes))
    return found["balanced_accuracy"]


def _answers(path: Path) -> Answers:
    found: Answers = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["subset"] == "test":
                    shares = {k[2:]: float(v) for k, v in row.items() if k.startswith("p_")}
                    label = max(shares, key=shares.__getitem__)
                    found[row["path"]] = (row["class"], row["group"], label)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise EdgelungError(f"cannot read the predictions in {path}: {error}") from error
    return found


def _hashes(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["path"]: row["sha256"] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError) as error:
        raise EdgelungError(f"cannot read the split {path}: {error}") from error


def _json(run: Path, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EdgelungError(
            f"{run} is no finished run: cannot read its {name} ({error}); expected what "
            "`edgelung train --out` wrote"
        ) from error
    return found
