"""The training loop of one stage (teacher, baseline or student), resumable at any step.

A checkpoint holds the weights, the optimizer's state and the position. Random numbers are functions
of seed, stage, epoch and step (`seeds.py`), so a run that was killed continues from its last
checkpoint with exactly the batches and views that it would have seen.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgelung.artifacts.results import Metrics
from edgelung.artifacts.run import EpochRecord
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.metrics import evaluate
from edgelung.train.augment import augment
from edgelung.train.distributed import DistributedContext, mean_over_processes
from edgelung.train.losses import Losses
from edgelung.train.lr_schedule import LRSchedule
from edgelung.train.models import Model
from edgelung.train.prediction import predict
from edgelung.train.preprocess import normalise, resize_views
from edgelung.train.progress import CheckpointTimer, Progress, TrainingState
from edgelung.train.recipe import Schedule
from edgelung.train.seeds import derive_seed
from edgelung.train.setting_names import setting
from edgelung.train.stages import Stage, timm_model
from edgelung.train.tiles import LabelledTiles, prefetch

OnStep = Callable[[int, str, float], None]

STEPS_PER_READ = {"cuda": 16}  # by device; elsewhere the losses of every step are read at once


@dataclass(frozen=True)
class Batch:
    """This process's part of a step's batch."""

    step: int
    epoch: int
    tiles: Tensor  # uint8 (B, 3, H, W)
    labels: Tensor  # int64 (B,)
    indices: Tensor  # int64 (B,), of the tiles in the run


@dataclass(frozen=True)
class StepResult:
    """Result of one step in this process: scalar tensors that are still on the device."""

    step: int
    norm: Tensor  # of the gradient
    losses: dict[str, Tensor]


class Trainer:
    """Trains one stage from `progress` on.

    `checkpoint` is replaced atomically about once a minute and after every epoch. `on_epoch` is
    called with the records of all epochs of the run.
    """

    def __init__(
        self,
        stage: Stage,
        tiles: LabelledTiles,
        context: DistributedContext,
        seed: int,
        progress: Progress,
        checkpoint: Path,
        on_epoch: Callable[[Sequence[EpochRecord]], None] = lambda history: None,
    ) -> None:
        self.stage, self.tiles, self.context, self.seed = stage, tiles, context, seed
        self.progress, self.checkpoint = progress, checkpoint
        self.on_epoch = on_epoch
        self.batch_size = global_batch_size(stage.schedule, len(tiles.subsets["train"]), context)
        self.steps_per_epoch = len(tiles.subsets["train"]) // self.batch_size
        self.total_steps = stage.schedule.epochs * self.steps_per_epoch
        self.state = create_state(stage, context)
        self.lr_schedule = LRSchedule(
            self.state.optimizer, stage.schedule, stage.restart, self.steps_per_epoch
        )
        if progress.step:
            self.state.load(checkpoint)
        elif context.is_main:
            self.state.save(checkpoint, progress)
        self.module: nn.Module = self.state.module
        if context.world_size > 1:
            devices = [context.device] if context.device.type == "cuda" else None
            self.module = DistributedDataParallel(self.module, device_ids=devices)
        self.timer = CheckpointTimer()
        self.unread: list[StepResult] = []
        self.steps_per_read = STEPS_PER_READ.get(context.device.type, 1)

    def fit(self, on_step: OnStep = lambda count, text, work: None) -> Model:
        """Train to the end of the stage; returns the (averaged) timm model in eval mode.

        `on_step` is called with the number of tiles of a step, a line of text, and the step's work
        (see `work_of`). Raises EdgelungError if a loss or a gradient is not finite; the last
        checkpoint stays.
        """
        batches = prefetch(self.load_batch, range(self.progress.step, self.total_steps))
        first = self.progress.step // self.steps_per_epoch
        for epoch in range(first, self.stage.schedule.epochs):
            self.epoch(epoch, batches, on_step)
        return self.evaluated_model()

    def work_of(self, steps: range) -> float:
        """Relative cost of steps: the input pixels of their tiles, since sizes differ by epoch."""
        sides = (self.stage.input_size(step // self.steps_per_epoch) for step in steps)
        return float(sum(self.batch_size * side**2 for side in sides))

    def epoch(self, epoch: int, batches: Iterator[Batch], on_step: OnStep) -> None:
        """Train the rest of an epoch, validate, and record what it came to."""
        progress, end = self.progress, (epoch + 1) * self.steps_per_epoch
        if progress.step == epoch * self.steps_per_epoch:
            progress.begin_epoch()
        for batch in islice(batches, end - progress.step):
            started = time.monotonic()
            self.unread.append(self.step(batch))
            progress.step += 1
            if progress.step % self.steps_per_read == 0 or progress.step == end:
                self.read_losses()
            progress.seconds += time.monotonic() - started
            on_step(self.batch_size, self.text, self.work_of(range(batch.step, batch.step + 1)))
            if not self.unread and progress.step < end and self.timer.is_due():
                self.save_checkpoint()
        progress.history.append(self.record(epoch))
        self.on_epoch(progress.history)
        self.save_checkpoint()

    def read_losses(self) -> None:
        """Move the losses of the unread steps to the host, averaged over all processes.

        This waits for the device, so on a GPU several steps are read at once. Raises EdgelungError
        if a loss or a gradient is not finite.
        """
        results, self.unread = self.unread, []
        names = list(results[0].losses)
        rows = [torch.stack([one.norm, *one.losses.values()]).double() for one in results]
        for result, row in zip(results, mean_over_processes(torch.stack(rows)), strict=True):
            norm, *losses = row.tolist()
            self.check_finite(norm, "gradient", result.step)
            self.progress.add_losses(dict(zip(names, losses, strict=True)))
            self.check_finite(self.progress.losses["loss"], "loss", result.step)

    @property
    def text(self) -> str:
        """The position of the training, and its mean loss so far in the epoch, in words."""
        epoch, last = divmod(self.progress.step - 1, self.steps_per_epoch)
        steps = last + 1 - len(self.unread)
        text = f"epoch {epoch + 1}/{self.stage.schedule.epochs}"
        return f"{text} loss {self.progress.losses['loss'] / steps:.3f}" if steps else text

    def step(self, batch: Batch) -> StepResult:
        """One step of the optimizer."""
        module, optimizer, scaler = self.module, self.state.optimizer, self.state.scaler
        step_in_phase = self.lr_schedule.set_step(batch.step)
        losses = self.losses(batch)
        optimizer.zero_grad()
        scaler.scale(losses.loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        clip_norm = self.stage.schedule.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        if scaler.is_enabled():  # it skips steps whose gradients are not finite by itself
            norm = torch.zeros_like(norm)
        scaler.step(optimizer)
        scaler.update()
        if self.state.ema is not None:  # at step 0 of a phase it copies the weights
            self.state.ema.update(unwrap_model(module), step=step_in_phase)
        return StepResult(batch.step, norm.detach(), losses.parts())

    def losses(self, batch: Batch) -> Losses:
        """Forward pass of a batch, in random views that are a function of the step."""
        stage, context = self.stage, self.context
        generator = torch.Generator().manual_seed(self.seed_of("step", batch.step))
        # What the model draws itself, such as the place of a window; the same in all processes.
        torch.manual_seed(self.seed_of("model", batch.step))
        window = stage.window_in(batch.epoch)
        views = augment(
            batch.tiles.to(context.device, non_blocking=True),
            round(stage.full_view * window),
            stage.augment,
            generator,
            (context.rank, context.world_size),
            window,
        )
        images = normalise(views, timm_model(self.module))
        self.module.train()
        with context.autocast():
            output = self.module(resize_views(images, stage.input_size(batch.epoch)))
            return stage.loss(
                output,
                images,
                batch.labels.to(context.device),
                batch.indices,
                uses_label_loss=stage.uses_label_loss(batch.epoch),
            )

    def load_batch(self, step: int) -> Batch:
        """Read the tiles of a step that this process trains on; runs in the loader's thread."""
        epoch, position = divmod(step, self.steps_per_epoch)
        train = self.tiles.subsets["train"]
        order = np.random.default_rng(self.seed_of(epoch)).permutation(len(train))
        start = position * self.batch_size
        whole = train[order[start : start + self.batch_size]]
        local = whole[self.context.rank :: self.context.world_size]
        tiles = self.tiles.store.batch(local)
        if self.context.device.type == "cuda" and not tiles.is_cuda:
            tiles = tiles.pin_memory()
        return Batch(step, epoch, tiles, self.tiles.labels[local], torch.from_numpy(local))

    def record(self, epoch: int) -> EpochRecord:
        """An epoch's mean losses, and its validation if the labels teach in it."""
        losses = self.progress.losses
        record = EpochRecord(
            stage=self.stage.name,
            epoch=epoch + 1,
            size=self.stage.input_size(epoch),
            lr=self.state.optimizer.param_groups[0]["lr"],
            **{name: total / self.steps_per_epoch for name, total in losses.items()},
            seconds=round(self.progress.seconds, 1),
        )
        if not self.stage.uses_label_loss(epoch):
            return record
        metrics = self.validate()
        return structs.replace(
            record,
            val_loss=metrics.negative_log_likelihood,
            val_accuracy=metrics.accuracy,
            val_balanced_accuracy=metrics.balanced_accuracy,
        )

    def validate(self) -> Metrics:
        """Metrics of the (averaged) model on the validation subset."""
        model, size = self.evaluated_model(), self.stage.schedule.size
        probabilities = predict(model, self.tiles, "val", self.context, size)
        if not np.isfinite(probabilities).all():
            raise EdgelungError(
                "validation gave no finite probabilities; try a lower learning rate"
            )
        return evaluate(probabilities, self.tiles.labels[self.tiles.subsets["val"]].numpy())

    def evaluated_model(self) -> Model:
        """The timm model with averaged weights, if the recipe asks for them, in eval mode."""
        module = self.state.module if self.state.ema is None else self.state.ema.module
        model = timm_model(module).eval()
        self.context.broadcast_from_main(model)  # batch statistics differ between processes
        return model

    def save_checkpoint(self) -> None:
        """Write the state of this moment; only the main process does."""
        if self.context.is_main:
            started = time.monotonic()
            self.state.save(self.checkpoint, self.progress)
            self.timer.restart(cost=time.monotonic() - started)

    def check_finite(self, value: float, what: str, step: int) -> None:
        """Stop before NaN or infinite weights reach a checkpoint."""
        if not math.isfinite(value):
            name = self.stage.name
            raise EdgelungError(
                f"{name}: the {what} is {value} at step {step + 1} of {self.total_steps}; the last "
                "good state is kept, but resuming it would end in the same way. Start anew with a "
                f"lower {setting(name, 'lr')}, or with precision=fp32 (--set)"
            )

    def seed_of(self, *key: object) -> int:
        """The seed of something that this stage draws."""
        return derive_seed(self.seed, self.stage.name, *key)


