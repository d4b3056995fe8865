"""Results of a run: metrics with intervals, predictions per tile, pictures for the report."""

import numpy as np
import numpy.typing as npt
import torch
from msgspec import UNSET, structs

from edgelung.artifacts.results import ModelTest
from edgelung.artifacts.run import ModelMetrics, RunMetrics
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.terminal import progress as progress_bar
from edgelung.evaluation.intervals import intervals
from edgelung.evaluation.metrics import (
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

SHOWN_AUGMENTED, SHOWN_TILES = 9, 12  # in the report; the paper's Fig. 10 shows nine
SHOWN_OF_GROUP = 5

Probabilities = npt.NDArray[np.float32]


def evaluate_models(run: Run, models: dict[str, Model]) -> RunMetrics:
    """Validation and test metrics of each model in FP32; writes each one's predictions.csv."""
    context = run.context.in_fp32()
    metrics: dict[str, ModelMetrics] = {}
    for role, model in models.items():
        schedule = run.recipe.schedule(role)
        probabilities: dict[str, Probabilities] = {}
        for subset in ("val", "test"):
            with progress_bar(f"{role} on {subset}", len(run.tiles.subsets[subset])) as advance:
                probabilities[subset] = predict(
                    model, run.tiles, subset, context, schedule.size, advance
                )
        metrics[role] = _metrics(run, schedule.model, probabilities)
        if context.is_main:
            run.folder.write_predictions(_predictions(run, probabilities), role)
    return RunMetrics(
        classes=run.classes,
        teacher=metrics.get("teacher", UNSET),
        baseline=metrics.get("baseline", UNSET),
        student=metrics["student"],
    )


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
    scaled = expected_calibration_error(at_temperature(test, temperature), labels["test"])
    return ModelMetrics(
        model=model,
        temperature=temperature,
        val=evaluate(val, labels["val"]),
        test=ModelTest(
            **structs.asdict(evaluate(test, labels["test"])),
            groups=len(set(groups["test"])),
            intervals=bounds["test"],
            expected_calibration_error_at_temperature=scaled,
        ),
        val_intervals=bounds["val"],
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
    tiles = run.tiles.store.batch(augmented)  # (9, 3, H, W)
    generator = torch.Generator().manual_seed(run.recipe.seed)
    views = augment(tiles, tiles.shape[-1], run.recipe.augment, generator)
    pixels = (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    predictions = run.folder.read_predictions().subset("test")
    probabilities = predictions.probabilities  # (N, classes)
    truth = run.tiles.labels[test].numpy()
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != truth)
    mistakes = wrong[np.argsort(-probabilities[wrong].max(axis=1))]

    def describe(index: int) -> TilePicture:
        label = int(probabilities[index].argmax())
        tile = run.tiles.store.batch(test[[index]])[0].permute(1, 2, 0).numpy()
        return TilePicture(
            picture=picture(tile),
            path=predictions.paths[index],
            truth=run.classes[predictions.labels[index]],
            label=run.classes[label],
            confidence=float(probabilities[index, label]),
        )

    sample = rng.choice(len(test), min(SHOWN_TILES, len(test)), replace=False)
    return RunPictures(
        augmented=[
            TilePicture(picture(view), run.split[index].tile.label)
            for view, index in zip(pixels, augmented, strict=True)
        ],
        sample=[describe(index) for index in sample],
        mistakes=[describe(index) for index in mistakes[:SHOWN_TILES]],
        by_group={
            one.group: [describe(row) for row in one.wrong[:SHOWN_OF_GROUP]]
            for one in errors_by_group(predictions)[:SHOWN_GROUPS]
        },
    )
