"""`edgelung train`: index, group, split, teacher, student, evidence, report."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from edgelung.train.fit import (
    Data,
    Machine,
    Progress,
    Stage,
    choose_machine,
    fit,
    load_progress,
    predict,
    resize_views,
    seed_weights,
)
from edgelung.train.index import index_tiles, read_groups
from edgelung.train.models import Model, create_student, create_teacher, load_saved, save_model
from edgelung.train.recipe import Recipe, validate_recipe
from edgelung.train.split import (
    SplitTile,
    join_duplicates,
    split_by_group,
    split_counts,
    write_split,
)
from edgelung.train.tiles import TileStore
from timm.task import ClassificationTask, TokenDistillationTask
from torch import Tensor, nn

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.errors import EdgelungError
from edgelung.evidence.metrics import evaluate
from edgelung.files import atomic_write, new_folder, sha256_file, write_json
from edgelung.report.pages import run_page
from edgelung.terminal import progress as progress_bar
from edgelung.tiles.reader import ReaderSpec

CONFIG, SPLIT, STATE = "run.json", "split.csv", "state.pt"
Probabilities = npt.NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """An open run folder and what it was asked to do."""

    folder: Path
    data: Path
    recipe: Recipe
    split: Sequence[SplitTile]
    classes: list[str]
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
    run = _reopen(data, out, say) if resume else _start(data, out, recipe, groups, say)
    if (out / "metrics.json").is_file():
        say(f"{out} is finished already")
        metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text("utf-8"))
        return metrics
    machine = choose_machine(run.recipe.precision)
    say(f"training on {machine.device.type} in {machine.precision}")
    tiles = _decode(run)
    standing = load_progress(out / STATE) if (out / STATE).is_file() else Progress("teacher")
    teacher = _train_teacher(run, tiles, machine, standing)
    student = _train_student(run, tiles, machine, standing, teacher)
    metrics = _evaluate(run, tiles, machine, {"teacher": teacher, "student": student})
    (out / "report.html").write_text(run_page(out, metrics), encoding="utf-8")
    write_json(out / "metrics.json", metrics)  # last: its presence says that the run is finished
    (out / STATE).unlink(missing_ok=True)
    return metrics


def _start(data: Path, out: Path, recipe: Recipe | None, groups: Path | None, say: Say) -> Run:
    assert recipe is not None
    new_folder(out, "run", "choose another name, or go on with it with --resume")
    split = _make_split(data, recipe, groups)
    counts = split_counts(split)
    for subset, classes in counts.items():
        parts = ", ".join(f"{n} {c['tiles']} ({c['groups']})" for n, c in classes.items())
        say(f"{subset:5} tiles (groups): {parts}")
    out.mkdir(parents=True, exist_ok=True)
    write_split(out / SPLIT, split)
    write_json(
        out / CONFIG,
        {
            "edgelung": __version__,
            "notice": RESEARCH_USE_ONLY,
            "data": str(data.absolute()),
            "seed": recipe.seed,
            "groups": groups.name if groups else "identical files only",
            "split_sha256": sha256_file(out / SPLIT),
            "counts": counts,
            "recipe": recipe.model_dump(mode="json"),
        },
    )
    return Run(out, data, recipe, split, sorted({row.tile.label for row in split}), say)


def _make_split(data: Path, recipe: Recipe, groups: Path | None) -> list[SplitTile]:
    with progress_bar("index") as advance:
        tiles = index_tiles(data, recipe.classes, advance)
    names = join_duplicates(tiles, read_groups(groups, tiles) if groups else None)
    return split_by_group(tiles, names, recipe.split, recipe.seed)


def _reopen(data: Path, out: Path, say: Say) -> Run:
    try:
        config = json.loads((out / CONFIG).read_text("utf-8"))
        recipe = validate_recipe(config["recipe"], str(out / CONFIG))
        with (out / SPLIT).open(encoding="utf-8", newline="") as file:
            known = {row["path"]: row for row in csv.DictReader(file)}
        if sha256_file(out / SPLIT) != config["split_sha256"]:
            raise EdgelungError(f"{out / SPLIT} was edited since the run began; start anew")
    except (OSError, ValueError, KeyError) as error:
        raise EdgelungError(
            f"{out} holds no run to go on with ({error}); start one without --resume"
        ) from error
    tiles = index_tiles(data, recipe.classes)
    changed = [t.path for t in tiles if known.get(t.path, {}).get("sha256") != t.sha256]
    if changed or len(tiles) != len(known):
        what = changed[0] if changed else f"{len(known) - len(tiles)} tiles are gone"
        raise EdgelungError(
            f"the tiles in {data} are not those that the run was split on ({what}); "
            "restore them or start anew"
        )
    split = [SplitTile(t, known[t.path]["group"], known[t.path]["subset"]) for t in tiles]
    return Run(out, data, recipe, split, sorted({t.label for t in tiles}), say)


def _decode(run: Run) -> Data:
    paths = [run.data / row.tile.path for row in run.split]
    with progress_bar("decode", len(paths)) as advance:
        store = TileStore(paths, ReaderSpec(size=run.recipe.student.size), advance)
    labels = torch.tensor([run.classes.index(row.tile.label) for row in run.split])
    subsets = {
        name: np.array([i for i, row in enumerate(run.split) if row.subset == name], np.int64)
        for name in ("train", "val", "test")
    }
    return Data(store, labels, subsets)


def _train_teacher(run: Run, data: Data, machine: Machine, standing: Progress) -> Model:
    schedule = run.recipe.teacher
    seed_weights(run.recipe.seed, "teacher")
    model = create_teacher(schedule, len(run.classes)).to(memory_format=torch.channels_last)
    folder = run.folder / "teacher"
    if standing.stage == "teacher":
        criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
        task = ClassificationTask(model, criterion, verbose=False)
        stage = Stage(
            "teacher",
            task,
            schedule,
            run.recipe.augment,
            view_size=lambda epoch: schedule.size,
            input_size=lambda epoch: schedule.size,
        )
        model = _fit(run, stage, data, machine, standing)
        save_model(model, folder, run.classes, schedule.size)
        standing.stage, standing.step, standing.sums = "student", 0, {}
    else:
        load_saved(folder, model)
    return model.to(machine.device).eval()


def _train_student(
    run: Run, data: Data, machine: Machine, standing: Progress, teacher: Model
) -> Model:
    schedule, distill = run.recipe.student, run.recipe.distill
    seed_weights(run.recipe.seed, "student")
    model = create_student(schedule, len(run.classes))
    task = TokenDistillationTask(
        model,
        ResizedTeacher(teacher, run.recipe.teacher.size),
        criterion=nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing),
        distill_type=distill.mode,
        task_loss_weight=distill.alpha,
        distill_loss_weight=distill.beta,
        temperature=distill.temperature,
        verbose=False,
    )

    def input_size(epoch: int) -> int:
        return schedule.low_size if epoch < schedule.low_epochs else schedule.size

    # Both look at one view, so it has the size of the one that sees more.
    stage = Stage(
        "student",
        task,
        schedule,
        run.recipe.augment,
        view_size=lambda epoch: max(input_size(epoch), run.recipe.teacher.size),
        input_size=input_size,
    )
    model = _fit(run, stage, data, machine, standing)
    save_model(model, run.folder, run.classes, schedule.size)
    return model


def _fit(run: Run, stage: Stage, data: Data, machine: Machine, standing: Progress) -> Model:
    schedule = stage.schedule
    steps = len(data.subsets["train"]) // min(schedule.batch_size, len(data.subsets["train"]))
    total = schedule.epochs * steps * schedule.batch_size
    with progress_bar(stage.name, total) as advance:
        advance(standing.step * schedule.batch_size)
        model = fit(
            stage,
            data,
            machine,
            run.recipe.seed,
            standing,
            run.folder / STATE,
            on_step=advance,
            on_epoch=lambda history: _write_history(run.folder / "metrics.jsonl", history),
        )
    if standing.history:
        last = standing.history[-1]
        run.say(
            f"{stage.name}: {schedule.model}, {schedule.epochs} epochs, validation balanced "
            f"accuracy {100 * last['val_balanced_accuracy']:.2f} %"
        )
    return model


class ResizedTeacher(nn.Module):
    """A frozen teacher behind a resize of the views to its own size."""

    def __init__(self, teacher: Model, size: int) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.size = size
        self.pretrained_cfg = teacher.pretrained_cfg  # timm's task reads mean and std from it
        self.num_classes = teacher.num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalised views (B, 3, H, W)."""
        logits: Tensor = self.teacher(resize_views(images, self.size))
        return logits.float()


