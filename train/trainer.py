"""The training loop: one stage (teacher or student), resumable at any step.

Every random number is a function of (seed, stage, epoch or step), so a run that was killed goes on
from its last checkpoint through exactly the batches that it would have seen, without the state of
a random generator having to be saved.
"""

import hashlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write
from edgelung.evaluation.metrics import evaluate
from edgelung.train.augment import augment
from edgelung.train.distributed import Machine
from edgelung.train.lr_schedule import Rates, Restart
from edgelung.train.models import Model
from edgelung.train.recipe import Augment, Schedule
from edgelung.train.tiles import TileStore, ahead

Indices = npt.NDArray[np.int64]
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Data:
    """Decoded tiles, their labels int64 [N], and which of them are in which subset."""

    store: TileStore
    labels: Tensor
    subsets: dict[str, Indices]


@dataclass(frozen=True)
class Stage:
    """What one call of `fit` trains and how.

    `view_size`: pixels of the view of a whole tile; `window(epoch)`: the share of its side that is
    shown in that epoch, at the same scale. `restart`: the epoch in which the learning rate begins
    anew, and at what; the average of the weights does so too. `answers(epoch)`: whether labels and
    the teacher's answers teach in that epoch, or its features alone (`guidance.py`).
    """

    name: str
    task: TrainingTask
    schedule: Schedule
    augment: Augment
    view_size: int
    restart: Restart | None = None
    window: Callable[[int], float] = lambda epoch: 1.0
    answers: Callable[[int], bool] = lambda epoch: True

    def input_size(self, epoch: int) -> int:
        """Pixels that the model sees in training."""
        return round(self.schedule.size * self.window(epoch))


@dataclass
class Progress:
    """What a checkpoint holds beside weights."""

    stage: str
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch under way


class Pause:
    """Time between checkpoints: a minute, or more where writing one is slow."""

    def __init__(self, cost: float = 0.0) -> None:
        self._end = time.monotonic() + max(CHECKPOINT_SECONDS, 30 * cost)

    def over(self) -> bool:
        """Whether the next checkpoint is due."""
        return time.monotonic() > self._end


