"""The learning rate of each step: a cosine, or two where a training begins anew."""

import torch
from timm.scheduler import CosineLRScheduler

from edgelung.train.recipe import Schedule

Restart = tuple[int, float]  # the epoch in which the rate begins anew, and at what


class Rates:
    """Sets the learning rate of `optimizer`, which was made with the schedule's `lr`.

    It warms up, then falls to the schedule's `min_lr` or stays where it is; after a restart too,
    but for the warming up.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        restart: Restart | None,
        steps_per_epoch: int,
    ) -> None:
        def phase(lr: float, steps: int, warmup: int) -> CosineLRScheduler:
            warmup = min(warmup, steps // 2)
            scheduler = CosineLRScheduler(
                optimizer,
                t_initial=max(steps - warmup, 2),  # of one step timm says that it does nothing
                lr_min=lr if schedule.schedule == "constant" else schedule.min_lr,
                warmup_t=warmup,
                warmup_lr_init=lr / max(warmup, 1),
                warmup_prefix=True,
                t_in_epochs=False,
            )
            scale = lr / schedule.lr
            scheduler.base_values = [value * scale for value in scheduler.base_values]
            return scheduler

        total = schedule.epochs * steps_per_epoch
        self._restart = restart[0] * steps_per_epoch if restart else total
        warmup = round(schedule.warmup_epochs * steps_per_epoch)
        self._first = phase(schedule.lr, self._restart, warmup)
        self._second = phase(restart[1], total - self._restart, 0) if restart else self._first

    def set(self, step: int) -> int:
        """The rate of this step of the training; returns how many came before it in its phase."""
        anew = step >= self._restart
        within = step - self._restart if anew else step
        (self._second if anew else self._first).step_update(within)
        return within
