"""Groups before splits: tiles of one source never straddle train, validation and test."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgelung.train.index import IndexedTile
from edgelung.train.recipe import Split

from edgelung.errors import EdgelungError
from edgelung.files import atomic_write

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
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    first: dict[str, str] = {}
    for tile, name in zip(tiles, names, strict=True):
        other = first.setdefault(tile.sha256, name)
        low, high = sorted((root(name), root(other)))
        parent[high] = low
    return [root(name) for name in names]


def split_by_group(
    tiles: Sequence[IndexedTile], groups: Sequence[str], shares: Split, seed: int
) -> list[SplitTile]:
    """Assign whole groups to train, val and test, each class near its shares of the tiles.

    Groups are shuffled, then each goes to the subset that is furthest below its share, so every
    class reaches every subset. Raises EdgelungError for a class with fewer than three groups.
    """
    members: dict[str, list[IndexedTile]] = {}
    for tile, group in zip(tiles, groups, strict=True):
        members.setdefault(group, []).append(tile)
    # A group with two classes (the same field labelled twice) counts for its larger one.
    by_class: dict[str, list[str]] = {label: [] for label in sorted({t.label for t in tiles})}
    for group in sorted(members):
        labels = Counter(tile.label for tile in members[group])
        by_class[min(labels, key=lambda label: (-labels[label], label))].append(group)

    rng = np.random.default_rng(seed)
    subset_of: dict[str, str] = {}
    for label, names in by_class.items():
        if len(names) < len(SUBSETS):
            raise EdgelungError(
                f"class {label} has {len(names)} group(s) of tiles; expected at least three, one "
                "each for train, val and test: add tiles from other sources"
            )
        total = sum(len(members[name]) for name in names)
        share = {name: getattr(shares, name) for name in SUBSETS}
        filled = dict.fromkeys(SUBSETS, 0)
        for i, index in enumerate(rng.permutation(len(names))):
            # The first three open the three subsets; one huge group must not starve another.
            if i < len(SUBSETS):
                subset = SUBSETS[i]
            else:
                subset = max(SUBSETS, key=lambda s: share[s] - filled[s] / total)
            subset_of[names[index]] = subset
            filled[subset] += len(members[names[index]])
    return [
        SplitTile(tile, group, subset_of[group]) for tile, group in zip(tiles, groups, strict=True)
    ]


def write_split(path: Path, split: Sequence[SplitTile]) -> None:
    """Write split.csv: path,class,group,subset,sha256."""
    with atomic_write(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "group", "subset", "sha256"])
        for row in split:
            writer.writerow([row.tile.path, row.tile.label, row.group, row.subset, row.tile.sha256])


def split_counts(split: Sequence[SplitTile]) -> dict[str, dict[str, dict[str, int]]]:
    """Tiles and groups by subset and class."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for subset in SUBSETS:
        rows = [row for row in split if row.subset == subset]
        counts[subset] = {
            label: {
                "tiles": sum(row.tile.label == label for row in rows),
                "groups": len({row.group for row in rows if row.tile.label == label}),
            }
            for label in sorted({row.tile.label for row in split})
        }
    return counts
