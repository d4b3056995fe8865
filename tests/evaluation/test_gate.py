"""The verdicts of the gate have the right reasons, and its error rates are as documented."""

import numpy as np
import pytest

from edgelung.evaluation import gate as module
from edgelung.evaluation.gate import LIMITS, MIN_GROUPS, STRICT, gate

Drawn = tuple[np.ndarray, np.ndarray, list[str]]


def reference(groups: int = 24, size: int = 20) -> Drawn:
    """Three classes of `groups` groups each: probabilities, truth, groups."""
    truth = np.repeat(np.arange(3), groups * size)
    names = [f"g{i:04}" for i in np.repeat(np.arange(3 * groups), size)]
    return np.where(np.eye(3)[truth] == 1, 0.9, 0.05), truth, names


def flipped(probabilities: np.ndarray, rows: object) -> np.ndarray:
    variant = probabilities.copy()
    variant[rows] = np.roll(variant[rows], 1, axis=1)
    return variant


def test_the_same_probabilities_pass_on_enough_tiles() -> None:
    probabilities, truth, groups = reference()
    result = gate(probabilities, probabilities, truth, groups)
    assert result.verdict == "pass"
    assert result.agreement == 1
    assert (result.tiles, result.groups) == (1440, 72)
    for check in result.checks.values():
        assert check.loss == 0
        assert 0 <= check.high <= check.limit, "no flip seen does not prove that there is none"


@pytest.mark.parametrize("flips", [1, 3])
def test_a_flip_in_each_class_passes_at_the_size_of_lc25000(flips: int) -> None:
    """As for an INT8 variant that agrees on 99.8 or 99.9 % of the tiles."""
    probabilities, truth, groups = reference()
    variant = flipped(probabilities, [(i * 480 + 7) for i in range(flips)])
    assert gate(variant, probabilities, truth, groups).verdict == "pass"


def test_flips_beyond_the_limits_fail_and_say_where() -> None:
    probabilities, truth, groups = reference()
    variant = flipped(probabilities, slice(0, 480, 10))
    result = gate(variant, probabilities, truth, groups, classes=("aca", "n", "scc"))
    assert result.verdict == "fail"
    assert [reason.split(" points")[0][:24] for reason in result.reasons] == [
        "disagreement 3.33",
        "loss of balanced accurac",
        "loss of recall, aca 10.0",
    ]
    assert "is above" in result.reasons[0]


def test_flips_that_share_a_group_weigh_more_than_flips_that_do_not() -> None:
    """Six flips in one source, or six flips in six sources."""
    probabilities, truth, groups = reference()
    together = gate(flipped(probabilities, slice(0, 6)), probabilities, truth, groups)
    apart = gate(flipped(probabilities, slice(0, 1440, 240)), probabilities, truth, groups)
    assert together.agreement == apart.agreement
    bound = [r.checks["disagreement"].high for r in (together, apart)]
    assert bound[0] > 1.4 * bound[1]
    assert together.verdict == "inconclusive"


def test_gains_pay_for_losses_in_recall_but_not_in_agreement() -> None:
    probabilities, truth, groups = reference()
    wrong = slice(0, 1440, 100)  # the reference is wrong here, the variant right
    result = gate(probabilities, flipped(probabilities, wrong), truth, groups)
    checks = result.checks
    assert checks["loss of recall, class 0"].loss < 0
    assert checks["disagreement"].loss > 0.01


def test_lost_confidence_fails_though_every_label_agrees() -> None:
    probabilities, truth, groups = reference()
    squashed = np.where(probabilities > 0.5, 0.5, 0.25)
    result = gate(squashed, probabilities, truth, groups)
    assert result.agreement == 1
    assert result.verdict == "fail"
    assert "calibration" in result.reasons[0]


@pytest.mark.parametrize(("groups", "size"), [(3, 3), (4, 100), (8, 12)])
def test_few_tiles_or_few_groups_are_inconclusive_and_say_how_many_would_decide(
    groups: int, size: int
) -> None:
    probabilities, truth, names = reference(groups, size)
    result = gate(probabilities, probabilities, truth, names)
    assert result.verdict == "inconclusive"
    needed = result.needed
    assert needed.groups > 3 * groups
    enough = round(needed.groups / 3) + 1
    probabilities, truth, names = reference(enough, size)
    assert gate(probabilities, probabilities, truth, names).verdict == "pass"
    too_few = int(0.8 * needed.groups / 3)
    probabilities, truth, names = reference(too_few, size)
    assert gate(probabilities, probabilities, truth, names).verdict == "inconclusive"


def test_it_never_asks_for_as_many_tiles_as_it_has() -> None:
    """Many tiles in few groups, a flip in each: the bootstrap over tiles has the wider spread."""
    probabilities, truth, names = reference(20, 130)
    result = gate(flipped(probabilities, slice(0, 7800, 130)), probabilities, truth, names)
    assert result.verdict == "inconclusive"
    assert result.needed.tiles > 7800


def test_it_says_how_rare_a_fault_it_may_miss() -> None:
    few, many = (gate(p, p, *rest) for p, *rest in (reference(5, 60), reference(24, 60)))
    assert few.unseen_sources == pytest.approx(1 - 0.1 ** (1 / 15))
    assert many.unseen_sources == pytest.approx(0.0315, abs=1e-4)


