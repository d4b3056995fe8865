"""What the model knows: distances, thresholds and sets, each against what is computed by hand."""

import numpy as np
import pytest

from edgelung.evaluation.known import (
    KnownTissue,
    fit_known,
    rank_correlation,
    set_level,
    threshold_of,
)
from edgelung.evaluation.shares import share_of


@pytest.fixture(scope="module")
def features() -> tuple[np.ndarray, np.ndarray]:
    """Two classes far apart, with one covariance that is no multiple of the identity."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    spread = np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.2], [0.0, 0.2, 0.5]])
    return rng.multivariate_normal(np.zeros(3), spread, 1000) + 40.0 * labels[:, None], labels


def by_hand(features: np.ndarray, labels: np.ndarray, x: np.ndarray) -> float:
    """The score of one tile as the definition says it, inverting the covariance."""
    means = [features[labels == label].mean(axis=0) for label in (0, 1)]
    within = np.concatenate([features[labels == label] - means[label] for label in (0, 1)])
    covariance = within.T @ within / len(within)
    shrunk = 0.99 * covariance + 0.01 * np.trace(covariance) / 3 * np.eye(3)
    return min((x - m) @ np.linalg.inv(shrunk) @ (x - m) for m in means) / 3


def test_the_score_is_the_mahalanobis_distance_to_the_nearest_class(features: tuple) -> None:
    known = fit_known(*features, block=2)
    x = np.array([[1.0, -2.0, 3.0], [41.0, 38.0, 40.0], [20.0, 20.0, 20.0]])
    expected = [by_hand(*features, one) for one in x]
    np.testing.assert_allclose(known.scores(x), expected, rtol=1e-9)


def test_training_tiles_score_about_one(features: tuple) -> None:
    assert fit_known(*features, block=2).scores(features[0]).mean() == pytest.approx(1, abs=0.03)


def test_between_two_classes_is_far_from_both(features: tuple) -> None:
    known = fit_known(*features, block=2)
    assert known.scores([[20.0, 20.0, 20.0]])[0] > 10 * known.scores(features[0]).max()


def test_fewer_tiles_than_channels_are_no_error() -> None:
    rng = np.random.default_rng(0)
    known = fit_known(rng.normal(size=(6, 40)), np.array([0, 0, 0, 1, 1, 1]), block=1)
    assert isinstance(known, KnownTissue)
    assert np.isfinite(known.scores(rng.normal(size=(5, 40)))).all()


def test_a_large_group_counts_as_much_as_a_small_one() -> None:
    """90 tiles of one group are low; of the other group's 10 tiles, five are high."""
    scores = np.concatenate([np.zeros(90), np.full(5, 1.0), np.arange(2.0, 7.0)])
    groups = ["a"] * 90 + ["b"] * 10
    assert threshold_of(scores, groups, 0.75) == 1.0
    assert threshold_of(scores, groups, 0.8) == 2.0
    assert threshold_of(scores, groups, 1.0) == 6.0


def test_the_sets_of_a_level_cover_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    of_truth, groups = rng.uniform(size=400), [str(i % 40) for i in range(400)]
    for coverage in (0.8, 0.95, 1.0):
        covered = of_truth >= set_level(of_truth, groups, coverage)
        assert coverage <= covered.mean() < coverage + 0.01


def test_rank_correlation_is_of_ranks_and_ties_share_theirs() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)


def test_a_share_is_the_mean_over_groups() -> None:
    flags = np.array([True] * 98 + [False, False])
    share = share_of(flags, ["a"] * 98 + ["b", "b"])
    assert (share.share, share.tiles, share.groups) == (0.5, 100, 2)
    assert share.interval == (0.0, 1.0)


@pytest.mark.parametrize("flag", [True, False])
def test_groups_that_are_all_alike_still_leave_doubt(flag: bool) -> None:
    share = share_of(np.full(60, flag), [str(i % 30) for i in range(60)])
    low, high = share.interval
    assert high - low == pytest.approx(1 - 0.025 ** (1 / 30))
    assert low <= share.share <= high
