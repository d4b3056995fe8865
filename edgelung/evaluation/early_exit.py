"""Which tiles may leave a model early: a threshold by bounds over groups, and lost groups.

The threshold is not the confidence at which few tiles change their label, but the one at which a
pessimistic bound on what changes is small. Groups are the unit, as in the gate: an early exit is
wrong about whole sources, not about single tiles.
"""

from collections.abc import Callable, Sequence
from math import comb, floor

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import LostGroups

RESAMPLES = 2000
LEVEL = 0.9  # of the bound on changed labels, as in the gate
LOSS_OF_A_GROUP = 0.1  # a group that changes a larger share of its labels is lost
DECIMALS = 6  # of a threshold in bundle.json

Flags = npt.NDArray[np.bool_]
Bound = Callable[[Flags], float]  # of flags (N,): the tile's label changes


def lowest_confidence(
    confidence: npt.ArrayLike, changes: Flags, bound: Bound, limit: float
) -> float | None:
    """The lowest confidence to leave at, so that a bound on the changed labels is within `limit`.

    Args:
        confidence: (N,), at the exit.
        changes: (N,), the tile's label would change if it left.
        bound: of the labels that change.
        limit: its largest value.

    Returns:
        None if the tiles are too few to show that `limit` holds, even if none changes its label.
    """
    values = np.asarray(confidence, np.float64)
    changed = np.zeros(len(values), bool)
    if bound(changed) > limit:
        return None
    wrong = np.flatnonzero(changes)
    for index in wrong[np.argsort(-values[wrong], kind="stable")]:
        changed[index] = True
        if bound(changed) > limit:  # this one has to continue, and all that are less sure
            steps = 10.0**DECIMALS
            return (floor(float(values[index]) * steps) + 1) / steps
    return 0.0


def changed_labels_bound(groups: Sequence[str]) -> Bound:
    """A pessimistic bound on the share of tiles that change their label.

    A bootstrap over groups, with unseen groups added, Poisson(1) of them per resample, because a
    resample of groups without a change has none; each has as many changes as the groups that have
    some (see `edgelung.evaluation.gate`).
    """
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)  # (R, G)
    tiles, unseen = drawn @ counts, rng.poisson(1.0, RESAMPLES)

    def bound(changed: Flags) -> float:
        changes = np.bincount(index, weights=changed)  # by group
        size = float((changes**2).sum() / changes.sum()) if changed.any() else 1.0
        return float(np.quantile((drawn @ changes + unseen * size) / tiles, LEVEL))

    return bound


def lost_groups_bound(groups: Sequence[str]) -> Bound:
    """The exact upper bound on the share of lost groups (`lost_groups`)."""
    return lambda changed: lost_groups(changed, groups).bound


def lost_groups(changed: Flags, groups: Sequence[str]) -> LostGroups:
    """How many groups change more than a tenth of their labels, (N,) tiles."""
    names, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shares = np.bincount(index, weights=changed) / counts
    lost = int((shares > LOSS_OF_A_GROUP + 1e-9).sum())
    return LostGroups(
        groups=len(names),
        lost=lost,
        largest_loss=float(shares.max()),
        bound=share_bound(lost, len(names)),
    )


def share_bound(found: int, total: int, level: float = 0.95) -> float:
    """Exact upper bound on a share of which `found` of `total` were seen (Clopper-Pearson 1934)."""
    if found >= total:
        return 1.0
    low, high = found / total, 1.0
    for _ in range(50):
        share = (low + high) / 2
        seen = sum(comb(total, i) * share**i * (1 - share) ** (total - i) for i in range(found + 1))
        low, high = (share, high) if seen > 1 - level else (low, share)
    return high
