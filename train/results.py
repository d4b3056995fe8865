"""Results of a run: metrics with intervals, predictions per tile, pictures for the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from msgspec import UNSET, structs
from torch import Tensor

from edgelung.artifacts.results import ModelTest
from edgelung.artifacts.run import ModelMetrics, RunMetrics
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.terminal import progress as progress_bar
from edgelung.evaluation.intervals import intervals
from edgelung.evaluation.metrics import (
    Floats,
    Labels,
    at_temperature,
    evaluate,
    expected_calibration_error,
    fit_temperature,
)
from edgelung.report.errors import SHOWN_GROUPS, errors_by_group
from edgelung.report.figures import RunPictures, TilePicture, picture
from edgelung.train.augment import augment
from edgelung.train.models import Model
from edgelung.train.prediction import predict
from edgelung.train.prepare import Run
from edgelung.train.teachers import average, softmax

SHOWN_AUGMENTED, SHOWN_TILES = 9, 12  # in the report; the paper's Fig. 10 shows nine
SHOWN_OF_GROUP = 5
EVALUATED = ("val", "test")

Probabilities = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def evaluate_models(
    run: Run, models: dict[str, Model], soft_labels: Tensor | None = None
) -> RunMetrics:
    """Validation and test metrics of each model in FP32; writes each one's predictions.csv.

    A teacher of several models, or of `soft_labels` (logits of all tiles), is measured as what it
    teaches.
    """
    probabilities = {role: _predict(run, role, model) for role, model in models.items()}
    names = {role: run.recipe.schedule(role).model for role in models}
    teachers = [probabilities[role] for role in run.recipe.teachers]
    if soft_labels is not None:
        logits = soft_labels.numpy()
        names["teacher"] = f"features of {Path(run.recipe.teacher.features).name}"
        probabilities["teacher"] = {
            name: softmax(logits[run.tiles.subsets[name]]) for name in EVALUATED
        }
    elif run.recipe.averages:
        names["teacher"] = " + ".join(names[role] for role in run.recipe.teachers)
        probabilities["teacher"] = {
            name: average([part[name] for part in teachers]) for name in EVALUATED
        }
    metrics = {role: _metrics(run, names[role], found) for role, found in probabilities.items()}
    if run.context.is_main:
        for role, found in probabilities.items():
            run.folder.write_predictions(_predictions(run, found), role)
    members = {
        member.name: metrics[role]
        for role, member in run.recipe.teachers.items()
        if role != "teacher"
    }
    return RunMetrics(
        classes=run.classes,
        teacher=metrics.get("teacher", UNSET),
        baseline=metrics.get("baseline", UNSET),
        student=metrics["student"],
        members=members or UNSET,
    )


def _predict(run: Run, role: str, model: Model) -> dict[str, Probabilities]:
    """Probabilities (N, classes) of the validation and the test tiles, in FP32."""
    found: dict[str, Probabilities] = {}
    for subset in EVALUATED:
        with progress_bar(f"{role} on {subset}", len(run.tiles.subsets[subset])) as advance:
            size, context = run.recipe.schedule(role).size, run.context.in_fp32()
            found[subset] = predict(model, run.tiles, subset, context, size, advance)
    return found


def _metrics(run: Run, model: str, probabilities: dict[str, Probabilities]) -> ModelMetrics:
    """Validation and test metrics of one model.

    Both have bootstrap intervals. Test metrics include the calibration error at the temperature
    that was fitted on the validation tiles.
    """
    subsets = run.tiles.subsets
    labels = {name: run.tiles.labels[subsets[name]].numpy() for name in probabilities}
    groups = {name: [run.split[i].group for i in subsets[name]] for name in probabilities}
    bounds = {
        name: intervals(found.argmax(axis=1), labels[name], groups[name], len(run.classes))
        for name, found in probabilities.items()
    }
    val, test = probabilities["val"], probabilities["test"]
    temperature = fit_temperature(np.log(np.maximum(val, 1e-12)), labels["val"])
    return ModelMetrics(
        model=model,
        temperature=temperature,
        val=evaluate(val, labels["val"]),
        test=measure_test(test, labels["test"], groups["test"], temperature),
        val_intervals=bounds["val"],
    )


def measure_test(
    probabilities: Floats, labels: Labels, groups: Sequence[str], temperature: float | Floats
) -> ModelTest:
    """Metrics of test tiles with intervals over their groups.

    Args:
        probabilities: (N, classes).
        labels: int64 (N,), class indices.
        groups: source of each tile, length N.
        temperature: at which the calibration error is measured; (N, 1) for one per tile.
    """
    scaled = expected_calibration_error(at_temperature(probabilities, temperature), labels)
    classes = probabilities.shape[1]
    return ModelTest(
        **structs.asdict(evaluate(probabilities, labels)),
        groups=len(set(groups)),
        intervals=intervals(probabilities.argmax(axis=1), labels, groups, classes),
        expected_calibration_error_at_temperature=scaled,
    )


def _predictions(run: Run, probabilities: dict[str, Probabilities]) -> RunPredictions:
    """The probabilities (N, classes) of each subset as the rows of one table."""
    rows = [(name, index) for name in probabilities for index in run.tiles.subsets[name]]
    tiles = [run.split[index] for _, index in rows]
    return RunPredictions(
        classes=tuple(run.classes),
        paths=tuple(tile.tile.path for tile in tiles),
        labels=np.array([run.classes.index(tile.tile.label) for tile in tiles], np.int64),
        groups=tuple(tile.group for tile in tiles),
        subsets=tuple(name for name, _ in rows),
        probabilities=np.concatenate(list(probabilities.values())).astype(np.float64),
    )


def run_pictures(run: Run) -> RunPictures:
    """Pictures with captions: augmented training tiles (Fig. 10), random test tiles (Fig. 15), and
    the student's mistakes on the test set, the most confident first and by group.
    """
    rng = np.random.default_rng(run.recipe.seed)
    train, test = run.tiles.subsets["train"], run.tiles.subsets["test"]
    augmented = rng.choice(train, min(SHOWN_AUGMENTED, len(train)), replace=False)
    tiles = run.tiles.store.batch(augmented).cpu()  # (9, 3, H, W)
    generator = torch.Generator().manual_seed(run.recipe.seed)
    views = augment(tiles, tiles.shape[-1], run.recipe.augment, generator)
    pixels = (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def read(row: int) -> Pixels:
        return run.tiles.store.batch(test[[row]])[0].permute(1, 2, 0).cpu().numpy()

    predictions = run.folder.read_predictions().subset("test")
    sample = rng.choice(len(test), min(SHOWN_TILES, len(test)), replace=False)
    return replace(
        mistake_pictures(predictions, read),
        augmented=[
            TilePicture(picture(view), run.split[index].tile.label)
            for view, index in zip(pixels, augmented, strict=True)
        ],
        sample=[_predicted_picture(predictions, index, read) for index in sample],
    )


def mistake_pictures(predictions: RunPredictions, read: Callable[[int], Pixels]) -> RunPictures:
    """Pictures of wrong tiles: the most confident first, and by group.

    `read` returns the pixels of the tile in a row of the predictions: uint8 (H, W, 3).
    """
    probabilities = predictions.probabilities  # (N, classes)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != predictions.labels)
    mistakes = wrong[np.argsort(-probabilities[wrong].max(axis=1))]

    def describe(row: int) -> TilePicture:
        return _predicted_picture(predictions, row, read)

    return RunPictures(
        augmented=[],
        sample=[],
        mistakes=[describe(row) for row in mistakes[:SHOWN_TILES]],
        by_group={
            one.group: [describe(row) for row in one.wrong[:SHOWN_OF_GROUP]]
            for one in errors_by_group(predictions)[:SHOWN_GROUPS]
        },
    )


def _predicted_picture(
    predictions: RunPredictions, row: int, read: Callable[[int], Pixels]
) -> TilePicture:
    label = int(predictions.probabilities[row].argmax())
    return TilePicture(
        picture=picture(read(row)),
        path=predictions.paths[row],
        truth=predictions.classes[predictions.labels[row]],
        label=predictions.classes[label],
        confidence=float(predictions.probabilities[row, label]),
    )
