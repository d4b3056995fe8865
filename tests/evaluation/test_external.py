"""Figures on a site's tiles: they equal what one computes by hand, and know what they rest on."""

import numpy as np
import pytest
from msgspec import structs

from edgelung.artifacts.results import Estimate, Intervals, VariantTest
from edgelung.evaluation import intervals as module
from edgelung.evaluation.external import (
    LabelledTiles,
    against_test,
    by_column,
    difference_of,
    group_counts,
    kept_tiles,
    prediction_sets,
    subset_of,
    unknown_tiles,
)
from edgelung.evaluation.intervals import calibration_estimate, estimates
from edgelung.evaluation.metrics import evaluate, roc_auc
from edgelung.evaluation.requirements import check_classes, judge, parse_requirement

CLASSES = ["a", "b"]
# Five tiles of a (four right), three of b (two right); the last one was not read.
TILES = LabelledTiles(
    statuses=("ok", "ok", "ok", "unknown", "blank", "ok", "ok", "ok", "corrupt"),
    truth=np.array([0, 0, 0, 0, 0, 1, 1, 1, 1]),
    groups=("g1", "g1", "g2", "g2", "g2", "g3", "g3", "g4", "g4"),
    columns={"site": ("x", "x", "x", "y", "y", "x", "x", "y", "x")},
    probabilities=np.array(
        [
            *([0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.6, 0.4]),
            *([0.05, 0.95], [0.35, 0.65], [0.75, 0.25], [0, 0]),
        ]
    ),
    sets=np.array([[1, 0], [1, 0], [1, 1], [0, 1], [1, 1], [0, 1], [0, 1], [1, 1], [0, 0]], bool),
)
ALL = np.ones(9, bool)


def random_tiles(seed: int = 0, groups: int = 12, size: int = 5):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(groups) % 3, size)
    values = rng.random((len(truth), 3)) + 0.4 * np.eye(3)[truth]
    names = [f"g{i:02}" for i in np.repeat(np.arange(groups), size)]
    return (values / values.sum(axis=1, keepdims=True)).round(2), truth, names


def test_the_figures_are_those_computed_by_hand() -> None:
    subset = subset_of(TILES, ALL)
    assert subset.statuses == {"ok": 6, "unknown": 1, "blank": 1, "corrupt": 1}
    assert subset.confusion == [[4, 1], [1, 2]]
    figures = subset.figures
    assert figures is not None
    assert (figures.tiles, figures.groups, figures.fewest_groups) == (8, 4, 2)
    assert figures.accuracy.value == 6 / 8
    assert [one.value for one in figures.recall] == [4 / 5, 2 / 3]
    assert figures.balanced_accuracy.value == pytest.approx((4 / 5 + 2 / 3) / 2)
    # Of the 15 pairs, a scores higher than b: 5 with .05, 5 with .35, and 2 with .75.
    assert figures.roc_auc.value == pytest.approx(12 / 15)


