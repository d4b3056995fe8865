"""Groups before splits: tiles of one source never straddle train, validation and test."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgelung.artifacts.run import SUBSETS, SplitRow, split_counts
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.concerns import concerns_of_test, validation_concerns
from edgelung.evaluation.gate import MIN_GROUPS
from edgelung.evaluation.intervals import caution
from edgelung.train.groups.disjoint_set import DisjointSet
from edgelung.train.index import IndexedTile
from edgelung.train.recipe import Split


@dataclass(frozen=True, slots=True)
class SplitTile:
    """A tile with its group and its subset."""

    tile: IndexedTile
    group: str
    subset: str

    @property
    def row(self) -> SplitRow:
        """Its row in split.csv."""
        return SplitRow(self.tile.path, self.tile.label, self.group, self.subset, self.tile.sha256)


def join_duplicates(tiles: Sequence[IndexedTile], groups: Sequence[str] | None) -> list[str]:
    """The group of each tile after groups that contain identical files were joined.

    Without `groups` each tile starts as a group. Joined groups take the name that sorts first.
    """
    names = list(groups) if groups is not None else [tile.path for tile in tiles]
    order = sorted(set(names))
    number = {name: i for i, name in enumerate(order)}
    joined = DisjointSet(len(order))
    first: dict[str, int] = {}
    for tile, name in zip(tiles, names, strict=True):
        joined.union(first.setdefault(tile.sha256, number[name]), number[name])
    return [order[joined.find(number[name])] for name in names]


def split_by_group(
    tiles: Sequence[IndexedTile], groups: Sequence[str], shares: Split
) -> list[SplitTile]:
    """Assign whole groups to train, val and test, each class near its shares of the tiles.

    Classes are assigned one by one, the one with the fewest groups first. Its groups are shuffled,
    and each goes to the subset that is furthest below its share of that class, so every class
    reaches every subset. A group that is too large for validation and test is trained on, if other
    groups are left for them. A group may hold several classes, for example one patient's. Raises
    EdgelungError if a class has too few groups.
    """
    members: dict[str, Counter[str]] = {}  # group → class → tiles
    for tile, group in zip(tiles, groups, strict=True):
        members.setdefault(group, Counter())[tile.label] += 1
    totals = Counter(tile.label for tile in tiles)
    groups_of = {label: [g for g in sorted(members) if members[g][label]] for label in totals}
    share = {name: getattr(shares, name) for name in SUBSETS}
    filled = {(subset, label): 0 for subset in SUBSETS for label in totals}
    subset_of: dict[str, str] = {}

    def fitting(group: str) -> list[str]:
        """The subsets of val and test whose share of every class can hold the group."""
        counts = members[group].items()
        return [s for s in SUBSETS[1:] if all(n <= share[s] * totals[c] for c, n in counts)]

    rarest_first = sorted(totals, key=lambda label: (len(groups_of[label]), label))
    for number, label in enumerate(rarest_first):
        if len(groups_of[label]) < len(SUBSETS):
            raise EdgelungError(
                f"class {label} has {len(groups_of[label])} group(s) of tiles; expected at least "
                "three, one each for train, val and test: add tiles from other sources"
            )
        rng = np.random.default_rng([shares.seed, number])
        shuffled = [groups_of[label][i] for i in rng.permutation(len(groups_of[label]))]
        waiting = [group for group in shuffled if group not in subset_of]
        waiting.sort(key=lambda group: 0 if fitting(group) else -members[group][label])
        for index, group in enumerate(waiting):
            empty = [s for s in SUBSETS if not filled[s, label]]
            fits = ("train", *fitting(group))
            if len(fits) == 1 and len(waiting) - index > len(set(empty) - {"train"}):
                subset = "train"
            elif empty:  # fill these first: one huge group must not leave another subset empty
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
    """Assign tiles to train, val and test class by class, regardless of their groups.

    The paper's protocol: 5,000 tiles of a class give its Table I, 3,500 / 750 / 750. Raises
    EdgelungError if a class has too few tiles.
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
        for position, index in enumerate(order):
            part = np.searchsorted(np.cumsum(held_out), position, side="right")
            subset[index] = ("val", "test", "train")[part]
    return [SplitTile(*row) for row in zip(tiles, groups, subset, strict=True)]


def far_from_shares(split: Sequence[SplitTile], shares: Split) -> Iterator[tuple[str, str, float]]:
    """Class, subset and actual share where it is less than half or more than twice the request.

    This happens if groups are large or few.
    """
    totals = Counter(row.tile.label for row in split)
    counts = Counter((row.tile.label, row.subset) for row in split)
    for label in sorted(totals):
        for subset in SUBSETS:
            share, asked = counts[label, subset] / totals[label], getattr(shares, subset)
            if not asked / 2 <= share <= 2 * asked:
                yield label, subset, share


def count_leaked_tiles(split: Sequence[SplitTile]) -> int:
    """Count the test tiles that share a group with a training tile; 0 if groups stay whole."""
    trained = {row.group for row in split if row.subset == "train"}
    return sum(row.subset == "test" and row.group in trained for row in split)


def find_conflicting_copies(tiles: Sequence[IndexedTile]) -> Iterator[tuple[str, str]]:
    """Paths of two identical files with different labels: one of the labels is wrong."""
    first: dict[str, IndexedTile] = {}
    for tile in tiles:
        other = first.setdefault(tile.sha256, tile)
        if other.label != tile.label:
            yield other.path, tile.path


def _small_sets(split: Sequence[SplitTile]) -> Iterator[str]:
    """A line for each held-out set that has too few groups, before hours of training.

    The same is said of the finished run (`edgelung.evaluation.concerns`).
    """
    counts = split_counts([tile.row for tile in split])
    concerns = [*concerns_of_test(counts["test"]), *validation_concerns(counts["val"])]
    yield from (concern.text for concern in concerns)
    fewest = min(size.groups for size in counts["test"].values())
    if fewest >= MIN_GROUPS:
        yield from filter(None, [caution(fewest)])


def split_warnings(
    split: Sequence[SplitTile], shares: Split, *, groups_are_given: bool
) -> Iterator[str]:
    """A line for each reason to trust the split less than it seems to deserve.

    `groups_are_given`: the groups were read from a file, not found.
    """
    if copies := next(find_conflicting_copies([row.tile for row in split]), None):
        yield f"one file under two labels: {' and '.join(copies)}; `edgelung audit` lists all such"
    labels: dict[str, set[str]] = {}
    for row in split:
        labels.setdefault(row.group, set()).add(row.tile.label)
    mixed = [group for group, names in labels.items() if len(names) > 1]
    if mixed:
        why = ", a patient's tiles, or numbers that begin anew in every class"
        yield (
            f"{len(mixed)} group(s) hold several classes, for example {min(mixed)}: a wrong label"
            f"{why if groups_are_given else ''}; `edgelung audit` shows near copies across classes"
        )
    if groups_are_given and len(labels) == len(split):
        yield "every tile is a group of its own: near copies, if any, are not kept together"
    far = [
        f"{100 * share:.0f} % of {label} in {subset} ({100 * getattr(shares, subset):.0f} % asked)"
        for label, subset, share in far_from_shares(split, shares)
    ]
    if far:
        yield f"groups too large, too few or of several classes for the shares: {', '.join(far)}"
    yield from _small_sets(split)
    if shares.by == "random":
        tested = sum(row.subset == "test" for row in split)
        leaked = count_leaked_tiles(split)
        yield (
            f"random split: {leaked} of {tested} test tiles ({100 * leaked / tested:.1f} %) have a "
            "group mate in training; their accuracy says little about new tissue"
        )
