"""Intervals widen with the dependence inside groups and have their nominal coverage."""

import numpy as np
import pytest
from msgspec import structs

from edgelung.evaluation.intervals import caution, intervals, paired_intervals, written
from edgelung.evaluation.metrics import classification_metrics, confusion_matrix


def drawn(seed: int, groups: int = 40, size: int = 20, spread: float = 0.3):
    """Tiles of 3 classes; each group has its own probability of being right, around 0.8."""
    rng = np.random.default_rng(seed)
    chance = np.clip(0.8 + spread * rng.uniform(-1, 1, groups), 0, 1)
    truth = np.repeat(np.arange(groups) % 3, size)
    right = rng.random(groups * size) < np.repeat(chance, size)
    predicted = np.where(right, truth, (truth + 1) % 3)
    return predicted, truth, [f"g{i:03}" for i in np.repeat(np.arange(groups), size)]


def test_the_interval_contains_the_estimate_and_is_repeatable() -> None:
    predicted, truth, groups = drawn(0)
    bounds = intervals(predicted, truth, groups, 3)
    metrics = classification_metrics(confusion_matrix(truth, predicted, 3))
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, high = getattr(bounds, name)
        assert low < getattr(metrics, name) < high
    assert bounds == intervals(predicted, truth, groups, 3)


def test_tiles_of_a_group_are_not_treated_as_independent() -> None:
    predicted, truth, groups = drawn(0)
    grouped = intervals(predicted, truth, groups, 3).accuracy
    alone = intervals(predicted, truth, [str(i) for i in range(len(truth))], 3).accuracy
    assert grouped[1] - grouped[0] > 1.5 * (alone[1] - alone[0])


def test_it_has_its_nominal_coverage() -> None:
    """0.8 is the probability of being right over all possible groups."""
    inside = 0
    for seed in range(200):
        low, high = intervals(*drawn(seed), 3).accuracy
        inside += low <= 0.8 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_a_paired_interval_shows_a_difference_that_two_intervals_do_not() -> None:
    """The second model corrects a tenth of the first one's mistakes, spread over the groups."""
    first, truth, groups = drawn(0)
    second = first.copy()
    second[np.flatnonzero(first != truth)[::10]] = truth[np.flatnonzero(first != truth)[::10]]
    low, high = paired_intervals(first, second, truth, groups, 3).accuracy
    assert 0 < low < np.mean(second == truth) - np.mean(first == truth) < high
    one, other = (intervals(p, truth, groups, 3).accuracy for p in (first, second))
    assert one[1] > other[0]
    nothing = paired_intervals(first, first, truth, groups, 3)
    assert set(structs.astuple(nothing)) == {(0.0, 0.0)}


def test_groups_of_several_classes_and_a_class_without_tiles_are_accepted() -> None:
    truth = np.array([0, 1, 0, 1, 0, 1])
    bounds = intervals(np.array([0, 1, 0, 0, 0, 1]), truth, ["a", "a", "b", "b", "c", "c"], 3)
    assert bounds.accuracy == pytest.approx((0.5, 1.0))


def test_without_a_mistake_the_lower_bound_allows_for_unseen_sources() -> None:
    """If 0 of G sources fail, up to 1 − 0.025^(1/G) of all may (exact binomial, one side)."""
    for groups in (6, 30):
        truth = np.repeat(np.arange(groups) % 3, 20)
        names = [str(i) for i in np.repeat(np.arange(groups), 20)]
        bounds = intervals(truth, truth, names, 3)
        assert bounds.balanced_accuracy == (pytest.approx(0.025 ** (1 / groups)), 1.0)


def test_a_class_with_few_groups_keeps_them_in_every_resample() -> None:
    """Without strata a resample would often lack the rare class, which widens the interval."""
    truth = np.array([0] * 40 + [1] * 2)
    predicted = np.array([0] * 30 + [1] * 10 + [1, 1])
    low, high = intervals(predicted, truth, [str(i) for i in range(42)], 2).balanced_accuracy
    assert (low, high) == (pytest.approx(0.8125, abs=0.02), pytest.approx(0.9375, abs=0.02))


def test_an_interval_of_zero_width_is_shown_as_a_dash() -> None:
    assert written((0.911, 0.989)) == "91.10 – 98.90 %"
    assert written((1 / 3, 1 / 3)) == "–"
    assert "1 group(s)" in caution(1)
    assert caution(10) == ""