def create_state(stage: Stage, context: DistributedContext) -> TrainingState:
    """Move the stage to the device and create its optimizer and averaged weights."""
    schedule, module = stage.schedule, stage.module.to(context.device)
    if context.world_size > 1 and context.device.type == "cuda":
        convert_sync_batchnorm(module)  # timm's version keeps the activations of its BatchNorm
    optimizer = create_optimizer_v2(
        module, opt=schedule.optimizer, lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    scaler = torch.amp.GradScaler(context.device.type, enabled=context.precision == "fp16")
    ema = None
    if schedule.ema_decay:
        ema = ModelEmaV3(module, decay=schedule.ema_decay, use_warmup=True, warmup_power=0.75)
    return TrainingState(module, optimizer, scaler, ema)


def global_batch_size(schedule: Schedule, tiles: int, context: DistributedContext) -> int:
    """Tiles of a step over all processes; raises EdgelungError if they cannot share them."""
    if schedule.batch_size % context.world_size:
        raise EdgelungError(
            f"batch_size is {schedule.batch_size}; expected a multiple of the number of "
            f"processes, {context.world_size}"
        )
    if tiles < context.world_size:
        raise EdgelungError(f"{tiles} training tiles are fewer than {context.world_size} processes")
    return min(schedule.batch_size, tiles - tiles % context.world_size)