def test_the_intervals_of_area_and_calibration_are_those_of_repeated_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the tiles do not fit into one block."""
    monkeypatch.setattr(module, "MAX_CELLS", 100)
    monkeypatch.setattr(module, "RESAMPLES", 20)
    probabilities, truth, groups = random_tiles()
    names, index = np.unique(groups, return_inverse=True)
    weights = np.concatenate(list(module._weight_blocks(truth, groups)))
    assert weights.shape == (20, len(names))
    drawn = module._resampled_figures(probabilities, truth, groups, index)
    for row, counts in enumerate(weights):
        repeated = np.repeat(np.arange(len(truth)), counts[index].astype(int))
        metrics = evaluate(probabilities[repeated], truth[repeated])
        for name in ("accuracy", "balanced_accuracy", "roc_auc", "expected_calibration_error"):
            assert drawn[name][row] == pytest.approx(getattr(metrics, name))
        assert drawn["recall"][row] == pytest.approx(metrics.recall)


def test_every_interval_holds_its_estimate() -> None:
    probabilities, truth, groups = random_tiles()
    figures = estimates(probabilities, truth, groups)
    assert figures.roc_auc.value == roc_auc(probabilities, truth)
    rates = (figures.accuracy, figures.balanced_accuracy, figures.roc_auc, *figures.recall)
    for one in (*rates, figures.expected_calibration_error):
        assert one.interval is not None
        assert one.value is not None
        assert one.interval[0] < one.value < one.interval[1]


def test_a_class_without_tiles_has_no_recall_and_does_not_count() -> None:
    probabilities, truth, groups = random_tiles()
    kept = truth != 2
    figures = estimates(
        probabilities[kept], truth[kept], [g for g, k in zip(groups, kept, strict=True) if k]
    )
    assert figures.recall[2] == Estimate(value=None, interval=None)
    values = [one.value or 0 for one in figures.recall[:2]]
    assert figures.balanced_accuracy.value == pytest.approx(np.mean(values))
    one_class = estimates(probabilities[truth == 0], truth[truth == 0], ["g"] * 20)
    assert one_class.roc_auc == Estimate(value=None, interval=None)


def test_without_an_error_the_lower_bound_is_that_of_so_many_groups() -> None:
    truth = np.repeat([0, 1], 10)
    groups = [str(i // 2) for i in range(20)]
    figures = estimates(np.eye(2)[truth] * 0.8 + 0.1, truth, groups)
    assert figures.accuracy.interval == pytest.approx((0.025 ** (1 / 10), 1))
    assert figures.recall[0].interval == pytest.approx((0.025 ** (1 / 5), 1))
    wrong = estimates(np.eye(2)[1 - truth], truth, groups)
    assert wrong.recall[0].interval == pytest.approx((0, 1 - 0.025 ** (1 / 5)))


def test_each_site_has_its_own_figures_and_a_class_may_be_missing_there() -> None:
    sites = by_column(TILES, "site")
    assert list(sites) == ["x", "y"]
    assert sites["x"].statuses == {"ok": 5, "corrupt": 1}
    assert sites["x"].confusion == [[3, 0], [0, 2]]
    assert sites["y"].confusion == [[1, 1], [1, 0]]
    only_a = by_column(
        LabelledTiles(("ok", "corrupt"), np.array([0, 1]), ("g", "h"), {"site": ("x", "y")},
                      np.array([[0.9, 0.1], [0, 0]])),
        "site",
    )  # fmt: skip
    assert only_a["x"].figures is not None
    assert only_a["x"].figures.recall[1].value is None
    assert only_a["y"].figures is None


def test_unknown_and_blank_tiles_can_be_left_out() -> None:
    unknown = unknown_tiles(TILES, can_tell=True)
    assert unknown is not None
    assert unknown.unknown.share == pytest.approx(1 / 3 / 4)  # a third of one group of four
    assert unknown.without is not None
    assert unknown.without.tiles == 6
    assert unknown.without.accuracy.value == 5 / 6


def test_the_least_confident_tiles_are_left_out_first() -> None:
    kept = {one.tiles: one for one in kept_tiles(TILES)}
    assert kept[8].accuracy == 6 / 8
    assert (kept[4].accuracy, kept[4].least_confidence, kept[4].share) == (3 / 4, 0.75, 0.5)


def test_sets_are_judged_by_whether_they_hold_the_true_class() -> None:
    sets = prediction_sets(TILES, "0.99")
    assert sets is not None
    assert sets.mean_size == 11 / 8
    assert sets.coverage.share == pytest.approx((1 + 2 / 3 + 1 + 1) / 4)


def test_groups_with_errors_are_counted() -> None:
    assert [(one.group, one.wrong, one.tiles) for one in group_counts(TILES)] == [
        ("g2", 1, 3),
        ("g4", 1, 1),
    ]


def test_a_difference_of_independent_groups_combines_both_intervals() -> None:
    here, test = (
        Estimate(value=0.8, interval=(0.7, 0.85)),
        Estimate(value=0.9, interval=(0.86, 0.93)),
    )
    difference = difference_of(here, test)
    assert difference.value == pytest.approx(-0.1)
    assert difference.interval == pytest.approx(
        (-0.1 - np.hypot(0.1, 0.03), -0.1 + np.hypot(0.05, 0.04))
    )
    assert difference_of(here, Estimate(value=0.9, interval=(0.9, 0.9))).interval is None


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.9, 0.95), "worse here"), ((0.4, 0.5), "better here"), ((0.6, 0.9), "no difference shown")],
)
def test_the_verdict_is_in_words(interval: tuple[float, float], verdict: str) -> None:
    probabilities, truth, groups = random_tiles(groups=30)
    figures = estimates(probabilities, truth, groups)
    metrics = {
        **structs.asdict(evaluate(probabilities, truth)),
        "balanced_accuracy": sum(interval) / 2,
    }
    bounds = Intervals(accuracy=interval, balanced_accuracy=interval, macro_f1=interval)
    test = VariantTest(**metrics, intervals=bounds, agreement_with_fp32=1.0)
    compared = against_test(figures, test, ["a", "b", "c"])
    assert compared["balanced_accuracy"].verdict == verdict
    assert compared["roc_auc"].verdict is None


def test_a_requirement_is_met_by_the_lower_bound() -> None:
    probabilities, truth, groups = random_tiles()
    figures = estimates(probabilities, truth, groups)
    assert figures.accuracy.interval is not None
    assert figures.accuracy.value is not None
    low, high = figures.accuracy.interval
    texts = [f"accuracy={x}" for x in (low, figures.accuracy.value, high + 0.001)]
    judged = judge([parse_requirement(text) for text in texts], figures, ["a", "b", "c"])
    assert [one.verdict for one in judged] == ["pass", "inconclusive", "fail"]
    assert judge([parse_requirement("recall:b=0.1")], None, CLASSES)[0].verdict == "inconclusive"


@pytest.mark.parametrize(
    "text", ["accuracy", "=0.9", "f1=0.9", "accuracy=high", "accuracy=95", "accuracy=nan"]
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|no number|outside"):
        parse_requirement(text)


def test_a_class_that_the_model_does_not_know_is_refused() -> None:
    check_classes([parse_requirement("recall:b=0.9")], CLASSES)
    with pytest.raises(ValueError, match="'c' is unknown; expected a, b"):
        check_classes([parse_requirement("recall:c=0.9")], CLASSES)


def test_the_change_of_a_calibration_error_is_paired() -> None:
    probabilities, truth, groups = random_tiles()
    same = calibration_estimate(probabilities, truth, groups, before=probabilities)
    assert same == Estimate(value=0, interval=None)
