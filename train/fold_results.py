"""Results of a cross-validation: the tests of its folds joined to one, with metrics and a page."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, structs

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import FoldMetrics, ModelMetrics, RunFolder, RunMetrics, SplitRow
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write
from edgelung.evaluation.concerns import run_concerns
from edgelung.evaluation.metrics import evaluate
from edgelung.report.pages import folds_page
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.recipe import validate_recipe
from edgelung.train.results import measure_test, mistake_pictures
from edgelung.train.tiles import read_training_tile


def write_results(data: Path, folder: FoldsFolder) -> None:
    """Join the tests of all folds: predictions.csv of each model, the page, metrics.json.

    Raises EdgelungError if a fold tested other tiles than folds.csv says.
    """
    config, rows, fold_of = folder.read_config(), folder.read_split(), folder.read_folds()
    runs = folder.fold_runs()
    metrics = [run.read_metrics() for run in runs]
    models, folds = {}, {}
    for role in metrics[0].all_models:
        of_role = [one.all_models[role] for one in metrics]
        parts = [run.read_predictions(role) for run in runs]
        _check_tests(runs, parts, fold_of)
        pooled = _join([part.subset("test") for part in parts], rows)
        models[role] = _pooled_metrics(of_role, parts, pooled, fold_of)
        folds[role] = [_fold_metrics(number, one) for number, one in enumerate(of_role, 1)]
        folder.model_folder(role).mkdir(parents=True, exist_ok=True)
        folder.write_predictions(pooled, role)
    members = {
        role.removeprefix("teacher/"): one
        for role, one in models.items()
        if role.startswith("teacher/")
    }
    whole = RunMetrics(
        classes=metrics[0].classes,
        teacher=models.get("teacher", UNSET),
        baseline=models.get("baseline", UNSET),
        student=models["student"],
        unrepeatable=next((one.unrepeatable for one in metrics if one.unrepeatable), None),
        folds=folds,
        members=members or UNSET,
    )
    whole = structs.replace(whole, concerns=run_concerns(whole, config.counts))
    recipe = validate_recipe(config.recipe, str(folder.config_path))
    spec = ReaderSpec(size=recipe.student.size)
    student = folder.read_predictions()

    def read(row: int) -> npt.NDArray[np.uint8]:
        return read_training_tile(data / student.paths[row], spec)

    with atomic_write(folder.report_path, "w", encoding="utf-8") as file:
        file.write(folds_page(folder, whole, mistake_pictures(student, read)))
    folder.write_metrics(whole)  # last: its presence means finished


def _check_tests(
    runs: Sequence[RunFolder], parts: Sequence[RunPredictions], fold_of: Mapping[str, int]
) -> None:
    for number, (run, part) in enumerate(zip(runs, parts, strict=True), 1):
        tested = sorted(part.subset("test").paths)
        if tested != sorted(path for path, fold in fold_of.items() if fold == number):
            raise EdgelungError(
                f"{run.path} did not test the tiles that folds.csv names for fold {number}; "
                "restore the folder or start anew"
            )


def _join(tests: Sequence[RunPredictions], rows: Sequence[SplitRow]) -> RunPredictions:
    """The tests of all folds as one, in the order of `rows`."""
    place = {path: i for i, path in enumerate(path for test in tests for path in test.paths)}
    order = [place[row.path] for row in rows]
    classes = tests[0].classes
    return RunPredictions(
        classes=classes,
        paths=tuple(row.path for row in rows),
        labels=np.array([classes.index(row.label) for row in rows], np.int64),
        groups=tuple(row.group for row in rows),
        subsets=("test",) * len(rows),
        probabilities=np.concatenate([test.probabilities for test in tests])[order],
    )


def _pooled_metrics(
    models: Sequence[ModelMetrics],
    parts: Sequence[RunPredictions],
    pooled: RunPredictions,
    fold_of: Mapping[str, int],
) -> ModelMetrics:
    """Metrics of a role over all folds, from what its K models predicted."""
    validations = [part.subset("val") for part in parts]
    temperatures = [models[fold_of[path] - 1].temperature for path in pooled.paths]
    return ModelMetrics(
        model=models[0].model,
        temperature=statistics.median(model.temperature for model in models),
        val=evaluate(
            np.concatenate([one.probabilities for one in validations]),
            np.concatenate([one.labels for one in validations]),
        ),
        test=measure_test(
            pooled.probabilities,
            pooled.labels,
            pooled.groups,
            np.array(temperatures, np.float64)[:, None],
        ),
    )


def _fold_metrics(number: int, model: ModelMetrics) -> FoldMetrics:
    test = model.test
    assert test.accuracy is not None
    assert test.balanced_accuracy is not None
    return FoldMetrics(
        fold=number,
        tiles=test.tiles,
        groups=test.groups,
        accuracy=test.accuracy,
        balanced_accuracy=test.balanced_accuracy,
        temperature=model.temperature,
    )