def _evaluate(run: Run, data: Data, machine: Machine, models: dict[str, Model]) -> dict[str, Any]:
    """Validation and test metrics in FP32, and the student's probabilities tile by tile."""
    exact = Machine(machine.device, "fp32")
    sizes = {"teacher": run.recipe.teacher.size, "student": run.recipe.student.size}
    metrics: dict[str, Any] = {"classes": run.classes}
    found: dict[str, Probabilities] = {}
    for name, model in models.items():
        metrics[name] = {"model": getattr(run.recipe, name).model}
        for subset in ("val", "test"):
            run.say(f"evaluating the {name} on {subset}")
            found[subset] = predict(model.to(machine.device), data, subset, exact, sizes[name])
            truth = data.labels[data.subsets[subset]].numpy()
            metrics[name][subset] = evaluate(found[subset], truth)
    _write_predictions(run, data, found)
    return metrics


def _write_predictions(run: Run, data: Data, found: dict[str, Probabilities]) -> None:
    with atomic_write(run.folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "subset", *(f"p_{name}" for name in run.classes)])
        for subset, probabilities in found.items():
            for index, row in zip(data.subsets[subset], probabilities, strict=True):
                tile = run.split[index].tile
                writer.writerow([tile.path, tile.label, subset, *(f"{p:.8f}" for p in row)])


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in history)
