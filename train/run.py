"""`edgelung train`: index, group, split, teacher, student, evidence, report."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.run import EpochRecord, RunConfig, RunFolder, RunMetrics, SplitRow
from edgelung.artifacts.run import split_counts as count_split
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.files import (
    TEMPORARY_SUFFIX,
    atomic_folder,
    atomic_write,
    locked,
    new_folder,
)
from edgelung.core.terminal import progress as progress_bar
from edgelung.report.pages import run_page
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.audit import find_groups, group_names
from edgelung.train.distributed import Machine, allow_unrepeatable, choose_machine, from_first
from edgelung.train.guidance import drop_guide
from edgelung.train.index import IndexedTile, index_tiles, read_groups
from edgelung.train.models import Model, load_saved, save_model
from edgelung.train.recipe import Recipe, Split, validate_recipe
from edgelung.train.results import Run, evaluate_models, run_pictures
from edgelung.train.split import (
    SplitTile,
    far_from_shares,
    join_duplicates,
    mates_in_training,
    of_two_classes,
    split_at_random,
    split_by_group,
)
from edgelung.train.stages import absolute_weights, check_models, label_stage, student_stage
from edgelung.train.tiles import TileStore
from edgelung.train.trainer import Data, Progress, Stage, fit, global_batch, load_progress

Say = Callable[[str], None]


def train_run(
    data: Path,
    out: Path,
    recipe: Recipe | None,
    *,
    groups: Path | None = None,
    resume: bool = False,
    say: Say = lambda text: None,
) -> RunMetrics:
    """Train a teacher and a student on a folder of labelled tiles; returns metrics.json.

    With `resume`, an unfinished run in `out` goes on with its own recipe and split (`recipe` and
    `groups` must be None). Raises EdgelungError for anything a user can mend.
    """
    if resume:
        if RunFolder(out).is_finished:
            say(f"{out} is finished already")
            return RunFolder(out).read_metrics()
        run = _reopen(data, out, say)
    else:
        assert recipe is not None
        run = _start(data, out, absolute_weights(recipe), groups, say)
    if not run.machine.first:
        return _complete(run, say)
    folder = RunFolder(out)
    handle = locked(folder.lock_path, f"another process is training in {out}; wait for it")
    try:
        for left in out.glob(
            f".{folder.checkpoint_path.name}.*{TEMPORARY_SUFFIX}"
        ):  # by one killed while it wrote
            left.unlink()
        metrics = _complete(run, say)
        folder.lock_path.unlink(missing_ok=True)
        return metrics
    except (KeyboardInterrupt, SystemExit):
        say(f"interrupted; --resume --out {out} goes on from the last checkpoint")
        raise
    finally:
        os.close(handle)


def _complete(run: Run, say: Say) -> RunMetrics:
    """Train from where the run stands to its report; returns metrics.json."""
    several = f", {run.machine.processes} processes" if run.machine.processes > 1 else ""
    say(f"training on {run.machine.device.type} in {run.machine.precision}{several}")
    folder = RunFolder(run.folder)
    state = folder.checkpoint_path

    def train() -> RunMetrics:
        standing = load_progress(state) if state.is_file() else Progress(run.roles[0])
        return evaluate_models(run, _train(run, standing))

    metrics: RunMetrics | None = None
    unrepeatable = None
    try:
        metrics = train()
    except RuntimeError as error:
        unrepeatable = allow_unrepeatable(error)
        if unrepeatable is None:
            raise
    if unrepeatable is not None:  # out here, where what the error held is gone from memory
        say(f"{unrepeatable} has no repeatable form here: a second run may give other weights")
        metrics = train()
    assert metrics is not None
    metrics = structs.replace(metrics, unrepeatable=unrepeatable)
    if run.machine.first:
        with atomic_write(folder.report_path, "w", encoding="utf-8") as file:
            file.write(run_page(folder, metrics, run_pictures(run)))
        folder.write_metrics(metrics)  # last: its presence says: finished
        state.unlink(missing_ok=True)
    return metrics


def _start(data: Path, out: Path, recipe: Recipe, groups: Path | None, say: Say) -> Run:
    """Check everything that can be checked, then make the run folder."""
    machine = choose_machine(recipe.precision)
    split = from_first(lambda: _split(data, out, recipe, groups, say))
    rows = [_row(tile) for tile in split]
    counts = count_split(rows)
    for subset, labels in counts.items():
        parts = ", ".join(f"{n} {c.tiles} ({c.groups})" for n, c in labels.items())
        say(f"{subset:5} tiles (groups): {parts}")
    _say_what_is_odd(split, recipe.split, groups is not None, say)
    mates = mates_in_training(split)
    if recipe.split.by == "random":
        tested = sum(size.tiles for size in counts["test"].values())
        say(
            f"random split: {mates} of {tested} test tiles ({100 * mates / tested:.1f} %) have a "
            "group mate in training; their accuracy says little about new tissue"
        )
    run = _open(out, data, recipe, machine, split, say)
    if machine.first:
        tiles = [row.tile for row in split]
        config = RunConfig(
            edgelung=__version__,
            notice=RESEARCH_USE_ONLY,
            data=str(data.absolute()),
            seed=recipe.seed,
            precision=machine.precision,
            processes=machine.processes,
            groups=groups.name if groups else "auto: tiles that show one piece of tissue",
            split=recipe.split.by,
            test_tiles_with_a_group_mate_in_training=mates,
            counts=counts,
            sizes=dict(Counter(f"{t.width}x{t.height}" for t in tiles).most_common(10)),
            recipe=recipe.model_dump(mode="json"),
        )
        with atomic_folder(out) as folder:
            RunFolder(folder).write_split(rows)
            RunFolder(folder).write_config(config)
    return run


def _say_what_is_odd(split: list[SplitTile], shares: Split, given: bool, say: Say) -> None:
    """A line each for what makes a split worth less than it looks; `given`: groups from a file."""
    if twice := next(of_two_classes([row.tile for row in split]), None):
        say(f"one file under two labels: {' and '.join(twice)}; `edgelung audit` lists all such")
    labels: dict[str, set[str]] = {}
    for row in split:
        labels.setdefault(row.group, set()).add(row.tile.label)
    mixed = [group for group, own in labels.items() if len(own) > 1]
    if mixed:
        why = ", a patient's tiles, or numbers that begin anew in every class" if given else ""
        say(
            f"{len(mixed)} group(s) hold several classes, {min(mixed)} for one: a wrong label{why}"
            "; `edgelung audit` shows near copies across classes"
        )
    if given and len(labels) == len(split):
        say(
            "every tile is a group of its own: if there are near copies, they are not kept together"
        )
    far = [
        f"{100 * share:.0f} % of {label} in {subset} ({100 * getattr(shares, subset):.0f} % asked)"
        for label, subset, share in far_from_shares(split, shares)
    ]
    if far:
        say(f"groups too large, too few or of several classes for the shares: {', '.join(far)}")


def _split(data: Path, out: Path, recipe: Recipe, groups: Path | None, say: Say) -> list[SplitTile]:
    """Every tile with its group and its subset."""
    new_folder(out, "run", "choose another name, or go on with it with --resume")
    with progress_bar("index") as advance:
        tiles = index_tiles(data, recipe.classes, advance)
    check_models(recipe, len({tile.label for tile in tiles}))  # before minutes of grouping
    if groups:
        found = read_groups(groups, tiles)
    else:
        grouping = find_groups(data, tiles)
        found = group_names(tiles, grouping)
        if grouping.plain:
            say(f"{len(grouping.plain)} tile(s) too plain to compare, each a group of its own")
    names = join_duplicates(tiles, found)
    by = split_at_random if recipe.split.by == "random" else split_by_group
    return by(tiles, names, recipe.split)


def _reopen(data: Path, out: Path, say: Say) -> Run:
    """Open an unfinished run, on the tiles and in the precision that it began with."""
    config, split = from_first(lambda: _known(data, out))
    recipe = validate_recipe(config.recipe, str(RunFolder(out).config_path))
    return _open(out, data, recipe, choose_machine(config.precision), split, say)


def _row(tile: SplitTile) -> SplitRow:
    return SplitRow(tile.tile.path, tile.tile.label, tile.group, tile.subset, tile.tile.sha256)


def _known(data: Path, out: Path) -> tuple[RunConfig, list[SplitTile]]:
    """run.json and the split of an unfinished run, whose tiles must be as they were."""
    folder = RunFolder(out)
    if not folder.config_path.is_file():
        raise EdgelungError(f"{out} holds no run to go on with; start one without --resume")
    config = folder.read_config()
    folder.check_split(config)
    recipe = validate_recipe(config.recipe, str(folder.config_path))
    known = {row.path: row for row in folder.read_split()}
    tiles = index_tiles(data, recipe.classes)
    changed = [t.path for t in tiles if t.path not in known or known[t.path].sha256 != t.sha256]
    if changed or len(tiles) != len(known):
        what = changed[0] if changed else f"{len(known) - len(tiles)} tiles are gone"
        raise EdgelungError(
            f"the tiles in {data} are not those that the run was split on ({what}); "
            "restore them or start anew"
        )
    return config, [SplitTile(t, known[t.path].group, known[t.path].subset) for t in tiles]


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


def _train(run: Run, standing: Progress) -> dict[str, Model]:
    """The trained models by role: fitted, or read back where the run is past them."""
    roles = run.roles
    models: dict[str, Model] = {}
    for place, role in enumerate(roles):
        folder = RunFolder(run.folder).model_folder(role)
        under_way = standing.stage == role
        fresh = under_way and standing.step == 0
        if role == "student":
            stage = student_stage(run.recipe, len(run.classes), fresh, models.get("teacher"))
        else:
            schedule = getattr(run.recipe, role)
            stage = label_stage(role, schedule, run.recipe, len(run.classes), fresh)
        if under_way:
            model = drop_guide(_fit(run, stage, standing))
            if run.machine.first:
                save_model(model, folder, run.classes, stage.schedule.size)
            if role != roles[-1]:
                standing.stage, standing.step, standing.sums = roles[place + 1], 0, {}
        else:
            model = stage.task.get_trainable_module()
            load_saved(folder, model)
        models[role] = model.to(run.machine.device).eval()
    return models


def _fit(run: Run, stage: Stage, standing: Progress) -> Model:
    schedule, train = stage.schedule, len(run.data.subsets["train"])
    batch = global_batch(schedule, train, run.machine)

    def on_epoch(history: list[dict[str, Any]]) -> None:
        last = history[-1]
        known = last.get("val_balanced_accuracy")  # none while features alone teach
        run.say(
            f"{stage.name} epoch {last['epoch']}/{schedule.epochs} at {last['size']} px: "
            f"loss {last['loss']:.4f}, "
            + (
                "features alone"
                if known is None
                else f"validation balanced accuracy {100 * known:.2f} %"
            )
            + f", {last['seconds']:.0f} s"
        )
        if run.machine.first:
            records = [typed_json.convert(record, EpochRecord) for record in history]
            RunFolder(run.folder).write_history(records)

    with progress_bar(stage.name, schedule.epochs * (train // batch) * batch) as advance:
        advance(standing.step * batch)
        try:
            return fit(
                stage,
                run.data,
                run.machine,
                run.recipe.seed,
                standing,
                RunFolder(run.folder).checkpoint_path,
                on_step=advance,
                on_epoch=on_epoch,
            )
        except (RuntimeError, MemoryError) as error:  # on a CPU torch has no type of its own for it
            known = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not known and "not enough memory" not in str(error):
                raise
            raise EdgelungError(
                f"{stage.name}: memory ran out at batch size {schedule.batch_size} on "
                f"{run.machine.device.type}; the last good state is kept. Start anew with "
                f"--set {stage.name}.batch_size={max(schedule.batch_size // 2, 1)}, or go on with "
                "--resume where there is more memory"
            ) from error
