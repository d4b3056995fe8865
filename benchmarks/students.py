"""Train other students from the teachers of a cross-validation, on the same folds.

    edgelung train TILES --groups groups.csv --recipe quick --folds 3 --out folds/quick
    python benchmarks/students.py TILES folds/quick quick-exits folds/quick-exits [--set F=V …]

On the same kind of CPU, recipes that differ only in the student train the same teacher: every
random number is a function of the seed and the stage. So the teacher of each fold is copied, and
`folds/quick-exits` becomes what `edgelung train --recipe quick-exits --folds 3` would have written,
in less time. A folder that is there already is continued.

With `--teacher NAME` the students learn from one model of a teacher that has several. It stays
calibrated as for the average, so that only the other models' answers are missing.
"""

import argparse
import logging
import shutil
from pathlib import Path

import torch
from msgspec import structs

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import RunFolder
from edgelung.core.files import atomic_folder
from edgelung.core.typed_json import plain
from edgelung.train.folds import resume_folds
from edgelung.train.origins import origins
from edgelung.train.progress import Progress
from edgelung.train.recipe import Recipe, load_recipe, validate_recipe


def main() -> None:
    """Copy what is the same, train the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("source", type=Path, help="finished folds, for their teachers")
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", default="", metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.out.exists():
        recipe = load_recipe(options.recipe, options.set)
        begin(FoldsFolder(options.source), recipe, options.out, options.teacher)
    resume_folds(options.tiles, options.out)


def begin(source: FoldsFolder, recipe: Recipe, out: Path, model: str = "") -> None:
    """Write the folder of a cross-validation whose teachers are trained.

    `model`: the teacher's model that teaches, if it has several.
    """
    role = f"teacher/{model}" if model else "teacher"
    with atomic_folder(out) as path:
        folder = FoldsFolder(path)
        begin_run(source, folder, recipe, role)
        shutil.copy(source.folds_path, folder.folds_path)
        for number, run in enumerate(source.fold_runs(), 1):
            new = folder.fold(number)
            new.path.mkdir()
            begin_run(run, new, recipe, role)
            shutil.copytree(run.model_folder(role), new.model_folder("teacher"))
            epochs = [one for one in run.read_history() if one.stage == role]
            history = [structs.replace(one, stage="teacher") for one in epochs]
            progress = Progress("student", history=history)
            torch.save({"progress": plain(progress)}, new.checkpoint_path)


def begin_run(source: RunFolder, new: RunFolder, recipe: Recipe, role: str = "teacher") -> None:
    """The split of a run, and its settings with another student."""
    config = source.read_config()
    trained = validate_recipe(config.recipe, str(source.config_path))
    for part in ("seed", "augment"):
        assert getattr(recipe, part) == getattr(trained, part), f"another {part}"
    assert recipe.teachers == {"teacher": trained.teachers[role]}, "another teacher"
    assert recipe.roles == ["teacher", "student"], "no baseline"
    assert recipe.student.size == trained.student.size, "the teacher sees tiles of that size"
    ours = recipe.model_copy(update={"split": trained.split})
    shutil.copy(source.split_path, new.split_path)
    new.write_config(
        structs.replace(config, recipe=ours.model_dump(mode="json"), origins=origins(ours))
    )


if __name__ == "__main__":
    main()