def test_a_single_flip_of_few_tiles_is_no_failure() -> None:
    """One of nine tiles differs: 11 %, but that is no evidence."""
    probabilities, truth, names = reference(3, 1)
    result = gate(flipped(probabilities, [0]), probabilities, truth, names)
    assert result.verdict == "inconclusive"
    probabilities, truth, names = reference(1, 3)
    result = gate(flipped(probabilities, [0]), probabilities, truth, names)
    assert result.verdict == "inconclusive", "a single group per class always resamples to itself"


def test_a_useless_variant_fails_on_few_tiles_too() -> None:
    probabilities, truth, names = reference(2, 5)
    result = gate(flipped(probabilities, slice(0, 30, 2)), probabilities, truth, names)
    assert result.verdict == "fail"


def test_the_strict_limits_need_more_tiles() -> None:
    probabilities, truth, names = reference()
    result = gate(probabilities, probabilities, truth, names, limits=STRICT)
    assert result.verdict == "inconclusive"
    assert result.reasons[0].startswith("not enough validation groups to tell")
    assert "balanced accuracy" in result.reasons[1]
    probabilities, truth, names = reference(60)
    assert gate(probabilities, probabilities, truth, names, limits=STRICT).verdict == "pass"


def test_a_repeated_look_widens_the_bounds() -> None:
    probabilities, truth, names = reference()
    variant = flipped(probabilities, [3, 500])
    highs = [
        gate(variant, probabilities, truth, names, looks=looks).checks["disagreement"].high
        for looks in (1, 4)
    ]
    assert highs[1] > highs[0]


def test_probabilities_that_are_not_finite_fail() -> None:
    probabilities, truth, names = reference()
    variant = probabilities.copy()
    variant[3] = np.nan
    result = gate(variant, probabilities, truth, names)
    assert result.verdict == "fail"
    assert "not finite" in result.reasons[0]


def test_a_class_without_tiles_is_inconclusive() -> None:
    probabilities, truth, names = reference()
    kept = truth < 2
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    result = gate(probabilities[kept], probabilities[kept], truth[kept], names)
    assert result.verdict == "inconclusive"
    assert result.reasons == [
        "the gate has no tile of class 2; label more slides or raise split.val"
    ]


def test_an_inconclusive_verdict_says_first_what_it_means_and_what_to_do() -> None:
    probabilities, truth, names = reference(3, 3)
    result = gate(probabilities, probabilities, truth, names)
    needed = result.needed
    meaning, *bounds = result.reasons
    assert meaning == (
        f"not enough validation groups to tell: about {needed.groups} groups with {needed.tiles} "
        "tiles are needed, 9 with 27 are there (3 in the smallest class); label more slides or "
        "raise split.val"
    )
    undecided = [name for name, c in result.checks.items() if c.verdict == "inconclusive"]
    assert [bound.split(" 0.00 points")[0] for bound in bounds] == undecided
    for name, bound in zip(undecided, bounds, strict=True):
        high = f"{100 * result.checks[name].high:.2f}"
        assert bound.count(high) == 1, "a bound is said once"


def test_a_limit_that_no_number_of_tiles_decides_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_needed", lambda *values: None)
    probabilities, truth, names = reference(8, 12)
    result = gate(probabilities, probabilities, truth, names)
    assert result.needed is None
    assert result.reasons[0].startswith("too close to a limit to tell")


def test_groups_of_several_classes_are_judged() -> None:
    probabilities, truth, _ = reference(30, 20)
    names = [f"g{i % 90:02}" for i in range(len(truth))]
    assert gate(probabilities, probabilities, truth, names).verdict == "pass"
    assert min(module._groups_per_class(truth, names, 3)) == 90 >= MIN_GROUPS


@pytest.mark.parametrize("spread", ["tiles", "groups"])
def test_bad_variants_rarely_pass_and_good_ones_mostly_do(
    spread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variant that disagrees on exactly 1 % rarely passes; one on 0.1 % mostly does.

    Flips hit single tiles, or mostly groups of 20 tiles that flip ten times as often as others.
    Flips go both ways, so recall is lost and gained.
    """
    monkeypatch.setattr(module, "RESAMPLES", 400)
    trials = 40
    passed = dict.fromkeys((0.01, 0.001), 0)
    for rate in passed:
        for seed in range(trials):
            rng = np.random.default_rng(seed)
            probabilities, truth, names = reference()
            theirs = flipped(probabilities, rng.random(len(truth)) < 0.06)  # 94 % right
            prone = np.ones(72)
            if spread == "groups":
                prone = np.where(rng.random(72) < 0.1, 10, 1)
                prone = prone / prone.mean()
            flips = rng.random(len(truth)) < rate * np.repeat(prone, 20)
            ours = flipped(theirs, flips)
            ours[flips & (theirs.argmax(1) != truth)] = probabilities[
                flips & (theirs.argmax(1) != truth)
            ]
            passed[rate] += gate(ours, theirs, truth, names).verdict == "pass"
    assert passed[0.01] <= 0.1 * trials
    assert passed[0.001] >= 0.75 * trials
    assert LIMITS.min_agreement == 0.99
