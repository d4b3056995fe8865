"""The gate says pass, fail or inconclusive for the right reasons."""

import numpy as np
import pytest

from edgelung.evidence.gate import LIMITS, MIN_TILES_PER_CLASS, gate


def reference(per_class: int = 200) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(3), per_class)
    return np.where(np.eye(3)[truth] == 1, 0.9, 0.05), truth


def test_the_same_probabilities_pass() -> None:
    probabilities, truth = reference()
    result = gate(probabilities, probabilities, truth)
    assert result["verdict"] == "pass"
    assert result["agreement"] == 1


@pytest.mark.parametrize(("flips", "verdict"), [(1, "pass"), (30, "fail")])
def test_flipped_tiles_fail_beyond_the_limits(flips: int, verdict: str) -> None:
    probabilities, truth = reference()
    variant = probabilities.copy()
    variant[:flips] = variant[:flips, ::-1]
    result = gate(variant, probabilities, truth)
    assert result["verdict"] == verdict
    assert bool(result["reasons"]) == (verdict == "fail")


def test_lost_confidence_fails_though_every_label_agrees() -> None:
    probabilities, truth = reference()
    squashed = np.where(probabilities > 0.5, 0.5, 0.25)
    result = gate(squashed, probabilities, truth)
    assert result["agreement"] == 1
    assert result["verdict"] == "fail"
    assert "calibration" in result["reasons"][0]


def test_few_tiles_are_inconclusive() -> None:
    probabilities, truth = reference(per_class=5)
    assert gate(probabilities, probabilities, truth)["verdict"] == "inconclusive"


def test_one_flip_below_the_minimum_would_have_failed() -> None:
    """The minimum is where one tile is as large as the limit on a class's recall."""
    probabilities, truth = reference(per_class=MIN_TILES_PER_CLASS)
    variant = probabilities.copy()
    variant[0] = variant[0, ::-1]
    assert gate(variant, probabilities, truth)["verdict"] == "pass"
    assert LIMITS["max_recall_drop"] < 1 / (MIN_TILES_PER_CLASS - 1)


def test_what_is_no_number_fails() -> None:
    probabilities, truth = reference()
    variant = probabilities.copy()
    variant[3] = np.nan
    result = gate(variant, probabilities, truth)
    assert result["verdict"] == "fail"
    assert "not finite" in result["reasons"][0]


def test_a_class_without_tiles_is_inconclusive() -> None:
    probabilities, truth = reference()
    some = truth < 2
    assert gate(probabilities[some], probabilities[some], truth[some])["verdict"] == "inconclusive"
