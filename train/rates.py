"""The learning rate of each step: a cosine, or one for each phase of a training."""

import bisect
import itertools
from collections.abc import Sequence

import torch
from timm.scheduler import CosineLRScheduler

from edgelung.train.recipe import Schedule

Phase = tuple[int, float]  # the epoch in which the rate begins anew, and at what


class Rates:
    """Sets the learning rate of `optimizer`, which was made with the first phase's.

    The first phase warms up; each falls to the schedule's `min_lr`, or stays where it is.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        phases: Sequence[Phase],
        steps_per_epoch: int,
    ) -> None:
        self._starts = [first * steps_per_epoch for first, _ in phases]
        self._schedulers = []
        ends = [*self._starts, schedule.epochs * steps_per_epoch]
        for number, ((start, end), (_, lr)) in enumerate(
            zip(itertools.pairwise(ends), phases, strict=True)
        ):
            wanted = 0 if number else round(schedule.warmup_epochs * steps_per_epoch)
            warmup = min(wanted, (end - start) // 2)
            scheduler = CosineLRScheduler(
                optimizer,
                t_initial=max(end - start - warmup, 1),
                lr_min=lr if schedule.schedule == "constant" else schedule.min_lr,
                warmup_t=warmup,
                warmup_lr_init=lr / max(warmup, 1),
                warmup_prefix=True,
                t_in_epochs=False,
            )
            scale = lr / schedule.lr
            scheduler.base_values = [value * scale for value in scheduler.base_values]
            self._schedulers.append(scheduler)

    def set(self, step: int) -> int:
        """The rate of this step of the training; returns which step of its phase it is."""
        phase = bisect.bisect(self._starts, step) - 1
        within = step - self._starts[phase]
        self._schedulers[phase].step_update(within)
        return within
