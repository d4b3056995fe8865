"""Charts: round ticks, ranges that do not magnify noise, names of any script."""

import numpy as np
import pytest

from edgelung.artifacts.run import EpochRecord
from edgelung.report.chart import Axis, Series, chart, padded, ticks
from edgelung.report.figures import _roc_points as roc_points
from edgelung.report.figures import curves, reliability_chart, roc_chart


def epoch(number: int, accuracy: float | None = None) -> EpochRecord:
    return EpochRecord(
        stage="student", epoch=number, size=64, lr=0.1, loss=0.5, seconds=1.0, val_accuracy=accuracy
    )


def test_class_names_of_any_script_are_kept_and_escaped_in_a_chart() -> None:
    text = roc_chart(np.eye(2), np.array([0, 1]), ["腺癌 $x$", "<n> & m"])
    assert "腺癌 $x$" in text
    assert "&lt;n&gt; &amp; m" in text
    assert "<n>" not in text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (96.3, 98.3, [96.5, 97, 97.5, 98]),
        (0.8, 31.2, [10, 20, 30]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_epochs_have_whole_ticks() -> None:
    assert ticks(0.8, 2.2, whole=True) == [1, 2]


def test_nearly_equal_values_do_not_fill_an_axis() -> None:
    assert padded([99.5, 99.51], 2, 0, 100) == pytest.approx((98.505, 100))


def test_a_value_that_is_not_a_number_is_left_out_of_a_chart() -> None:
    points = [(0.0, 0.5), (0.5, float("nan")), (1.0, 0.5)]
    text = chart("t", Axis("x"), Axis("y"), [Series("one", points)])
    assert "nan" not in text


def test_one_epoch_makes_no_curve() -> None:
    assert curves([epoch(1, 0.5)], "student") == []
    assert len(curves([epoch(1, 0.5), epoch(2, 0.6)], "student")) == 2


def test_a_stage_that_was_not_validated_has_no_curve_of_validation() -> None:
    assert len(curves([epoch(1), epoch(2)], "student")) == 1


def test_a_roc_curve_takes_tied_scores_in_one_step() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    points = roc_points(scores, np.array([True, True, False, False]))
    assert points == [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]


def test_a_class_without_tiles_has_no_roc_curve() -> None:
    assert roc_points(np.array([0.9, 0.1]), np.array([False, False])) == []


def test_perfect_confidence_lies_on_the_diagonal() -> None:
    """One confident tile of one bin, right: its dot is in the upper right corner."""
    text = reliability_chart({"student": np.array([[1.0, 0.0]])}, np.array([0]))
    assert 'd="M348.0 8.0h0"' in text
