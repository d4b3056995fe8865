"""Groups before splits: tiles of one source never straddle train, validation and test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgelung.core.errors import EdgelungError
from edgelung.train.groups.disjoint_set import Forest
from edgelung.train.index import IndexedTile
from edgelung.train.recipe import Split

SUBSETS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SplitTile:
    """A tile with its group and its subset."""

    tile: IndexedTile
    group: str
    subset: str


def join_duplicates(tiles: Sequence[IndexedTile], groups: Sequence[str] | None) -> list[str]:
    """The group of each tile, where identical files share a group whatever `groups` says.

    Without `groups` each tile starts as its own. Joined groups take the name that sorts first.
    """
    names = list(groups) if groups is not None else [tile.path for tile in tiles]
    order = sorted(set(names))
    number = {name: i for i, name in enumerate(order)}
    forest = Forest(len(order))
    first: dict[str, int] = {}
    for tile, name in zip(tiles, names, strict=True):
        forest.join(first.setdefault(tile.sha256, number[name]), number[name])
    return [order[forest.root(number[name])] for name in names]


def split_by_group(
    tiles: Sequence[IndexedTile], groups: Sequence[str], shares: Split
) -> list[SplitTile]:
    """Assign whole groups to train, val and test, each class near its shares of the tiles.

    Class by class, the one with the fewest groups first; its groups are shuffled, and each goes to
    the subset that is furthest below its share of that class, so every class reaches every subset.
    What is too large for validation and test is trained on, where other groups are left for them.
    A group may hold several classes (one patient, say). Raises EdgelungError where a class has too
    few groups.
    """
    members: dict[str, Counter[str]] = {}  # group → class → tiles
    for tile, group in zip(tiles, groups, strict=True):
        members.setdefault(group, Counter())[tile.label] += 1
    totals = Counter(tile.label for tile in tiles)
    having = {label: [g for g in sorted(members) if members[g][label]] for label in totals}
    share = {name: getattr(shares, name) for name in SUBSETS}
    filled = {(subset, label): 0 for subset in SUBSETS for label in totals}
    subset_of: dict[str, str] = {}

    def fitting(group: str) -> list[str]:
        """Of val and test those whose share of every class has room for the group's."""
        counts = members[group].items()
        return [s for s in SUBSETS[1:] if all(n <= share[s] * totals[c] for c, n in counts)]

    rarest_first = sorted(totals, key=lambda label: (len(having[label]), label))
    for number, label in enumerate(rarest_first):
        if len(having[label]) < len(SUBSETS):
            raise EdgelungError(
                f"class {label} has {len(having[label])} group(s) of tiles; expected at least "
                "three, one each for train, val and test: add tiles from other sources"
            )
        rng = np.random.default_rng([shares.seed, number])
        shuffled = [having[label][i] for i in rng.permutation(len(having[label]))]
        waiting = [group for group in shuffled if group not in subset_of]
        waiting.sort(key=lambda group: 0 if fitting(group) else -members[group][label])
        for place, group in enumerate(waiting):
            empty = [s for s in SUBSETS if not filled[s, label]]
            fits = ("train", *fitting(group))
            if len(fits) == 1 and len(waiting) - place > len(set(empty) - {"train"}):
                subset = "train"
            elif empty:  # first: one huge group must not starve another
                subset = next((s for s in empty if s in fits), empty[0])
            else:
                subset = max(fits, key=lambda s: share[s] - filled[s, label] / totals[label])
            subset_of[group] = subset
            for name, count in members[group].items():
                filled[subset, name] += count
    for (subset, label), count in filled.items():
        if not count:
            raise EdgelungError(
                f"class {label} got no tile in {subset}: its groups hold other classes too and "
                "went elsewhere; try another split.seed, or groups that keep to one class"
            )
    return [
        SplitTile(tile, group, subset_of[group]) for tile, group in zip(tiles, groups, strict=True)
    ]


def split_at_random(
    tiles: Sequence[IndexedTile], groups: Sequence[str], shares: Split
) -> list[SplitTile]:
    """Assign tiles to train, val and test class by class, whatever their groups.

    The paper's protocol: 5,000 tiles of a class give its Table I, 3,500 / 750 / 750. Raises
    EdgelungError where a class has too few tiles.
    """
    subset = [""] * len(tiles)
    for number, label in enumerate(sorted({tile.label for tile in tiles})):
        members = [i for i, tile in enumerate(tiles) if tile.label == label]
        held_out = [round(share * len(members)) for share in (shares.val, shares.test)]
        if min(*held_out, len(members) - sum(held_out)) < 1:
            raise EdgelungError(
                f"class {label} has {len(members)} tile(s), too few for a share of "
                f"{min(shares.val, shares.test):g}; add tiles"
            )
        order = np.random.default_rng([shares.seed, number]).permutation(members)
        for place, index in enumerate(order):
            held = np.searchsorted(np.cumsum(held_out), place, side="right")
            subset[index] = ("val", "test", "train")[held]
    return [SplitTile(*row) for row in zip(tiles, groups, subset, strict=True)]


def far_from_shares(split: Sequence[SplitTile], shares: Split) -> Iterator[tuple[str, str, float]]:
    """Class, subset and share of the class's tiles there, where it is half or twice what was asked.

    As it happens where groups are large or few.
    """
    totals = Counter(row.tile.label for row in split)
    found = Counter((row.tile.label, row.subset) for row in split)
    for label in sorted(totals):
        for subset in SUBSETS:
            share, asked = found[label, subset] / totals[label], getattr(shares, subset)
            if not asked / 2 <= share <= 2 * asked:
                yield label, subset, share


def mates_in_training(split: Sequence[SplitTile]) -> int:
    """How many test tiles share a group with a training tile; 0 where groups stay whole."""
    trained = {row.group for row in split if row.subset == "train"}
    return sum(row.subset == "test" and row.group in trained for row in split)


def of_two_classes(tiles: Sequence[IndexedTile]) -> Iterator[tuple[str, str]]:
    """Paths of tiles that are one file with two labels: one of the two labels is wrong."""
    first: dict[str, IndexedTile] = {}
    for tile in tiles:
        other = first.setdefault(tile.sha256, tile)
        if other.label != tile.label:
            yield other.path, tile.path
