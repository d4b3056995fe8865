"""Sentences on where a run's first weights and features come from, where that is not plain.

They travel with the run into its page, the bundle and the model card: a student is made from all
that taught it.
"""

from pathlib import Path

from edgelung.core.files import sha256_file
from edgelung.train.earlier_runs import earlier_runs
from edgelung.train.recipe import Recipe, Student
from edgelung.train.tile_features import described_model
from edgelung.train.weights import PYPI, architecture_of
from edgelung.train.weights_pypi import PYPI_WEIGHTS


def origins(recipe: Recipe) -> list[str]:
    """One sentence for each start of doubtful origin, and one for tile features.

    Weights of an earlier run bring the sentences of that run.
    """
    sentences = []
    for role in recipe.roles:
        schedule = recipe.schedule(role)
        model = architecture_of(schedule.model)
        if isinstance(schedule, Student) and schedule.init == "select":
            model = architecture_of(schedule.source)
        if schedule.weights == PYPI and (doubt := PYPI_WEIGHTS[model].doubt):
            who = "student" if role == "student" else role.partition("/")[0]
            sentences.append(
                f"The first weights of {model} ({who}) are of uncertain origin: {doubt}."
            )
    if recipe.learns_from_features:
        sentences.append(features_origin(Path(recipe.teacher.features)))
    for run in earlier_runs(recipe).values():
        sentences += run.read_config().origins
    return list(dict.fromkeys(sentences))


def features_origin(path: Path) -> str:
    """The sentence on a file of tile features; it names the file's hash."""
    model = described_model(path)
    made = f"made by {model}, as the file says" if model else "the file does not name the model"
    return (
        f"The teacher's soft labels come from the tile features in {path.name} (SHA-256 "
        f"{sha256_file(path)[:16]}…; {made}). The licence of the model that made them may hold "
        "for the student too."
    )
