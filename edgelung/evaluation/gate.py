"""The gate: a variant against full precision on the same tiles, which calibrated neither.

The verdict of one criterion is `Bound.verdict` (artifacts/results.py). `export/evaluate.py` judges
a variant in OpenVINO too and checks FP16's range: either can turn a pass into something less.

Six things must hold (`Limits`): agreement, relative balanced accuracy, the recall of every class,
the calibration error. Each is judged by a bound, not by its estimate:

- *pass*: the pessimistic bound of every one lies inside its limit;
- *fail*: the optimistic bound of some one lies outside: the tiles show that it is violated;
- *inconclusive*: neither. The tiles cannot tell, which is no pass; the result says how many tiles
  and groups of the same kind would.

**The bounds** are percentile bootstraps of the paired differences, over whole groups within each
class, since a quantized model errs on a source rather than on a tile. Two things go beyond it:

- A bootstrap of few or no events is blind: where no tile flipped every resample says 'nothing ever
  flips'. So the pessimistic side adds events not seen yet, Poisson(1) of them a resample, each as
  many flips as the groups that flipped had (one, where none did). For single flips its bounds are
  those of the exact Poisson interval (Garwood 1936): none seen means at most 2.3, one at most 3.9.
  Without any flip a class needs 200 tiles.
- Over few groups a bootstrap collapses to a point. Both ends are therefore never closer than those
  of a bootstrap over tiles, and below `MIN_GROUPS` groups a class nothing passes.

**The level** is 90 % for each bound. All must hold at once (Berger 1982: such a test needs no
correction), so a variant that violates one limit exactly passes in at most 10 % of cases, in fewer
the more it violates, and one that violates several hardly ever. A 95 % bound would turn a single
flipped tile among LC25000's 475 gate tiles a class into 'inconclusive' (5 unseen and seen flips
against 4.75 allowed): most INT8 variants that agree on 99.9 % of tiles would then not pass, and no
gate would be asked for that. Both errors are simulated in the tests, for flips that are spread over
many groups: on 1,440 tiles in 72 groups a variant that truly disagrees on 1 % passes in under 10 %
of cases, one on 0.1 % in over 75 %.

Looking again, at a variant that gave back linears after it failed, costs little more: the n-th look
is judged at 1 − 0.1/(n(n+1)), so that all looks from the second on add at most 5 %.

What no test of these tiles can see: a variant that flips many tiles of sources so rare that none is
among the gate's groups. With 72 groups a failing that strikes 2 % of sources is missed in 23 % of
cases, with 15 one that strikes 5 % in 46 %; more groups are the only cure. The result says how rare
a failing must be (`unseen_sources`) to be missed in one case in ten.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import structs

from edgelung.artifacts.results import Bound, GateResult, Limits, TilesNeeded
from edgelung.evaluation.metrics import BINS, Floats, Labels, agreement, confidence_gaps, evaluate

RESAMPLES = 2000
MIN_GROUPS = 5  # of each class; resampling fewer says nothing about other sources
MAX_GROWTH = 64  # how many times the tiles there are is still worth naming as what would decide


LIMITS = Limits()
STRICT = Limits(min_relative_balanced_accuracy=0.999)

Array = npt.NDArray[np.float64]


def gate(
    variant: Floats,
    reference: Floats,
    truth: Labels,
    groups: Sequence[str],
    *,
    limits: Limits = LIMITS,
    looks: int = 1,
    classes: Sequence[str] = (),
) -> GateResult:
    """Compare a variant with full precision on the same tiles.

    Only the verdict 'pass' lets `auto` choose the variant.

    Args:
        variant: probabilities (N, classes) of the variant.
        reference: probabilities (N, classes) of full precision.
        truth: int64 (N,), class indices.
        groups: source of each tile, length N.
        limits: what the variant may lose.
        looks: how often these tiles have judged a form of this variant, this time included.
        classes: their names, for the reasons.
    """
    count = len(set(groups))
    result = GateResult(
        verdict="fail",
        reasons=["some probabilities are not finite"],
        tiles=len(truth),
        groups=count,
        unseen_sources=1 - 0.1 ** (1 / max(1, count)),
        limits=limits,
        looks=looks,
    )
    if not np.isfinite(variant).all():
        return result
    result = _with_estimates(result, variant, reference, truth)
    per_class = _groups_per_class(truth, groups, reference.shape[1])
    if min(per_class) == 0:
        return structs.replace(result, verdict="inconclusive", reasons=["a class has no gate tile"])
    sums = _Sums(variant, reference, truth, groups, classes)
    level = 0.9 if looks == 1 else 1 - 0.1 / (looks * (looks + 1))
    checks = sums.checks(limits, level)
    result = structs.replace(result, checks=checks)
    failed = [_reason(*item) for item in checks.items() if item[1].verdict == "fail"]
    if failed:
        return structs.replace(result, verdict="fail", reasons=failed)
    reasons = [_reason(*item) for item in checks.items() if item[1].verdict == "inconclusive"]
    if min(per_class) < MIN_GROUPS:
        reasons.append(
            f"{min(per_class)} gate groups in the smallest class; at least {MIN_GROUPS} are needed"
        )
    if not reasons:
        return structs.replace(result, verdict="pass", reasons=[])
    growth = _needed(sums, limits, level, MIN_GROUPS / min(per_class))
    return _inconclusive(result, reasons, growth, len(truth), count)


def _with_estimates(
    result: GateResult, variant: Floats, reference: Floats, truth: Labels
) -> GateResult:
    """The result with every estimate, of the variant and of full precision."""
    ours, theirs, both = (
        evaluate(variant, truth),
        evaluate(reference, truth),
        agreement(variant, reference),
    )
    return structs.replace(
        result,
        agreement=both.agreement,
        differing_labels=both.differing_labels,
        max_probability_difference=both.max_probability_difference,
        balanced_accuracy=ours.balanced_accuracy,
        reference_balanced_accuracy=theirs.balanced_accuracy,
        recall=ours.recall,
        reference_recall=theirs.recall,
        expected_calibration_error=ours.expected_calibration_error,
        reference_expected_calibration_error=theirs.expected_calibration_error,
    )


def _inconclusive(
    result: GateResult, reasons: list[str], growth: float | None, tiles: int, groups: int
) -> GateResult:
    """The result where the tiles cannot tell, with what would decide."""
    if growth is None:
        reason = "it lies so close to the limit that no reasonable number of tiles decides"
        return structs.replace(result, verdict="inconclusive", reasons=[*reasons, reason])
    needed = TilesNeeded(tiles=int(np.ceil(growth * tiles)), groups=int(np.ceil(growth * groups)))
    reason = (
        f"about {needed.tiles} gate tiles in {needed.groups} groups of the same kind would decide "
        f"({tiles} in {groups} are there)"
    )
    return structs.replace(
        result, verdict="inconclusive", reasons=[*reasons, reason], needed=needed
    )


def _reason(name: str, check: Bound) -> str:
    sign = "is above" if check.verdict == "fail" else "may reach"
    bound = check.low if check.verdict == "fail" else check.high
    return (
        f"{name} {100 * check.loss:.2f} points ({100 * check.low:.2f} … "
        f"{100 * check.high:.2f}) {sign} {100 * bound:.2f}, allowed {100 * check.limit:.2f}"
    )


def _groups_per_class(truth: Labels, groups: Sequence[str], classes: int) -> list[int]:
    pairs = set(zip(truth.tolist(), groups, strict=True))
    return [sum(label == c for label, _ in pairs) for c in range(classes)]


class _Sums:
    """What every criterion is made of, summed per unit (a group or a tile), so that a resample is
    one product of weights and sums.

    Columns: tiles, hits of the reference and of the variant of each class (3·C), flips (1), the
    summed confidence minus correctness per bin of the reference and of the variant (2·BINS).
    """

    def __init__(
        self,
        variant: Floats,
        reference: Floats,
        truth: Labels,
        groups: Sequence[str],
        names: Sequence[str],
    ) -> None:
        self.classes = reference.shape[1]
        self.names = names or [f"class {i}" for i in range(self.classes)]
        own = np.eye(self.classes)[truth]  # (N, C)
        first, second = reference.argmax(axis=1), variant.argmax(axis=1)
        flips = first != second
        self.tiles = np.concatenate(
            [
                own,
                own * (first == truth)[:, None],
                own * (second == truth)[:, None],
                flips[:, None],
                confidence_gaps(reference, truth),
                confidence_gaps(variant, truth),
            ],
            axis=1,
        )  # (N, 3C + 1 + 2 BINS)
        found, start, index = np.unique(groups, return_index=True, return_inverse=True)
        self.groups = np.zeros((len(found), self.tiles.shape[1]))
        np.add.at(self.groups, index, self.tiles)
        # Resampled within classes; a group of several counts with its first tile's.
        self.strata_of_groups, self.strata_of_tiles = truth[start], truth
        flipped = self.groups[:, 3 * self.classes]
        self.unseen = float((flipped**2).sum() / flipped.sum()) if flips.any() else 1.0

    def checks(self, limits: Limits, level: float, growth: float = 1.0) -> dict[str, Bound]:
        """The criteria; as they would be of `growth` times as many groups of the same kind."""
        estimate = self._losses(self.tiles.sum(axis=0, keepdims=True), 0.0)[:, 0]
        over_groups = self.resampled(self.groups, self.strata_of_groups, growth)
        # The same spread as that many tiles would have, without drawing millions of them.
        middle = self.tiles.sum(axis=0)
        over_tiles = growth * middle + growth**0.5 * (self.over_tiles - middle)
        bounds = [self._bounds(totals, level) for totals in (over_groups, over_tiles)]
        low = np.minimum(bounds[0][0], bounds[1][0])
        high = np.maximum(bounds[0][1], bounds[1][1])
        return self._named(limits, estimate, low, high)

    @cached_property
    def over_tiles(self) -> Array:
        """Totals of resamples of the tiles there are."""
        return self.resampled(self.tiles, self.strata_of_tiles, 1.0)

    def resampled(self, sums: Array, strata: Labels, growth: float) -> Array:
        """Totals of RESAMPLES resamples of the rows of `sums`, (R, columns)."""
        rng = np.random.default_rng(0)
        totals = np.zeros((RESAMPLES, sums.shape[1]))
        for label in np.unique(strata):
            members = sums[strata == label]
            count = len(members)
            drawn = round(growth * count)
            for start in range(0, RESAMPLES, 100):  # in parts: memory does not grow with the tiles
                places = rng.integers(0, count, (100, drawn)) + count * np.arange(100)[:, None]
                weights = np.bincount(places.ravel(), minlength=100 * count).reshape(100, count)
                totals[start : start + 100] += weights.astype(np.float64) @ members
        return totals

    def _bounds(self, totals: Array, level: float) -> tuple[Array, Array]:
        rng = np.random.default_rng(1)
        unseen = self.unseen * rng.poisson(1.0, len(totals)).astype(np.float64)
        low = np.quantile(self._losses(totals, 0.0), 1 - level, axis=1)
        high = np.quantile(self._losses(totals, unseen), level, axis=1)
        return low, high

    def _losses(self, totals: Array, unseen: Array | float) -> Array:
        """Every criterion's loss (criteria, R) of totals (R, columns).

        `unseen` flips are laid to each criterion in turn, where they cost most.
        """
        c = self.classes
        count, theirs, ours = (totals[:, i * c : (i + 1) * c] for i in range(3))  # (R, C) each
        count = np.maximum(count, 1)  # a resample may miss a class that only mixed groups hold
        flips, gaps = totals[:, 3 * c], totals[:, 3 * c + 1 :].reshape(len(totals), 2, BINS)
        tiles = count.sum(axis=1)
        recall = theirs / count
        drop = (theirs - ours + np.reshape(unseen, (-1, 1))) / count
        lost = ((theirs - ours) / count).mean(axis=1) + unseen / (c * count.min(axis=1))
        error = np.abs(gaps).sum(axis=2) / tiles[:, None]  # (R, 2)
        return np.stack(
            [
                (flips + unseen) / tiles,
                lost / np.maximum(recall.mean(axis=1), 1e-12),
                *drop.T,
                error[:, 1] - error[:, 0],
            ]
        )

    def _named(self, limits: Limits, estimate: Array, low: Array, high: Array) -> dict[str, Bound]:
        most: Mapping[str, float] = {
            "disagreement": 1 - limits.min_agreement,
            "loss of balanced accuracy (relative)": 1 - limits.min_relative_balanced_accuracy,
            **{f"loss of recall, {name}": limits.max_recall_drop for name in self.names},
            "rise of calibration error": limits.max_calibration_error_rise,
        }
        rows = zip(most.items(), estimate, low, high, strict=True)
        # Limits such as 1 − 0.99 are a hair below what a count of exactly 1 in 100 gives.
        return {
            name: Bound(loss=float(e), low=float(a), high=float(b), limit=limit + 1e-9)
            for (name, limit), e, a, b in rows
        }


def _needed(sums: _Sums, limits: Limits, level: float, least: float) -> float | None:
    """The growth in groups, to about 5 %, from which on the verdict is no longer 'inconclusive'."""

    def decided(growth: float) -> bool:
        verdicts = {c.verdict for c in sums.checks(limits, level, growth).values()}
        return "fail" in verdicts or verdicts == {"pass"}

    low = high = max(1.0, least)
    while not decided(high):
        low, high = high, 2 * high
        if high > MAX_GROWTH * max(1.0, least):
            return None
    while high / low > 1.05:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
