"""`edgelung train`: index, group, split, teacher, student, evidence, report."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.errors import EdgelungError
from edgelung.evidence.metrics import evaluate
from edgelung.files import atomic_folder, atomic_write, new_folder, sha256_file, write_json
from edgelung.report.pages import run_page
from edgelung.terminal import progress as progress_bar
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.audit import find_groups, group_names
from edgelung.train.fit import (
    Data,
    Machine,
    Progress,
    Stage,
    choose_machine,
    fit,
    load_progress,
    predict,
)
from edgelung.train.guidance import drop_guide
from edgelung.train.index import IndexedTile, index_tiles, read_groups
from edgelung.train.models import Model, load_saved, save_model
from edgelung.train.recipe import Recipe, validate_recipe
from edgelung.train.split import (
    SplitTile,
    join_duplicates,
    split_by_group,
    split_counts,
    write_split,
)
from edgelung.train.stages import absolute_weights, check_models, student_stage, teacher_stage
from edgelung.train.tiles import TileStore

CONFIG, SPLIT, STATE = "run.json", "split.csv", "state.pt"
Probabilities = npt.NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run under way: what was asked for, on which tiles, in which folder."""

    folder: Path
    recipe: Recipe
    machine: Machine
    split: Sequence[SplitTile]
    classes: list[str]
    data: Data
    say: Say


