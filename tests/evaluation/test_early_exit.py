"""When a tile may leave early: bounds over groups, and groups that are lost."""

import numpy as np
import pytest

from edgelung.evaluation.early_exit import (
    changed_labels_bound,
    lost_groups,
    lost_groups_bound,
    lowest_confidence,
    share_bound,
)

GROUPS = [f"g{i // 20}" for i in range(2000)]  # 100 groups of 20 tiles


def flags(*indices: int) -> np.ndarray:
    changed = np.zeros(len(GROUPS), bool)
    changed[list(indices)] = True
    return changed


def test_no_change_seen_is_not_no_change_at_all() -> None:
    """Poisson: at 90 % up to two unseen changes, of 2,000 tiles."""
    assert changed_labels_bound(GROUPS)(flags()) == pytest.approx(2 / 2000, rel=0.2)


def test_changes_of_one_group_weigh_more_than_the_same_in_several() -> None:
    bound = changed_labels_bound(GROUPS)
    spread, together = flags(*range(0, 160, 20)), flags(*range(8))
    assert bound(together) > 1.5 * bound(spread) > 8 / 2000


def test_the_lowest_confidence_leaves_out_the_change_that_is_too_many() -> None:
    confidence = np.linspace(0, 1, len(GROUPS))
    changes = flags(1990, 1500, 1000, 500)
    bound = changed_labels_bound(GROUPS)
    limit = bound(flags(1990, 1500))  # two changes are within it, a third is not
    found = lowest_confidence(confidence, changes, bound, limit)
    assert confidence[1000] < found < confidence[1001]


def test_a_limit_that_the_tiles_cannot_show_gives_no_confidence() -> None:
    few = changed_labels_bound(GROUPS[:200])
    assert lowest_confidence(np.ones(200), np.zeros(200, bool), few, 0.005) is None
    enough = changed_labels_bound(GROUPS)
    assert lowest_confidence(np.ones(2000), flags(), enough, 0.005) == 0.0


def test_a_group_is_lost_beyond_a_tenth_of_its_labels() -> None:
    found = lost_groups(flags(0, 1, 40, 41, 42), GROUPS)
    assert (found.groups, found.lost) == (100, 1)
    assert found.largest_loss == pytest.approx(0.15)
    assert found.bound == share_bound(1, 100) == lost_groups_bound(GROUPS)(flags(40, 41, 42))


@pytest.mark.parametrize(
    ("found", "total", "bound"), [(0, 60, 0.0487), (1, 100, 0.0466), (5, 5, 1.0)]
)
def test_the_bound_on_a_share_is_exact(found: int, total: int, bound: float) -> None:
    """Against tables of the Clopper-Pearson interval."""
    assert share_bound(found, total) == pytest.approx(bound, abs=1e-4)
