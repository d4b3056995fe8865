"""Progress: speed and time left follow what happens now, and weigh what each part costs."""

import pytest

from edgelung.core.progress import HALF_LIFE, Meter


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(meter: Meter, clock: Clock, steps: int, seconds: float, work: float | None = None) -> None:
    """Add `steps` tiles one by one, each after `seconds`."""
    for _ in range(steps):
        clock.now += seconds
        meter.add(1, "", work)


def test_what_an_earlier_run_did_does_not_count_as_speed() -> None:
    clock = Clock()
    meter = Meter(total=1000, clock=clock)
    meter.add(900, "", None)
    assert meter.seconds_left is None
    run(meter, clock, 10, 1.0)
    assert meter.seconds_left == pytest.approx(90)


def test_the_time_left_follows_the_present_speed() -> None:
    clock = Clock()
    meter = Meter(total=1000, clock=clock)
    meter.add(0, "", None)
    run(meter, clock, 100, 0.1)
    run(meter, clock, 100, 1.0)  # ten times slower from here on
    # The average since the start would promise 440 s.
    assert meter.seconds_left == pytest.approx(800, rel=0.1)


def test_parts_that_cost_more_take_longer() -> None:
    """Ten steps at 112 px, then ten at 224 px, which cost four times as much."""
    clock = Clock()
    meter = Meter(total=20, total_work=10 * 1 + 10 * 4, clock=clock)
    meter.add(0, "", None)
    run(meter, clock, 10, 1.0, work=1)
    assert meter.seconds_left == pytest.approx(40)
    run(meter, clock, 5, 4.0, work=4)
    assert meter.seconds_left == pytest.approx(20)


def test_the_speed_falls_while_nothing_moves() -> None:
    clock = Clock()
    meter = Meter(total=100, clock=clock)
    meter.add(0, "", None)
    run(meter, clock, 10, 1.0)
    before = meter.seconds_left
    clock.now += 10 * HALF_LIFE
    assert before is not None
    assert meter.seconds_left is not None
    assert meter.seconds_left > 5 * before


def test_without_a_total_only_a_counter_is_shown() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.add(0, "", None)
    run(meter, clock, 1200, 0.5)
    assert meter.text() == "1,200  2.0/s"


def test_a_total_is_shown_as_soon_as_it_is_known() -> None:
    clock = Clock()
    meter = Meter(clock=clock)
    meter.add(0, "", None)
    run(meter, clock, 10, 1.0)
    meter.total = 3610
    assert meter.text() == "10/3,610  1.0/s  1:00:00 left"


def test_files_that_came_later_than_the_count_do_not_exceed_the_total() -> None:
    meter = Meter(total=3, clock=Clock())
    meter.add(5, "", None)
    assert meter.text() == "5/5"
