"""Earlier runs whose weights a recipe starts from: what they have learnt, and what made them."""

from collections.abc import Sequence
from pathlib import Path

from edgelung.artifacts.run import ROLES, RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.train.recipe import Recipe, validate_recipe
from edgelung.train.setting_names import setting
from edgelung.train.split import SplitTile
from edgelung.train.weights import is_file_name


def earlier_runs(recipe: Recipe) -> dict[str, RunFolder]:
    """The run folders that hold the weights of a recipe, by role.

    A copy of the weights in another place has none: nothing tells where it is from.
    """
    runs = {}
    for role in recipe.roles:
        weights = recipe.schedule(role).weights
        if is_file_name(weights) and (found := _run_of(Path(weights))):
            runs[role] = found
    return runs


def check_earlier_runs(recipe: Recipe, split: Sequence[SplitTile]) -> None:
    """Check the weights of earlier runs against the tiles of a new run.

    Raises:
        EdgelungError: a model has learnt tiles that are to validate or test it, or answers for
            other classes and is not trained any more; or files of the earlier run were changed.
    """
    judging = [row for row in split if row.subset != "train"]
    for role, run in earlier_runs(recipe).items():
        what = f"the {role} weights {recipe.schedule(role).weights}"
        try:
            learnt = _learnt(run)
        except EdgelungError as error:
            raise EdgelungError(f"{what} are of a run that cannot be read: {error}") from error
        if seen := [row for row in judging if row.tile.sha256 in learnt]:
            raise EdgelungError(
                f"{what} were trained on {len(seen)} of the {len(judging)} tiles that validate or "
                f"test this run, for example on {seen[0].tile.path}; expected weights of a run "
                "with the same split (the same --groups, --split and split.seed, no --folds), or "
                "of a run on other tiles"
            )
        if not recipe.schedule(role).epochs:
            _check_classes(recipe, role, sorted({row.tile.label for row in split}), what)


def _run_of(weights: Path) -> RunFolder | None:
    """The run that wrote a file of weights; None if it is not one that a run writes."""
    for path in _places(weights):
        for folder in list(path.parents)[:3]:  # RUN/teacher/NAME/model.safetensors
            run = RunFolder(folder)
            written = [run.weights_path(role) for role in (*ROLES, f"teacher/{path.parent.name}")]
            is_run = run.config_path.is_file() and run.split_path.is_file()
            if is_run and path in (*written, run.checkpoint_path):
                return run
    return None


def _learnt(run: RunFolder) -> set[str]:
    """SHA-256 of the tiles that trained a run, or the earlier runs that it started from."""
    config = run.read_config()
    if config.split_sha256:  # folders of edgelung 0.1 have none
        run.check_split(config)
    learnt = {row.sha256 for row in run.read_split() if row.subset == "train"}
    recipe = validate_recipe(config.recipe, str(run.config_path))
    return learnt.union(*(_learnt(earlier) for earlier in earlier_runs(recipe).values()))


def _check_classes(recipe: Recipe, role: str, classes: list[str], what: str) -> None:
    """Raise EdgelungError if a model that is not trained any more answers for other classes."""
    weights = Path(recipe.schedule(role).weights)
    for path in _places(weights):
        model = RunFolder(path.parent)  # config.json lies beside the weights
        if not model.model_config_path().is_file():
            continue
        answered = model.read_model_config().label_names
        if answered != classes:
            raise EdgelungError(
                f"{what} are for the classes {', '.join(answered)}, and {setting(role, 'epochs')} "
                f"is 0; expected weights for {', '.join(classes)}"
            )


def _places(weights: Path) -> tuple[Path, Path]:
    """Where a file of weights is: a link may lead into a run, or out of it."""
    return weights.absolute(), weights.resolve()
