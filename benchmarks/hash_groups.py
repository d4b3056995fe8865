"""Whether groups by average hash keep tissue apart: splits by such groups, checked two ways.

    python benchmarks/hash_groups.py tiles/ --groups tiles/clusters.csv

Tiles whose average hashes (8 × 8) differ in at most two bits are joined, transitively, and whole
groups are split 80 / 20. Counted are the test tiles that have a training tile in their group, by
the groups that edgelung finds and by the published ones. A split tile by tile, one by the published
groups and one by edgelung's groups are counted in the same way. Prints a table and writes JSON.

Finding edgelung's groups takes minutes; `--found` names a pickle of (tiles, groups) that keeps
them.
"""

import argparse
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from edgelung.core.workers import Workers
from edgelung.train.audit_split import measure_leak
from edgelung.train.groups.disjoint_set import DisjointSet
from edgelung.train.groups.near_copies import find_groups, group_names
from edgelung.train.index import IndexedTile, index_tiles, read_groups
from edgelung.train.split import join_duplicates

SIDE, DISTANCE = 8, 2  # bits of a hash: SIDE²; most differing bits within a group
TEST_SHARE, SEEDS = 0.2, 10
BLOCK = 512  # rows of the comparison in memory at a time


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--groups", type=Path, required=True, help="published groups, CSV")
    parser.add_argument("--found", type=Path, help="pickle of edgelung's groups; made if missing")
    default = Path(__file__).parent / "results" / "hash-groups.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    tiles, found = edgelung_groups(options.data, options.found)
    published = join_duplicates(tiles, read_groups(options.groups, tiles))
    hashed = hash_groups(options.data, tiles)
    content = {
        "tiles": len(tiles),
        "hash": {"side": SIDE, "distance": DISTANCE},
        "test_share": TEST_SHARE,
        "groups": {
            name: describe(groups)
            for name, groups in (("edgelung", found), ("published", published), ("hash", hashed))
        },
        "splits": {
            name: measure(tiles, groups, {"edgelung": found, "published": published})
            for name, groups in (
                ("hash", hashed),
                ("tile by tile", [tile.path for tile in tiles]),
                ("published", published),
                ("edgelung", found),
            )
        },
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    show(content)


def edgelung_groups(data: Path, kept: Path | None) -> tuple[list[IndexedTile], list[str]]:
    """The tiles and their groups by what they show; read from `kept` if it is there."""
    if kept and kept.is_file():
        tiles, names = pickle.loads(kept.read_bytes())
        now = index_tiles(data)
        if [(t.path, t.sha256) for t in now] != [(t.path, t.sha256) for t in tiles]:
            raise SystemExit(f"{kept} is of other tiles than {data}; remove it")
        return now, names
    tiles = index_tiles(data)
    names = join_duplicates(tiles, group_names(tiles, find_groups(data, tiles)))
    if kept:
        kept.write_bytes(pickle.dumps((tiles, names)))
    return tiles, names


def hash_groups(data: Path, tiles: Sequence[IndexedTile]) -> list[str]:
    """Groups of tiles that are linked by hashes of at most DISTANCE differing bits."""
    with Workers() as pool:
        bits = np.array(list(pool.map(lambda tile: average_hash(data / tile.path), tiles)))
    sets = DisjointSet(len(tiles))
    # Differing bits of two rows x, y of 0 and 1: |x| + |y| − 2 x·y.
    values = bits.astype(np.float32)
    ones = values.sum(axis=1)
    for start in range(0, len(values), BLOCK):
        block = slice(start, start + BLOCK)
        distance = ones[block, None] + ones[None] - 2 * values[block] @ values.T
        for row, column in zip(*np.nonzero(distance <= DISTANCE), strict=True):
            sets.union(start + int(row), int(column))
    return [f"hash-{sets.find(i)}" for i in range(len(tiles))]


def average_hash(path: Path) -> npt.NDArray[np.bool_]:
    """Which of 8 × 8 grey pixels are brighter than their mean: (64,), as `imagehash` does it."""
    with Image.open(path) as image:
        small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, np.float64)
    return (pixels > pixels.mean()).ravel()


def describe(groups: Sequence[str]) -> dict[str, int]:
    """Number of groups, of groups of one tile, and the size of the largest."""
    sizes = Counter(groups)
    return {
        "groups": len(sizes),
        "single_tiles": sum(size == 1 for size in sizes.values()),
        "largest": max(sizes.values()),
    }


def measure(
    tiles: Sequence[IndexedTile], groups: Sequence[str], judges: dict[str, Sequence[str]]
) -> dict[str, Any]:
    """Split by `groups` with several seeds; the share of leaked test tiles by each judge."""
    shares: dict[str, list[float]] = {name: [] for name in judges}
    tested = []
    for seed in range(SEEDS):
        subsets = split(groups, seed)
        tested.append(subsets.count("test"))
        for name, judge in judges.items():
            shares[name].append(measure_leak("", tiles, judge, subsets).share)
    return {
        "test_tiles": tested,
        **{
            name: {
                "mean": float(np.mean(values)),
                "least": min(values),
                "most": max(values),
            }
            for name, values in shares.items()
        },
    }


def split(groups: Sequence[str], seed: int) -> list[str]:
    """Put whole groups, in random order, into the test set while they fit; train on the others."""
    sizes, room = Counter(groups), round(TEST_SHARE * len(groups))
    test = set()
    for name in np.random.default_rng(seed).permutation(sorted(sizes)):
        if sizes[name] <= room:
            test.add(name)
            room -= sizes[name]
    return ["test" if name in test else "train" for name in groups]


def show(content: dict[str, Any]) -> None:
    """Print the figures."""
    table = Table("split by", "groups", "largest", "test tiles", "shown: edgelung", "published")
    for name, found in content["splits"].items():
        groups = content["groups"].get(name, {})
        shares = (f"{100 * found[judge]['mean']:.1f} %" for judge in ("edgelung", "published"))
        sizes = (str(groups.get(key, "–")) for key in ("groups", "largest"))
        table.add_row(name, *sizes, f"{np.mean(found['test_tiles']):.0f}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
