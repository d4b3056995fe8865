"""The training loop: one stage (teacher or student), resumable at any step.

Every random number is a function of (seed, stage, epoch or step), so a run that was killed goes on
from its last checkpoint through exactly the batches that it would have seen, without the state of
a random generator having to be saved.
"""

import hashlib
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
from timm.optim import create_optimizer_v2
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from edgelung.errors import EdgelungError
from edgelung.evidence.metrics import evaluate
from edgelung.files import atomic_write
from edgelung.train.augment import augment
from edgelung.train.models import Model
from edgelung.train.recipe import Augment, Schedule, Student
from edgelung.train.tiles import TileStore

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

    `view_size(epoch)`: pixels of the augmented view; `input_size(epoch)`: pixels of the model.
    """

    name: str
    task: TrainingTask
    schedule: Schedule
    augment: Augment
    view_size: Callable[[int], int]
    input_size: Callable[[int], int]


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


@dataclass(frozen=True)
class Machine:
    """Where and how precisely to compute."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16

    def autocast(self) -> torch.autocast:
        """Mixed precision where it was chosen."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")


def choose_machine(precision: str) -> Machine:
    """The GPU where there is one; BF16 where the device computes it natively, else FP16 or FP32."""
    if torch.cuda.is_available():
        best = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return Machine(torch.device("cuda"), best if precision == "auto" else precision)
    native = any("bf16" in flag for flag in _cpu_flags())  # avx512_bf16, amx_bf16; bf16 on ARM
    if precision == "fp16":
        raise EdgelungError("precision fp16 needs a CUDA device; use auto, bf16 or fp32 on a CPU")
    automatic = "bf16" if native else "fp32"
    return Machine(torch.device("cpu"), automatic if precision == "auto" else precision)


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
    EdgelungError when the loss stops being a number; the last checkpoint from before stays.
    """
    task, schedule = stage.task.to(machine.device), stage.schedule
    train = data.subsets["train"]
    batch = min(schedule.batch_size, len(train))
    steps_per_epoch = len(train) // batch
    total = schedule.epochs * steps_per_epoch
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(
        model, opt=schedule.optimizer, lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    if schedule.ema_decay:
        task.setup_ema(decay=schedule.ema_decay, use_warmup=True, warmup_power=0.75)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
    parts = {"task": task, "optimizer": optimizer, "scaler": scaler}
    if progress.step:
        _load(checkpoint, parts, machine.device)
    else:
        save_checkpoint(checkpoint, parts, progress)
    pause = Pause()

    def resize_input(module: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
        size = stage.input_size(progress.step // steps_per_epoch)
        return resize_views(inputs[0], size) if module.training else None

    def full_logits(module: nn.Module, inputs: object, output: Any) -> Any:
        """Losses in FP32, whatever autocast made of the logits."""
        return tuple(o.float() for o in output) if isinstance(output, tuple) else output.float()

    hooks = [
        model.register_forward_pre_hook(resize_input),
        model.register_forward_hook(full_logits),
    ]
    for step in range(progress.step, total):
        started = time.monotonic()
        epoch, position = divmod(step, steps_per_epoch)
        if position == 0:
            progress.sums = {}
        order = _permutation(len(train), seed, stage.name, epoch)
        indices = train[order[position * batch : (position + 1) * batch]]
        generator = torch.Generator().manual_seed(_seed(seed, stage.name, "step", step))
        torch.manual_seed(_seed(seed, stage.name, "model", step))  # dropout and its like

        task.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step, steps_per_epoch)
        tiles = data.store.batch(indices).to(machine.device, non_blocking=True)
        labels = data.labels[indices].to(machine.device)
        images = augment(tiles, stage.view_size(epoch), stage.augment, generator)
        with machine.autocast():
            result = task(normalise(images, unwrap_model(model)), labels)
        optimizer.zero_grad()
        scaler.scale(result["loss"]).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm or math.inf)
        if not scaler.is_enabled():  # GradScaler skips such steps by itself
            _check_finite(float(norm), "gradient", stage, step, total)
        scaler.step(optimizer)
        scaler.update()
        task.update_ema(step=step)

        progress.step = step + 1
        _accumulate(progress.sums, result, started)
        mean_loss = progress.sums["loss"] / (position + 1)
        _check_finite(mean_loss, "loss", stage, step, total)
        on_step(batch, f"{stage.name} epoch {epoch + 1}/{schedule.epochs} loss {mean_loss:.3f}")
        if position == steps_per_epoch - 1:
            progress.history.append(
                _epoch_record(stage, epoch, progress, steps_per_epoch, optimizer)
                | _validate(task, data, machine, stage.input_size(epoch))
            )
            on_epoch(progress.history)
        if position == steps_per_epoch - 1 or pause.over():
            started = time.monotonic()
            save_checkpoint(checkpoint, parts, progress)
            pause = Pause(cost=time.monotonic() - started)
    for hook in hooks:
        hook.remove()
    return unwrap_model(_evaluated(task)).eval()


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
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # FP32 means FP32
def predict(
    model: Model,
    data: Data,
    subset: str,
    machine: Machine,
    size: int,
    on_batch: Callable[[int], None] = lambda n: None,
) -> npt.NDArray[np.float32]:
    """Softmax probabilities float32 (N, classes) of unaugmented tiles of a subset."""
    found = []
    indices, batch = data.subsets[subset], 64
    model.eval()
    for start in range(0, len(indices), batch):
        tiles = data.store.batch(indices[start : start + batch]).to(machine.device)
        images = normalise(resize_views(tiles.float() / 255, size), unwrap_model(model))
        with machine.autocast():
            logits = model(images)
        found.append(logits.float().softmax(dim=1).cpu().numpy())
        on_batch(len(tiles))
    return np.concatenate(found)


def save_checkpoint(path: Path, parts: dict[str, Any], progress: Progress) -> None:
    """Replace the checkpoint in one step."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_write(path) as file:
        torch.save({**state, "progress": vars(progress)}, file)


def load_progress(path: Path) -> Progress:
    """What the checkpoint says of where the run stands."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return Progress(**state["progress"])
    except Exception as error:
        raise EdgelungError(
            f"cannot read the state {path} ({error}); start anew in another folder"
        ) from error


def _load(path: Path, parts: dict[str, Any], device: torch.device) -> None:
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])


