"""Errors by group: their order, and how few groups hold them."""

import numpy as np

from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.report.errors import GroupErrors, concentration, errors_by_group


def predictions(groups: str, confidences: list[float], right: str) -> RunPredictions:
    """One tile per letter of `groups`; all are predicted as class 0 of 2."""
    count = len(groups)
    return RunPredictions(
        classes=("a", "b"),
        paths=tuple(f"{row}.png" for row in range(count)),
        labels=np.array([0 if letter == "y" else 1 for letter in right]),
        groups=tuple(groups),
        subsets=("test",) * count,
        probabilities=np.array([[p, 1 - p] for p in confidences]),
    )


def test_groups_with_most_errors_come_first_and_sure_errors_within_them() -> None:
    rows = predictions("xxyyyz", [0.9, 0.8, 0.6, 0.9, 0.7, 0.8], "nynnyy")
    assert errors_by_group(rows) == [GroupErrors("y", 3, (3, 2)), GroupErrors("x", 2, (0,))]


def test_the_fewest_groups_that_hold_half_of_the_errors_are_named() -> None:
    errors = [GroupErrors("a", 9, (1, 2, 3)), GroupErrors("b", 9, (4,)), GroupErrors("c", 9, (5,))]
    assert concentration(errors, 40) == "1 of 40 groups holds 3 of 5 errors."


def test_no_error_is_said() -> None:
    assert concentration([], 40) == "No error in any of 40 groups."
