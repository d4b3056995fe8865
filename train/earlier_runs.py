"""Earlier runs whose weights a recipe starts from: what they have learnt, and what made them."""

from collections.abc import Sequence
from pathlib import Path

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.train.recipe import Recipe
from edgelung.train.split import SplitTile
from edgelung.train.weights import is_file_name

DEPTH = 3  # RUN/teacher/NAME/model.safetensors


def earlier_runs(recipe: Recipe) -> dict[str, RunFolder]:
    """The run folders that hold the weights of a recipe, by role; a file elsewhere has none."""
    runs = {}
    for role in recipe.roles:
        weights = recipe.schedule(role).weights
        if not is_file_name(weights):
            continue
        for folder in list(Path(weights).resolve().parents)[:DEPTH]:
            run = RunFolder(folder)
            if run.config_path.is_file() and run.split_path.is_file():
                runs[role] = run
                break
    return runs


def check_earlier_runs(recipe: Recipe, split: Sequence[SplitTile]) -> None:
    """Check the weights of earlier runs against the tiles of a new run.

    Raises:
        EdgelungError: a model has learnt tiles that are to validate or test it, or answers for
            other classes and is not trained any more.
    """
    classes = sorted({row.tile.label for row in split})
    judging = [row for row in split if row.subset != "train"]
    for role, run in earlier_runs(recipe).items():
        schedule = recipe.schedule(role)
        learnt = {row.sha256 for row in run.read_split() if row.subset == "train"}
        if seen := [row for row in judging if row.tile.sha256 in learnt]:
            raise EdgelungError(
                f"the {role} weights {schedule.weights} were trained on {len(seen)} of the "
                f"{len(judging)} tiles that validate or test this run, for example on "
                f"{seen[0].tile.path}; expected weights of a run with the same split (the same "
                "--groups, --split and split.seed, no --folds), or of a run on other tiles"
            )
        if schedule.epochs:
            continue
        answered = RunFolder(Path(schedule.weights).resolve().parent).read_model_config()
        if answered.label_names != classes:
            raise EdgelungError(
                f"the {role} weights {schedule.weights} are for the classes "
                f"{', '.join(answered.label_names)}, and {role}.epochs is 0; expected weights for "
                f"{', '.join(classes)}"
            )
