"""The learning rate of each step."""

import pytest
import torch

from edgelung.train.lr_schedule import LRSchedule, WarmRestart
from edgelung.train.recipe import Schedule


def rates(schedule: Schedule, restart: WarmRestart | None) -> tuple[list[float], list[int]]:
    """The rate of every step, and its index within its phase."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=schedule.lr)
    lr_schedule = LRSchedule(optimizer, schedule, restart, steps_per_epoch=10)
    lr, within = [], []
    for step in range(10 * schedule.epochs):
        within.append(lr_schedule.set_step(step))
        lr.append(optimizer.param_groups[0]["lr"])
    return lr, within


def test_one_phase_warms_up_and_falls_to_its_floor(caplog: pytest.LogCaptureFixture) -> None:
    schedule = Schedule(model="m", epochs=4, lr=1.0, min_lr=0.1, warmup_epochs=1)
    lr, within = rates(schedule, None)
    assert within == list(range(40))
    assert lr[0] == pytest.approx(0.1)
    assert lr[:10] == sorted(lr[:10])
    assert lr[10] == pytest.approx(1.0)
    assert lr[10:] == sorted(lr[10:], reverse=True)
    assert lr[-1] == pytest.approx(0.1, abs=0.01)
    assert not caplog.records, "timm warns of a schedule without an effect"


def test_a_warm_restart_starts_a_second_cosine_without_warming_up() -> None:
    schedule = Schedule(model="m", epochs=4, lr=1.0, warmup_epochs=0.5)
    lr, within = rates(schedule, WarmRestart(epoch=3, lr=0.3))
    assert within == [*range(30), *range(10)]
    assert lr[29] < 0.02
    assert lr[30] == pytest.approx(0.3)
    assert lr[30:] == sorted(lr[30:], reverse=True)
    assert lr[39] < 0.02


def test_each_phase_has_its_own_constant_rate() -> None:
    schedule = Schedule(model="m", epochs=2, lr=1.0, schedule="constant")
    lr, _ = rates(schedule, WarmRestart(epoch=1, lr=0.3))
    assert lr == pytest.approx([1.0] * 10 + [0.3] * 10)
