"""`edgelung train`: prepare a run, train its models, evaluate them, write the report."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor, nn

from edgelung.artifacts.run import EpochRecord, RunFolder, RunMetrics
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write, writing
from edgelung.core.folder import Folder
from edgelung.core.locks import locked
from edgelung.core.terminal import progress as progress_bar
from edgelung.evaluation.concerns import run_concerns
from edgelung.report.pages import run_page
from edgelung.train.cpu import release_freed_memory, tune_for_cpu
from edgelung.train.distributed import allow_nondeterministic, insist_on_determinism
from edgelung.train.models import Model, load_saved, save_model
from edgelung.train.prediction import predict
from edgelung.train.prepare import Run, resume_run, start_run
from edgelung.train.probing import soft_labels, train_probe
from edgelung.train.progress import Progress, load_progress
from edgelung.train.recipe import Recipe
from edgelung.train.results import evaluate_models, run_pictures
from edgelung.train.setting_names import setting
from edgelung.train.stages import (
    Stage,
    absolute_weights,
    create_modules,
    create_stage,
    timm_model,
)
from edgelung.train.teachers import calibrate
from edgelung.train.trainer import Trainer

logger = logging.getLogger(__name__)


def train_run(
    data: Path,
    out: Path,
    recipe: Recipe | None,
    *,
    groups: Path | None = None,
    resume: bool = False,
    follow_links: bool = False,
    tile_um: float | None = None,
    mpp: float | None = None,
) -> RunMetrics:
    """Train a teacher and a student on a folder of labelled tiles; returns metrics.json.

    With `resume`, an unfinished run in `out` continues with its own recipe, split and
    `follow_links` (see `index_tiles`); `recipe` and `groups` must be None. `tile_um` or `mpp` state
    the physical size of a tile (see `stated_side`). Raises EdgelungError for anything that the user
    can correct.
    """
    folder = RunFolder(out)
    modules: dict[str, nn.Module] | None = None
    if resume:
        if folder.is_finished:
            logger.info("%s is already finished", out)
            return folder.read_metrics()
        run = resume_run(data, out)
    else:
        assert recipe is not None
        recipe = absolute_weights(recipe)
        run, modules = start_run(
            data, out, recipe, groups, follow_links=follow_links, tile_um=tile_um, mpp=mpp
        )
    return finish_run(run, modules)


def finish_run(run: Run, modules: dict[str, nn.Module] | None = None) -> RunMetrics:
    """Train what is left of a run, evaluate it, write its report; returns metrics.json.

    `modules` are those of a new run, if they are there already.
    """
    with training_lock(run.folder, is_main=run.context.is_main):
        return _finish(run, modules)


@contextmanager
def training_lock(folder: RunFolder, *, is_main: bool) -> Iterator[None]:
    """Let no other process train in the folder. The main process holds the lock for all others."""
    if not is_main:
        yield
        return
    busy = f"another process is training in {folder.path}; wait for it"
    with writing(folder.lock_path):
        opened = Folder(folder.path)
        handle = locked(opened, folder.lock_path.name, busy)
    try:
        # Left by a process that was killed while it wrote a checkpoint.
        opened.remove_leftovers(folder.checkpoint_path.name)
        yield
        opened.unlink(folder.lock_path.name)
    finally:
        os.close(handle)
        opened.close()


def _finish(run: Run, modules: dict[str, nn.Module] | None) -> RunMetrics:
    """Train what is left, evaluate, write the report; returns metrics.json."""
    context = run.context
    several = f", {context.world_size} processes" if context.world_size > 1 else ""
    logger.info("training on %s in %s%s", context.device.type, context.precision, several)
    metrics: RunMetrics | None = None
    unrepeatable = None
    insist_on_determinism()
    try:
        metrics = evaluate_models(run, *_train_models(run, modules))
    except RuntimeError as error:
        unrepeatable = allow_nondeterministic(error)
        if unrepeatable is None:
            raise
    if unrepeatable is not None:  # outside `except`: the error's tensors are released by now
        logger.info(
            "%s has no deterministic form here: a second run may give other weights", unrepeatable
        )
        metrics = evaluate_models(run, *_train_models(run, None))
    assert metrics is not None
    concerns = run_concerns(metrics, run.folder.read_config().counts)
    metrics = structs.replace(metrics, unrepeatable=unrepeatable, concerns=concerns)
    if context.is_main:
        with atomic_write(run.folder.report_path, "w", encoding="utf-8") as file:
            file.write(run_page(run.folder, metrics, run_pictures(run)))
        run.folder.write_metrics(metrics)  # last: its presence means finished
        run.folder.checkpoint_path.unlink(missing_ok=True)
    return metrics


def _train_models(
    run: Run, modules: dict[str, nn.Module] | None
) -> tuple[dict[str, Model], Tensor | None]:
    """The trained model of each role, and the soft labels of all tiles if tile features give them.

    A model is trained now, or loaded if the run is past its role. `modules` are those of a new run;
    otherwise they are created as the checkpoint needs them.
    """
    roles = run.recipe.roles
    checkpoint = run.folder.checkpoint_path
    progress = load_progress(checkpoint) if checkpoint.is_file() else Progress(roles[0])
    if modules is None:
        position = roles.index(progress.stage)
        fresh = roles[position + 1 :] if progress.step else roles[position:]
        modules = create_modules(run.recipe, len(run.classes), fresh)
    if run.context.device.type == "cpu":
        tune_for_cpu(modules.values(), bf16=run.context.precision == "bf16")
    labels = soft_labels(run)
    models: dict[str, Model] = {}
    for role, module in modules.items():
        if role == progress.stage:
            stage = create_stage(run.recipe, role, module, models, labels)
            model = _train_stage(run, stage, progress)
            release_freed_memory()
            if run.context.is_main:
                save_model(model, run.folder, role, run.classes, stage.schedule.size)
            if role != roles[-1]:
                progress.begin_stage(roles[roles.index(role) + 1])
        else:
            model = timm_model(module)
            load_saved(run.folder, role, model)
        models[role] = model.to(run.context.device).eval()
    return models, labels


def _train_stage(run: Run, stage: Stage, progress: Progress) -> Model:
    """Train one stage with a progress bar; a model of an average is calibrated."""
    member = run.recipe.teachers.get(stage.name)
    with _explained_memory(run, stage):
        if member is not None and member.fit == "probe":
            views = member.epochs * len(run.tiles.subsets["train"])
            with progress_bar(stage.name, views) as advance:
                model = train_probe(run, stage, advance)
        else:
            model = _fit(run, stage, progress)
        if member is not None and run.recipe.averages:
            found = predict(model, run.tiles, "val", run.context, member.size)
            truth = run.tiles.labels[run.tiles.subsets["val"]].numpy()
            logger.info("%s: temperature %.2f", stage.name, calibrate(model, found, truth))
    return model


def _fit(run: Run, stage: Stage, progress: Progress) -> Model:
    """Train one stage by gradient descent with a line per epoch and metrics.jsonl."""

    def on_epoch(history: Sequence[EpochRecord]) -> None:
        logger.info("%s", _describe_epoch(stage, history[-1]))
        if run.context.is_main:
            run.folder.write_history(history)

    trainer = Trainer(
        stage,
        run.tiles,
        run.context,
        run.recipe.seed,
        progress,
        run.folder.checkpoint_path,
        on_epoch,
    )
    size, steps = trainer.batch_size, trainer.total_steps
    work = trainer.work_of(range(steps))
    with progress_bar(stage.name, steps * size, total_work=work) as advance:
        done = range(progress.step)
        advance(len(done) * size, work=trainer.work_of(done))
        return trainer.fit(on_step=advance)


@contextmanager
def _explained_memory(run: Run, stage: Stage) -> Iterator[None]:
    """Turn running out of memory into an EdgelungError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU torch raises a plain RuntimeError.
        is_typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_typed and "not enough memory" not in str(error):
            raise
        batch_size = stage.schedule.batch_size
        name = setting(stage.name, "batch_size")
        raise EdgelungError(
            f"{stage.name}: memory ran out at batch size {batch_size} on "
            f"{run.context.device.type}; the last good state is kept. Start anew with "
            f"--set {name}={max(batch_size // 2, 1)}, or use --resume where "
            "there is more memory"
        ) from error


def _describe_epoch(stage: Stage, record: EpochRecord) -> str:
    accuracy = record.val_balanced_accuracy  # None while guidance alone teaches
    validation = (
        "guidance alone"
        if accuracy is None
        else f"validation balanced accuracy {100 * accuracy:.2f} %"
    )
    return (
        f"{stage.name} epoch {record.epoch}/{stage.schedule.epochs} at {record.size} px: "
        f"loss {record.loss:.4f}, {validation}, {record.seconds:.0f} s"
    )
