"""What a cross-validation says about the recipe of a bundle, for bundle.json and the model card."""

from collections.abc import Sequence
from pathlib import Path

from msgspec import UNSET

from edgelung.artifacts.folds import opened_folds
from edgelung.artifacts.manifest import CrossValidation
from edgelung.artifacts.results import Estimate
from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.core.typed_json import Json

DESCRIPTIVE = ("description", "seed")  # fields of a recipe that do not change what it is worth


def read_cross_validation(folder: Path, run: RunFolder, classes: Sequence[str]) -> CrossValidation:
    """The figures of the student in a finished cross-validation.

    Args:
        folder: what `edgelung train --folds` wrote.
        run: the bundle's run; another recipe or other tiles are allowed and said.
        classes: of the bundle.

    Raises:
        EdgelungError: if it is no finished cross-validation, or has other classes.
    """
    folds = opened_folds(folder)
    if folds is None or not folds.is_finished:
        raise EdgelungError(
            f"--cross-validation {folder} is no finished cross-validation; expected a folder that "
            "`edgelung train --folds` completed"
        )
    config, metrics = folds.read_config(), folds.read_metrics()
    if tuple(metrics.classes) != tuple(classes):
        raise EdgelungError(
            f"--cross-validation {folder} has the classes {', '.join(metrics.classes)}; "
            f"expected those of the run: {', '.join(classes)}"
        )
    if config.folds < 2 or metrics.student is UNSET or not metrics.student.test.tiles > 0:
        raise EdgelungError(
            f"--cross-validation {folder} has no folds or no student; train it again"
        )
    test = metrics.student.test
    return CrossValidation(
        recipe=str(config.recipe.get("description", "")),
        same_recipe=_content(config.recipe) == _content(run.read_config().recipe),
        same_tiles=_tiles(folds) == _tiles(run),
        folds=config.folds,
        tiles=test.tiles,
        groups=test.groups,
        accuracy=Estimate(value=test.accuracy, interval=test.intervals.accuracy),
        balanced_accuracy=Estimate(
            value=test.balanced_accuracy, interval=test.intervals.balanced_accuracy
        ),
    )


def _tiles(run: RunFolder) -> set[str]:
    """SHA-256 of all tiles of a run."""
    return {row.sha256 for row in run.read_split()}


def _content(recipe: dict[str, Json]) -> dict[str, Json]:
    content = {key: value for key, value in recipe.items() if key not in DESCRIPTIVE}
    student = content.get("student")
    if isinstance(student, dict) and not student.get("exits"):
        # Runs of an older edgelung do not have these fields.
        kept = {key: v for key, v in student.items() if key not in ("exits", "exit_weight")}
        content["student"] = kept
    return content
