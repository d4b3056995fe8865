"""The learning rate of each step: one cosine, or a second one after a warm restart."""

from dataclasses import dataclass

import torch
from timm.scheduler import CosineLRScheduler

from edgelung.train.recipe import Schedule


@dataclass(frozen=True)
class WarmRestart:
    """The epoch in which a second cosine starts, and the learning rate that it starts from."""

    epoch: int
    lr: float


class LRSchedule:
    """Sets the learning rate of an optimizer that was created with the schedule's `lr`.

    The rate warms up, then falls to the schedule's `min_lr`, or stays constant if the schedule says
    so. A warm restart does the same without warming up.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        restart: WarmRestart | None,
        steps_per_epoch: int,
    ) -> None:
        total_steps = schedule.epochs * steps_per_epoch
        warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
        self._restart_step = restart.epoch * steps_per_epoch if restart else total_steps
        self._first = _phase(optimizer, schedule, schedule.lr, self._restart_step, warmup_steps)
        self._second = self._first
        if restart:
            steps = total_steps - self._restart_step
            self._second = _phase(optimizer, schedule, restart.lr, steps, warmup_steps=0)

    def set_step(self, step: int) -> int:
        """Set the rate of a step of the stage; returns the step's index within its phase."""
        if step < self._restart_step:
            self._first.step_update(step)
            return step
        index = step - self._restart_step
        self._second.step_update(index)
        return index


def _phase(
    optimizer: torch.optim.Optimizer, schedule: Schedule, lr: float, steps: int, warmup_steps: int
) -> CosineLRScheduler:
    """A warm-up followed by one cosine that starts from `lr`."""
    warmup_steps = min(warmup_steps, steps // 2)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=max(steps - warmup_steps, 2),  # timm warns that one step has no effect
        lr_min=lr if schedule.schedule == "constant" else schedule.min_lr,
        warmup_t=warmup_steps,
        warmup_lr_init=lr / max(warmup_steps, 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    scale = lr / schedule.lr
    scheduler.base_values = [value * scale for value in scheduler.base_values]
    return scheduler