def train_run(
    data: Path,
    out: Path,
    recipe: Recipe | None,
    *,
    groups: Path | None = None,
    resume: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Train a teacher and a student on a folder of labelled tiles; returns metrics.json.

    With `resume`, an unfinished run in `out` goes on with its own recipe and split (`recipe` and
    `groups` must be None). Raises EdgelungError for anything a user can mend.
    """
    if resume:
        if (out / "metrics.json").is_file():
            say(f"{out} is finished already")
            finished: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
            return finished
        run = _reopen(data, out, say)
    else:
        assert recipe is not None
        run = _start(data, out, absolute_weights(recipe), groups, say)
    say(f"training on {run.machine.device.type} in {run.machine.precision}")
    standing = load_progress(out / STATE) if (out / STATE).is_file() else Progress("teacher")
    teacher = _teach(run, standing)
    student = _distill(run, standing, teacher)
    metrics = _evaluate(run, {"teacher": teacher, "student": student})
    with atomic_write(out / "report.html", "w", encoding="utf-8") as file:
        file.write(run_page(out, metrics))
    write_json(out / "metrics.json", metrics)  # last: its presence says that the run is finished
    (out / STATE).unlink(missing_ok=True)
    return metrics


def _start(data: Path, out: Path, recipe: Recipe, groups: Path | None, say: Say) -> Run:
    """Check everything that can be checked, then make the run folder."""
    new_folder(out, "run", "choose another name, or go on with it with --resume")
    machine = choose_machine(recipe.precision)
    with progress_bar("index") as advance:
        tiles = index_tiles(data, recipe.classes, advance)
    found = read_groups(groups, tiles) if groups else group_names(tiles, find_groups(data, tiles))
    names = join_duplicates(tiles, found)
    split = split_by_group(tiles, names, recipe.split, recipe.seed)
    counts = split_counts(split)
    for subset, labels in counts.items():
        parts = ", ".join(f"{n} {c['tiles']} ({c['groups']})" for n, c in labels.items())
        say(f"{subset:5} tiles (groups): {parts}")
    check_models(recipe, len(counts["train"]))
    run = _open(out, data, recipe, machine, split, say)
    config = {
        "edgelung": __version__,
        "notice": RESEARCH_USE_ONLY,
        "data": str(data.absolute()),
        "seed": recipe.seed,
        "precision": machine.precision,
        "groups": groups.name if groups else "auto: tiles that show one piece of tissue",
        "counts": counts,
        "sizes": dict(Counter(f"{t.width}x{t.height}" for t in tiles).most_common(10)),
        "recipe": recipe.model_dump(mode="json"),
    }
    with atomic_folder(out) as folder:
        write_split(folder / SPLIT, split)
        write_json(folder / CONFIG, config | {"split_sha256": sha256_file(folder / SPLIT)})
    return run


def _reopen(data: Path, out: Path, say: Say) -> Run:
    """Open an unfinished run, on the tiles and in the precision that it began with."""
    try:
        config = json.loads((out / CONFIG).read_text("utf-8"))
        recipe = validate_recipe(config["recipe"], str(out / CONFIG))
        machine = choose_machine(config["precision"])
        edited = sha256_file(out / SPLIT) != config["split_sha256"]
        with (out / SPLIT).open(encoding="utf-8", newline="") as file:
            known = {row["path"]: row for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgelungError(
            f"{out} holds no run to go on with ({error}); start one without --resume"
        ) from error
    if edited:
        raise EdgelungError(f"{out / SPLIT} was edited since the run began; start anew")
    tiles = index_tiles(data, recipe.classes)
    changed = [t.path for t in tiles if known.get(t.path, {}).get("sha256") != t.sha256]
    if changed or len(tiles) != len(known):
        what = changed[0] if changed else f"{len(known) - len(tiles)} tiles are gone"
        raise EdgelungError(
            f"the tiles in {data} are not those that the run was split on ({what}); "
            "restore them or start anew"
        )
    split = [SplitTile(t, known[t.path]["group"], known[t.path]["subset"]) for t in tiles]
    return _open(out, data, recipe, machine, split, say)


def _open(
    out: Path, data: Path, recipe: Recipe, machine: Machine, split: list[SplitTile], say: Say
) -> Run:
    """Decode the tiles."""
    tiles: list[IndexedTile] = [row.tile for row in split]
    classes = sorted({tile.label for tile in tiles})
    with progress_bar("decode", len(tiles)) as advance:
        spec = ReaderSpec(size=recipe.student.size)
        store = TileStore([data / tile.path for tile in tiles], spec, advance)
    if not store.kept:
        say("the decoded tiles do not fit into memory; each batch is decoded anew")
    labels = torch.tensor([classes.index(tile.label) for tile in tiles])
    subsets = {
        name: np.array([i for i, row in enumerate(split) if row.subset == name], np.int64)
        for name in ("train", "val", "test")
    }
    return Run(out, recipe, machine, split, classes, Data(store, labels, subsets), say)


def _teach(run: Run, standing: Progress) -> Model:
    """The trained teacher: fitted, or read back where the run is past it."""
    folder = run.folder / "teacher"
    under_way = standing.stage == "teacher"
    stage = teacher_stage(run.recipe, len(run.classes), fresh=under_way and standing.step == 0)
    if under_way:
        model = _fit(run, stage, standing)
        save_model(model, folder, run.classes, stage.schedule.size)
        standing.stage, standing.step, standing.sums = "student", 0, {}
    else:
        model = stage.task.get_trainable_module()
        load_saved(folder, model)
    return model.to(run.machine.device).eval()


def _distill(run: Run, standing: Progress, teacher: Model) -> Model:
    """The trained student."""
    stage = student_stage(run.recipe, len(run.classes), standing.step == 0, teacher)
    model = drop_guide(_fit(run, stage, standing))
    save_model(model, run.folder, run.classes, stage.schedule.size)
    return model


def _fit(run: Run, stage: Stage, standing: Progress) -> Model:
    schedule, train = stage.schedule, len(run.data.subsets["train"])
    batch = min(schedule.batch_size, train)

    def on_epoch(history: list[dict[str, Any]]) -> None:
        with atomic_write(run.folder / "metrics.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in history)
        last = history[-1]
        run.say(
            f"{stage.name} epoch {last['epoch']}/{schedule.epochs} at {last['size']} px: "
            f"loss {last['loss']:.4f}, validation balanced accuracy "
            f"{100 * last['val_balanced_accuracy']:.2f} %, {last['seconds']:.0f} s"
        )

    with progress_bar(stage.name, schedule.epochs * (train // batch) * batch) as advance:
        advance(standing.step * batch)
        return fit(
            stage,
            run.data,
            run.machine,
            run.recipe.seed,
            standing,
            run.folder / STATE,
            on_step=advance,
            on_epoch=on_epoch,
        )


def _evaluate(run: Run, models: dict[str, Model]) -> dict[str, Any]:
    """Validation and test metrics in FP32, and the student's probabilities tile by tile."""
    exact = Machine(run.machine.device, "fp32")
    sizes = {"teacher": run.recipe.teacher.size, "student": run.recipe.student.size}
    metrics: dict[str, Any] = {"classes": run.classes}
    found: dict[str, Probabilities] = {}
    for name, model in models.items():
        metrics[name] = {"model": getattr(run.recipe, name).model}
        for subset in ("val", "test"):
            with progress_bar(f"{name} on {subset}", len(run.data.subsets[subset])) as advance:
                found[subset] = predict(
                    model.to(run.machine.device), run.data, subset, exact, sizes[name], advance
                )
            truth = run.data.labels[run.data.subsets[subset]].numpy()
            metrics[name][subset] = evaluate(found[subset], truth)
    _write_predictions(run, found)
    return metrics


def _write_predictions(run: Run, found: dict[str, Probabilities]) -> None:
    with atomic_write(run.folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "subset", *(f"p_{name}" for name in run.classes)])
        for subset, probabilities in found.items():
            for index, row in zip(run.data.subsets[subset], probabilities, strict=True):
                tile = run.split[index].tile
                writer.writerow([tile.path, tile.label, subset, *(f"{p:.8f}" for p in row)])
