"""The gate: compares a variant with full precision on the same tiles, which calibrated neither.

`Bound.verdict` (artifacts/results.py) gives the verdict on one criterion. `export/evaluate.py` also
judges a variant in OpenVINO and checks the range of FP16. Either check can lower a pass.

The criteria are those of `Limits`: agreement, relative balanced accuracy, the recall of each class,
and the calibration error. With three classes these are six criteria, and all must hold. Each one is
judged by a bound, not by its estimate:

- *pass*: every pessimistic bound lies inside its limit.
- *fail*: at least one optimistic bound lies outside its limit. The tiles show a violation.
- *inconclusive*: neither. The tiles cannot decide, and this is not a pass. The first reason says
  how many groups of the same kind would decide and what to do; the bounds follow.

**The bounds** are percentile bootstraps of the paired differences. They resample whole groups
within each class, because the errors of a quantized model cluster by source, not by tile. Two
corrections are added:

- A bootstrap of few or no events is blind: if no tile flipped, no resample contains a flip. The
  pessimistic side therefore adds unseen events, Poisson(1) of them per resample. Each has as many
  flips as the groups that flipped had, or one if none did. For single flips the bounds are those of
  the exact Poisson interval (Garwood 1936): none seen means at most 2.3, one seen at most 3.9.
  Without any flip a class needs 200 tiles.
- With few groups a bootstrap collapses to a point. Both ends are therefore never closer to the
  estimate than those of a bootstrap over tiles. With fewer than `MIN_GROUPS` groups in a class
  nothing passes.

**The level** of each bound is 90 %. All criteria must hold at once, and such a test needs no
correction for their number (Berger 1982). A variant that violates one limit exactly passes in at
most 10 % of cases. A larger violation passes less often, and several violations hardly ever.
At a 95 % bound a single flipped tile would be 'inconclusive' among the 475 gate tiles per class of
LC25000: 5 seen and unseen flips against 4.75 allowed. Most INT8 variants that agree on 99.9 % of
tiles would then not pass, and users would stop asking for a gate. The tests simulate both errors,
with flips that are spread over many groups. On 1,440 tiles in 72 groups, a variant that truly
disagrees on 1 % of tiles passes in under 10 % of cases, and one that disagrees on 0.1 % in over
75 %.

A variant that failed may be judged again after some of its linears return to floating point. This
costs little: look n is judged at level 1 − 0.1/(n(n+1)), so all looks from the second on add at
most 5 %.

No test of these tiles can see a variant that flips many tiles of very rare sources, if none of
those sources is among the gate's groups. With 72 groups, a fault in 2 % of sources is missed in
23 % of cases. With 15 groups, a fault in 5 % of sources is missed in 46 %. Only more groups help.
The result says how rare a fault must be to be missed in one case in ten (`unseen_sources`).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import structs

from edgelung.artifacts.results import Bound, GateResult, Limits, TilesNeeded
from edgelung.evaluation.metrics import BINS, Floats, Labels, agreement, confidence_gaps, evaluate

RESAMPLES = 2000
MIN_GROUPS = 5  # per class; resampling fewer says nothing about other sources
MORE_GROUPS = "label more slides or raise split.val"
MAX_GROWTH = 64  # more than this many times the present tiles is no useful advice

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
        limits: the largest losses allowed.
        looks: how many times these tiles have judged a form of this variant, including this time.
        classes: names of the classes, used in the reasons.
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
    sums = _Sums(variant, reference, truth, groups, classes)
    if min(per_class) == 0:
        absent = [name for name, n in zip(sums.names, per_class, strict=True) if not n]
        reason = f"the gate has no tile of {', '.join(absent)}; {MORE_GROUPS}"
        return structs.replace(result, verdict="inconclusive", reasons=[reason])
    level = 0.9 if looks == 1 else 1 - 0.1 / (looks * (looks + 1))
    checks = sums.checks(limits, level)
    result = structs.replace(result, checks=checks)
    failed = [_reason(*item) for item in checks.items() if item[1].verdict == "fail"]
    if failed:
        return structs.replace(result, verdict="fail", reasons=failed)
    bounds = [_reason(*item) for item in checks.items() if item[1].verdict == "inconclusive"]
    if not bounds and min(per_class) >= MIN_GROUPS:
        return structs.replace(result, verdict="pass", reasons=[])
    growth = _needed(sums, limits, level, MIN_GROUPS / min(per_class))
    return _inconclusive(result, bounds, growth, min(per_class))


def _with_estimates(
    result: GateResult, variant: Floats, reference: Floats, truth: Labels
) -> GateResult:
    """Add the estimates of the variant and of full precision to the result."""
    ours, theirs = evaluate(variant, truth), evaluate(reference, truth)
    both = agreement(variant, reference)
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
    result: GateResult, bounds: list[str], growth: float | None, fewest_groups: int
) -> GateResult:
    """The result if the tiles cannot decide: what it means, what to do, then the bounds.

    Args:
        result: the result so far.
        bounds: a reason for each undecided criterion.
        growth: how many times the present groups would decide; None if no reasonable number does.
        fewest_groups: gate groups of the class with the fewest.
    """
    result = structs.replace(result, verdict="inconclusive")
    if growth is None:
        reason = (
            "too close to a limit to tell: not even "
            f"{MAX_GROWTH} times as many validation groups would decide"
        )
        return structs.replace(result, reasons=[reason, *bounds])
    groups = result.groups or 0
    needed = TilesNeeded(
        tiles=int(np.ceil(growth * result.tiles)), groups=int(np.ceil(growth * groups))
    )
    few = f" ({fewest_groups} in the smallest class)" if fewest_groups < MIN_GROUPS else ""
    reason = (
        f"not enough validation groups to tell: about {needed.groups} groups with {needed.tiles} "
        f"tiles are needed, {groups} with {result.tiles} are there{few}; {MORE_GROUPS}"
    )
    return structs.replace(result, reasons=[reason, *bounds], needed=needed)


def _reason(name: str, check: Bound) -> str:
    """Estimate, decisive bound and limit of a criterion, in points."""
    sign = "is above" if check.verdict == "fail" else "may reach"
    bound = check.low if check.verdict == "fail" else check.high
    return (
        f"{name} {100 * check.loss:.2f} points, {sign} {100 * bound:.2f}, "
        f"allowed {100 * check.limit:.2f}"
    )


def _groups_per_class(truth: Labels, groups: Sequence[str], classes: int) -> list[int]:
    pairs = set(zip(truth.tolist(), groups, strict=True))
    return [sum(label == c for label, _ in pairs) for c in range(classes)]


class _Sums:
    """Sums per unit (a group or a tile), from which every criterion is computed.

    The totals of a resample are one product of its weights and these sums.

    Columns: per class the tiles, the hits of the reference and the hits of the variant (3·C); flips
    (1); correctness minus confidence, summed per bin, of the reference and the variant (2·BINS).
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
        one_hot = np.eye(self.classes)[truth]  # (N, C)
        reference_labels, variant_labels = reference.argmax(axis=1), variant.argmax(axis=1)
        flips = reference_labels != variant_labels
        self.tiles = np.concatenate(
            [
                one_hot,
                one_hot * (reference_labels == truth)[:, None],
                one_hot * (variant_labels == truth)[:, None],
                flips[:, None],
                confidence_gaps(reference, truth),
                confidence_gaps(variant, truth),
            ],
            axis=1,
        )  # (N, 3C + 1 + 2 BINS)
        unique, first_tile, index = np.unique(groups, return_index=True, return_inverse=True)
        self.groups = np.zeros((len(unique), self.tiles.shape[1]))
        np.add.at(self.groups, index, self.tiles)
        # The strata are the classes. A group of several classes belongs to that of its first tile.
        self.strata_of_groups, self.strata_of_tiles = truth[first_tile], truth
        flipped = self.groups[:, 3 * self.classes]
        self.unseen = float((flipped**2).sum() / flipped.sum()) if flips.any() else 1.0

    def checks(self, limits: Limits, level: float, growth: float = 1.0) -> dict[str, Bound]:
        """Every criterion, as expected with `growth` times as many groups of the same kind."""
        estimate = self._losses(self.tiles.sum(axis=0, keepdims=True), 0.0)[:, 0]
        over_groups = self.resampled(self.groups, self.strata_of_groups, growth)
        # Scaled to the spread of that many tiles, instead of drawing millions of them.
        total = self.tiles.sum(axis=0)
        over_tiles = growth * total + growth**0.5 * (self.over_tiles - total)
        bounds = [self._bounds(totals, level) for totals in (over_groups, over_tiles)]
        low = np.minimum(bounds[0][0], bounds[1][0])
        high = np.maximum(bounds[0][1], bounds[1][1])
        return self._named(limits, estimate, low, high)

    @cached_property
    def over_tiles(self) -> Array:
        """Totals of resamples of the present tiles, (R, columns)."""
        return self.resampled(self.tiles, self.strata_of_tiles, 1.0)

    def resampled(self, sums: Array, strata: Labels, growth: float) -> Array:
        """Totals of RESAMPLES resamples of the rows of `sums`, (R, columns)."""
        rng = np.random.default_rng(0)
        totals = np.zeros((RESAMPLES, sums.shape[1]))
        for label in np.unique(strata):
            members = sums[strata == label]
            count = len(members)
            drawn = round(growth * count)
            for start in range(0, RESAMPLES, 100):  # in blocks, to bound the memory
                members_drawn = rng.integers(0, count, (100, drawn))
                cells = members_drawn + count * np.arange(100)[:, None]
                weights = np.bincount(cells.ravel(), minlength=100 * count).reshape(100, count)
                totals[start : start + 100] += weights.astype(np.float64) @ members
        return totals

    def _bounds(self, totals: Array, level: float) -> tuple[Array, Array]:
        """Optimistic and pessimistic bound of every criterion, (criteria,) each."""
        rng = np.random.default_rng(1)
        unseen = self.unseen * rng.poisson(1.0, len(totals)).astype(np.float64)
        low = np.quantile(self._losses(totals, 0.0), 1 - level, axis=1)
        high = np.quantile(self._losses(totals, unseen), level, axis=1)
        return low, high

    def _losses(self, totals: Array, unseen: Array | float) -> Array:
        """Loss of every criterion, (criteria, R), from totals (R, columns).

        `unseen` flips count against each criterion in full, where they cost most.
        """
        c = self.classes
        count, reference_hits, variant_hits = (  # (R, C) each
            totals[:, i * c : (i + 1) * c] for i in range(3)
        )
        count = np.maximum(count, 1)  # a resample may miss a class that only mixed groups contain
        flips, gaps = totals[:, 3 * c], totals[:, 3 * c + 1 :].reshape(len(totals), 2, BINS)
        tiles = count.sum(axis=1)
        recall = reference_hits / count
        lost_hits = reference_hits - variant_hits
        recall_drop = (lost_hits + np.reshape(unseen, (-1, 1))) / count
        balanced_drop = (lost_hits / count).mean(axis=1) + unseen / (c * count.min(axis=1))
        error = np.abs(gaps).sum(axis=2) / tiles[:, None]  # (R, 2)
        return np.stack(
            [
                (flips + unseen) / tiles,
                balanced_drop / np.maximum(recall.mean(axis=1), 1e-12),
                *recall_drop.T,
                error[:, 1] - error[:, 0],
            ]
        )

    def _named(self, limits: Limits, estimate: Array, low: Array, high: Array) -> dict[str, Bound]:
        allowed: Mapping[str, float] = {
            "disagreement": 1 - limits.min_agreement,
            "loss of balanced accuracy (relative)": 1 - limits.min_relative_balanced_accuracy,
            **{f"loss of recall, {name}": limits.max_recall_drop for name in self.names},
            "rise of calibration error": limits.max_calibration_error_rise,
        }
        rows = zip(allowed.items(), estimate, low, high, strict=True)
        # In floating point 1 − 0.99 is slightly below 1 / 100, hence the 1e-9.
        return {
            name: Bound(loss=float(e), low=float(a), high=float(b), limit=limit + 1e-9)
            for (name, limit), e, a, b in rows
        }


def _needed(sums: _Sums, limits: Limits, level: float, min_growth: float) -> float | None:
    """Smallest growth in groups, within 5 %, that decides. None beyond `MAX_GROWTH`."""

    def decided(growth: float) -> bool:
        verdicts = {c.verdict for c in sums.checks(limits, level, growth).values()}
        return "fail" in verdicts or verdicts == {"pass"}

    low = high = max(1.0, min_growth)
    while not decided(high):
        low, high = high, 2 * high
        if high > MAX_GROWTH * max(1.0, min_growth):
            return None
    while high / low > 1.05:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
