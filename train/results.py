"""Results of a run: metrics with intervals, predictions per tile, pictures for the report."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgelung.artifacts.run import role_folder
from edgelung.core.files import atomic_write
from edgelung.core.terminal import progress as progress_bar
from edgelung.evaluation.intervals import intervals
from edgelung.evaluation.metrics import (
    at_temperature,
    evaluate,
    expected_calibration_error,
    fit_temperature,
)
from edgelung.report.figures import picture
from edgelung.train.augment import augment
from edgelung.train.models import Model
from edgelung.train.prediction import predict
from edgelung.train.prepare import Run

SHOWN_AUGMENTED, SHOWN_TILES = 9, 12  # in the report; the paper's Fig. 10 shows nine

Probabilities = npt.NDArray[np.float32]


def evaluate_models(run: Run, models: dict[str, Model]) -> dict[str, Any]:
    """Validation and test metrics of each model in FP32; writes each one's predictions.csv."""
    context = run.context.in_fp32()
    metrics: dict[str, Any] = {"classes": run.classes}
    for role, model in models.items():
        schedule = run.recipe.schedule(role)
        probabilities: dict[str, Probabilities] = {}
        for subset in ("val", "test"):
            with progress_bar(f"{role} on {subset}", len(run.tiles.subsets[subset])) as advance:
                probabilities[subset] = predict(
                    model, run.tiles, subset, context, schedule.size, advance
                )
        metrics[role] = {"model": schedule.model, **_metrics(run, probabilities)}
        if context.is_main:
            path = role_folder(run.folder, role) / "predictions.csv"
            _write_predictions(run, path, probabilities)
    return metrics


def _metrics(run: Run, probabilities: dict[str, Probabilities]) -> dict[str, Any]:
    """Metrics per subset. Test metrics include bootstrap intervals, and the calibration error at
    the temperature that was fitted on validation.
    """
    truth = {name: run.tiles.labels[run.tiles.subsets[name]].numpy() for name in probabilities}
    result = {name: evaluate(probabilities[name], truth[name]) for name in probabilities}
    groups = [run.split[index].group for index in run.tiles.subsets["test"]]
    test, labels = probabilities["test"], truth["test"]
    result["test"]["groups"] = len(set(groups))
    result["test"]["intervals"] = intervals(test.argmax(axis=1), labels, groups, len(run.classes))
    temperature = fit_temperature(np.log(np.maximum(probabilities["val"], 1e-12)), truth["val"])
    scaled = expected_calibration_error(at_temperature(test, temperature), labels)
    result["test"]["expected_calibration_error_at_temperature"] = scaled
    return {"temperature": temperature, **result}


def _write_predictions(run: Run, path: Path, probabilities: dict[str, Probabilities]) -> None:
    with atomic_write(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = [f"p_{name}" for name in run.classes]
        writer.writerow(["path", "class", "group", "subset", *names])
        for subset, rows in probabilities.items():
            for index, row in zip(run.tiles.subsets[subset], rows, strict=True):
                tile, group = run.split[index].tile, run.split[index].group
                shares = (f"{p:.8f}" for p in row)
                writer.writerow([tile.path, tile.label, group, subset, *shares])


def run_pictures(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Pictures with captions: augmented training tiles (Fig. 10), random test tiles (Fig. 15), and
    the student's mistakes on the test set, the most confident first.
    """
    rng = np.random.default_rng(run.recipe.seed)
    train, test = run.tiles.subsets["train"], run.tiles.subsets["test"]
    augmented = rng.choice(train, min(SHOWN_AUGMENTED, len(train)), replace=False)
    tiles = run.tiles.store.batch(augmented)  # (9, 3, H, W)
    generator = torch.Generator().manual_seed(run.recipe.seed)
    views = augment(tiles, tiles.shape[-1], run.recipe.augment, generator)
    pixels = (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    with (run.folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["subset"] == "test"]
    probabilities = np.array([[float(row[f"p_{name}"]) for name in run.classes] for row in rows])
    truth = run.tiles.labels[test].numpy()
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != truth)
    mistakes = wrong[np.argsort(-probabilities[wrong].max(axis=1))]

    def describe(index: int) -> dict[str, Any]:
        label = int(probabilities[index].argmax())
        tile = run.tiles.store.batch(test[[index]])[0].permute(1, 2, 0).numpy()
        return {
            "picture": picture(tile),
            "path": rows[index]["path"],
            "truth": rows[index]["class"],
            "label": run.classes[label],
            "confidence": float(probabilities[index, label]),
        }

    sample = rng.choice(len(test), min(SHOWN_TILES, len(test)), replace=False)
    return {
        "augmented": [
            {"picture": picture(view), "truth": run.split[index].tile.label}
            for view, index in zip(pixels, augmented, strict=True)
        ],
        "sample": [describe(index) for index in sample],
        "mistakes": [describe(index) for index in mistakes[:SHOWN_TILES]],
    }