def _check_finite(value: float, what: str, stage: Stage, step: int, total: int) -> None:
    """Stop before weights that are no numbers reach a checkpoint."""
    if not math.isfinite(value):
        raise EdgelungError(
            f"{stage.name}: the {what} is {value} at step {step + 1} of {total}; the last good "
            f"state is kept. Try a lower {stage.name}.lr, or precision = fp32"
        )


def _validate(task: TrainingTask, data: Data, machine: Machine, size: int) -> dict[str, float]:
    truth = data.labels[data.subsets["val"]].numpy()
    found = predict(_evaluated(task), data, "val", machine, size)
    if not np.isfinite(found).all():
        raise EdgelungError("validation gave no finite probabilities; try a lower learning rate")
    metrics = evaluate(found, truth)
    return {
        "val_loss": metrics["negative_log_likelihood"],
        "val_accuracy": metrics["accuracy"],
        "val_balanced_accuracy": metrics["balanced_accuracy"],
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


def _accumulate(sums: dict[str, float], result: dict[str, Tensor], started: float) -> None:
    for name in ("loss", "task_loss", "distill_loss", "guidance_loss"):
        if name in result:
            sums[name] = sums.get(name, 0.0) + float(result[name].detach())
    sums["seconds"] = sums.get("seconds", 0.0) + time.monotonic() - started


def learning_rate(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then cosine; a student with `high_lr` has a cosine for each of its sizes.

    The first cosine ends where the second begins, at `high_lr`; the last ends at `min_lr`.
    """
    start, end = 0, schedule.epochs * steps_per_epoch
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), end // 2)
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    if schedule.schedule == "constant":
        return schedule.lr
    first, last = schedule.lr, schedule.min_lr
    if isinstance(schedule, Student) and schedule.high_lr:
        change = schedule.low_epochs * steps_per_epoch
        if step < change:
            end, last = change, schedule.high_lr
        else:
            start, first = change, schedule.high_lr
    start = max(start, warmup)
    done = (step - start) / (end - start)
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


def _permutation(count: int, *key: object) -> Indices:
    return np.random.default_rng(_seed(*key)).permutation(count)


def _seed(*key: object) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) >> 1


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