def fit(
    stage: Stage,
    data: Data,
    machine: Machine,
    seed: int,
    progress: Progress,
    checkpoint: Path,
    on_step: Callable[[int, str], None],
    on_epoch: Callable[[list[dict[str, Any]]], None],
) -> Model:
    """Train a stage to its end, from `progress` on; returns the (averaged) model in eval mode.

    `checkpoint` is replaced atomically about once a minute and after every epoch. Raises
    EdgelungError when the loss stops being a number or memory runs out; the last checkpoint from
    before stays.
    """
    task, schedule = stage.task.to(machine.device), stage.schedule
    train = data.subsets["train"]
    batch = global_batch(schedule, len(train), machine)
    steps_per_epoch = len(train) // batch
    total = schedule.epochs * steps_per_epoch
    model = task.get_trainable_module()
    if machine.processes > 1 and machine.device.type == "cuda":
        convert_sync_batchnorm(model)  # timm's keeps the activations that its BatchNorm holds
    optimizer = create_optimizer_v2(
        model, opt=schedule.optimizer, lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
    rates = Rates(optimizer, schedule, stage.restart, steps_per_epoch)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if schedule.ema_decay:
        decay = schedule.ema_decay
        parts["ema"] = task.setup_ema(decay=decay, use_warmup=True, warmup_power=0.75)
    if progress.step:
        _load(checkpoint, parts)
    elif machine.first:
        save_checkpoint(checkpoint, parts, progress)
    if machine.processes > 1:
        task.prepare_distributed([machine.device] if machine.device.type == "cuda" else None)
    pause = Pause()

    def resize_input(module: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
        size = stage.input_size(progress.step // steps_per_epoch)
        return resize_views(inputs[0], size) if module.training else None

    def full_logits(module: nn.Module, inputs: object, output: Any) -> Any:
        """Losses in FP32, whatever autocast made of the logits."""
        return tuple(o.float() for o in output) if isinstance(output, tuple) else output.float()

    def load(step: int) -> tuple[Tensor, Tensor]:
        """This process's tiles and labels of a step."""
        epoch, position = divmod(step, steps_per_epoch)
        order = _permutation(len(train), seed, stage.name, epoch)
        every = train[order[position * batch : (position + 1) * batch]]
        own = every[machine.rank :: machine.processes]
        tiles, labels = data.store.batch(own), data.labels[own]
        return (tiles.pin_memory(), labels) if machine.device.type == "cuda" else (tiles, labels)

    hooks = [
        model.register_forward_pre_hook(resize_input),
        model.register_forward_hook(full_logits),
    ]
    steps = range(progress.step, total)
    for step, (tiles, labels) in zip(steps, ahead(load, steps), strict=True):
        started = time.monotonic()
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0:
            progress.sums = {}
        within = rates.set(step)
        tiles = tiles.to(machine.device, non_blocking=True)
        labels = labels.to(machine.device)
        result = _forward(stage, tiles, labels, machine, seed, step, epoch)
        optimizer.zero_grad()
        scaler.scale(result["loss"]).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm or math.inf)
        if not scaler.is_enabled():  # GradScaler skips such steps by itself
            _check_finite(float(norm), "gradient", stage, step, total)
        scaler.step(optimizer)
        scaler.update()
        task.update_ema(step=within)  # at 0 it takes the weights as they are

        progress.step = step + 1
        _accumulate(progress.sums, machine.mean(_losses(result)), started)
        mean_loss = progress.sums["loss"] / (position + 1)
        _check_finite(mean_loss, "loss", stage, step, total)
        on_step(batch, f"{stage.name} epoch {epoch + 1}/{schedule.epochs} loss {mean_loss:.3f}")
        if position == steps_per_epoch - 1:
            record = _epoch_record(stage, epoch, progress, steps_per_epoch, optimizer)
            if stage.answers(epoch):
                record |= _validate(task, data, machine, schedule.size)
            progress.history.append(record)
            on_epoch(progress.history)
        if machine.first and (position == steps_per_epoch - 1 or pause.over()):
            started = time.monotonic()
            save_checkpoint(checkpoint, parts, progress)
            pause = Pause(cost=time.monotonic() - started)
    for hook in hooks:
        hook.remove()
    trained = unwrap_model(_evaluated(task)).eval()
    machine.share_out(trained)
    return trained


def global_batch(schedule: Schedule, tiles: int, machine: Machine) -> int:
    """Tiles of a step, over all processes; raises EdgelungError where they cannot share them."""
    if schedule.batch_size % machine.processes:
        raise EdgelungError(
            f"batch_size is {schedule.batch_size}; expected a multiple of the number of "
            f"processes, {machine.processes}"
        )
    if tiles < machine.processes:
        raise EdgelungError(f"{tiles} training tiles are fewer than {machine.processes} processes")
    return min(schedule.batch_size, tiles - tiles % machine.processes)


def _forward(
    stage: Stage,
    tiles: Tensor,
    labels: Tensor,
    machine: Machine,
    seed: int,
    step: int,
    epoch: int,
) -> dict[str, Tensor]:
    """The losses of this process's tiles (B, 3, H, W) in one step, from views drawn for it."""
    generator = torch.Generator().manual_seed(_seed(seed, stage.name, "step", step))
    # What the model draws: the place of a window, the same in all processes.
    torch.manual_seed(_seed(seed, stage.name, "model", step))
    share = (machine.rank, machine.processes)
    window = stage.window(epoch)
    size = round(stage.view_size * window)
    images = augment(tiles, size, stage.augment, generator, share, window)
    stage.task.answers = float(stage.answers(epoch))
    stage.task.train()
    model = unwrap_model(stage.task.get_trainable_module())
    with machine.autocast():
        result: dict[str, Tensor] = stage.task(normalise(images, model), labels)
    return result


def seed_weights(seed: int, stage: str) -> None:
    """Fix the random initial weights of the model that is created next."""
    torch.manual_seed(_seed(seed, stage, "weights"))


def normalise(images: Tensor, model: Model) -> Tensor:
    """0…1 images (B, 3, H, W) as `model` was made to see them."""
    config = model.pretrained_cfg
    mean = torch.tensor(config["mean"], device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(config["std"], device=images.device).view(1, 3, 1, 1)
    return (images - mean) / std


def resize_views(images: Tensor, size: int) -> Tensor:
    """Views (B, 3, H, W) at the size that a model wants, antialiased."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


@torch.no_grad()
def predict(
    model: Model,
    data: Data,
    subset: str,
    machine: Machine,
    size: int,
    on_batch: Callable[[int], None] = lambda n: None,
) -> npt.NDArray[np.float32]:
    """Softmax probabilities float32 (N, classes) of unaugmented tiles of a subset."""
    every, batch = data.subsets[subset], 64
    own = every[machine.rank :: machine.processes]
    classes = int(data.labels.max()) + 1
    found = [np.empty((0, classes), np.float32)]
    model.eval()
    for start in range(0, len(own), batch):
        tiles = data.store.batch(own[start : start + batch]).to(machine.device)
        images = normalise(resize_views(tiles.float() / 255, size), unwrap_model(model))
        with machine.autocast():
            logits = model(images)
        found.append(logits.float().softmax(dim=1).cpu().numpy())
        on_batch(len(tiles) * machine.processes)
    return machine.collect(np.concatenate(found), len(every))


def save_checkpoint(path: Path, parts: dict[str, Any], progress: Progress) -> None:
    """Replace the checkpoint in one step.

    By way of memory: on a full disk torch's own writer would hide the system's word.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    whole = io.BytesIO()
    torch.save({**state, "progress": vars(progress)}, whole)
    with atomic_write(path) as file:
        file.write(whole.getbuffer())


def load_progress(path: Path) -> Progress:
    """What the checkpoint says of where the run stands."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**state["progress"])
    except Exception as error:
        raise EdgelungError(
            f"cannot read the state {path} ({error}); start anew in another folder"
        ) from error


def _load(path: Path, parts: dict[str, Any]) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)  # parts move it
    for name, part in parts.items():
        part.load_state_dict(state[name])


def _check_finite(value: float, what: str, stage: Stage, step: int, total: int) -> None:
    """Stop before weights that are no numbers reach a checkpoint."""
    if not math.isfinite(value):
        raise EdgelungError(
            f"{stage.name}: the {what} is {value} at step {step + 1} of {total}; the last good "
            f"state is kept, but goes the same way again. Start anew with a lower {stage.name}.lr, "
            "or with precision=fp32 (--set)"
        )


def _validate(
    task: TrainingTask, data: Data, machine: Machine, size: int
) -> dict[str, float | None]:
    truth = data.labels[data.subsets["val"]].numpy()
    model = unwrap_model(_evaluated(task))
    machine.share_out(model)  # statistics of batches differ from process to process
    found = predict(model, data, "val", machine, size)
    if not np.isfinite(found).all():
        raise EdgelungError("validation gave no finite probabilities; try a lower learning rate")
    metrics = evaluate(found, truth)
    return {
        "val_loss": metrics.negative_log_likelihood,
        "val_accuracy": metrics.accuracy,
        "val_balanced_accuracy": metrics.balanced_accuracy,
    }


def _evaluated(task: TrainingTask) -> Model:
    averaged = task.get_trainable_module(ema=True)
    return task.get_trainable_module() if averaged is None else averaged.module


def _epoch_record(
    stage: Stage, epoch: int, progress: Progress, steps: int, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "epoch": epoch + 1,
        "size": stage.input_size(epoch),
        "lr": optimizer.param_groups[0]["lr"],
        **{k: value / steps for k, value in progress.sums.items() if k != "seconds"},
        "seconds": round(progress.sums["seconds"], 1),
    }


def _losses(result: dict[str, Tensor]) -> dict[str, float]:
    names = ("loss", "task_loss", "distill_loss", "guidance_loss")
    return {name: float(result[name].detach()) for name in names if name in result}


def _accumulate(sums: dict[str, float], losses: dict[str, float], started: float) -> None:
    for name, value in losses.items():
        sums[name] = sums.get(name, 0.0) + value
    sums["seconds"] = sums.get("seconds", 0.0) + time.monotonic() - started


def _permutation(count: int, *key: object) -> Indices:
    return np.random.default_rng(_seed(*key)).permutation(count)


def _seed(*key: object) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1
