"""What a run comes to: metrics with intervals, predictions by tile, pictures for the report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from msgspec import UNSET, structs

from edgelung.artifacts.results import Metrics, ModelTest
from edgelung.artifacts.run import ROLES, ModelMetrics, RunFolder, RunMetrics
from edgelung.artifacts.run_predictions import RunPredictions
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
from edgelung.train.distributed import Machine
from edgelung.train.models import Model
from edgelung.train.recipe import Recipe
from edgelung.train.split import SplitTile
from edgelung.train.trainer import Data, predict

SHOWN_AUGMENTED, SHOWN_TILES = 9, 12  # in the report; nine as in the paper's Fig. 10

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """A run under way: what was asked for, on which tiles, in which folder."""

    folder: Path
    recipe: Recipe
    machine: Machine
    split: Sequence[SplitTile]
    classes: list[str]
    data: Data
    say: Callable[[str], None]

    @property
    def roles(self) -> list[str]:
        """The models to train, in order; without distillation nobody needs a teacher."""
        idle = {"teacher"} if self.recipe.distill.mode == "none" else set()
        return [r for r in ROLES if getattr(self.recipe, r) is not None and r not in idle]


def evaluate_models(run: Run, models: dict[str, Model]) -> RunMetrics:
    """Validation and test metrics of each model in FP32; writes each one's predictions.csv."""
    device, rank, processes = run.machine.device, run.machine.rank, run.machine.processes
    exact = Machine(device, "fp32", rank, processes)
    metrics: dict[str, ModelMetrics] = {}
    for role, model in models.items():
        schedule = getattr(run.recipe, role)
        found: dict[str, Probabilities] = {}
        for subset in ("val", "test"):
            with progress_bar(f"{role} on {subset}", len(run.data.subsets[subset])) as advance:
                found[subset] = predict(model, run.data, subset, exact, schedule.size, advance)
        metrics[role] = _metrics(run, schedule.model, found)
        if run.machine.first:
            RunFolder(run.folder).write_predictions(_predictions(run, found), role)
    return RunMetrics(
        classes=run.classes,
        teacher=metrics.get("teacher", UNSET),
        baseline=metrics.get("baseline", UNSET),
        student=metrics["student"],
    )


def _metrics(run: Run, model: str, found: dict[str, Probabilities]) -> ModelMetrics:
    """Validation and test metrics of one model.

    Test metrics include intervals, and the calibration error at the temperature that was fitted on
    the validation tiles.
    """
    truth = {name: run.data.labels[run.data.subsets[name]].numpy() for name in found}
    metrics: dict[str, Metrics] = {name: evaluate(found[name], truth[name]) for name in found}
    groups = [run.split[index].group for index in run.data.subsets["test"]]
    test, labels = found["test"], truth["test"]
    temperature = fit_temperature(np.log(np.maximum(found["val"], 1e-12)), truth["val"])
    scaled = expected_calibration_error(at_temperature(test, temperature), labels)
    return ModelMetrics(
        model=model,
        temperature=temperature,
        val=metrics["val"],
        test=ModelTest(
            **structs.asdict(metrics["test"]),
            groups=len(set(groups)),
            intervals=intervals(test.argmax(axis=1), labels, groups, len(run.classes)),
            expected_calibration_error_at_temperature=scaled,
        ),
    )


def _predictions(run: Run, found: dict[str, Probabilities]) -> RunPredictions:
    """Probabilities by subset (N, classes) as the rows of one table."""
    rows = [(subset, index) for subset in found for index in run.data.subsets[subset]]
    tiles = [run.split[index] for _, index in rows]
    return RunPredictions(
        classes=tuple(run.classes),
        paths=tuple(tile.tile.path for tile in tiles),
        labels=np.array([run.classes.index(tile.tile.label) for tile in tiles], np.int64),
        groups=tuple(tile.group for tile in tiles),
        subsets=tuple(subset for subset, _ in rows),
        probabilities=np.concatenate(list(found.values())).astype(np.float64),
    )


def run_pictures(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Pictures with captions: augmented training tiles (Fig. 10), random test tiles (Fig. 15).

    And the student's mistakes on the test set, the surest first.
    """
    rng = np.random.default_rng(run.recipe.seed)
    train, test = run.data.subsets["train"], run.data.subsets["test"]
    chosen = rng.choice(train, min(SHOWN_AUGMENTED, len(train)), replace=False)
    tiles = run.data.store.batch(chosen)  # (9, 3, H, W)
    generator = torch.Generator().manual_seed(run.recipe.seed)
    views = augment(tiles, tiles.shape[-1], run.recipe.augment, generator)
    pixels = (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    predictions = RunFolder(run.folder).read_predictions().subset("test")
    found = predictions.probabilities
    truth = run.data.labels[test].numpy()
    wrong = np.flatnonzero(found.argmax(axis=1) != truth)
    surest = wrong[np.argsort(-found[wrong].max(axis=1))]

    def shown(place: int) -> dict[str, Any]:
        label = int(found[place].argmax())
        tile = run.data.store.batch(test[[place]])[0].permute(1, 2, 0).numpy()
        return {
            "picture": picture(tile),
            "path": predictions.paths[place],
            "truth": run.classes[predictions.labels[place]],
            "label": run.classes[label],
            "confidence": float(found[place, label]),
        }

    sample = rng.choice(len(test), min(SHOWN_TILES, len(test)), replace=False)
    return {
        "augmented": [
            {"picture": picture(view), "truth": run.split[index].tile.label}
            for view, index in zip(pixels, chosen, strict=True)
        ],
        "sample": [shown(place) for place in sample],
        "mistakes": [shown(place) for place in surest[:SHOWN_TILES]],
    }
