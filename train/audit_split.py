"""A published split against the groups of an audit: which test tiles show tissue of training."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from msgspec import Struct

from edgelung.artifacts.results import Interval
from edgelung.artifacts.run import SUBSETS
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.shares import interval_of_tiles
from edgelung.tiles.find import find_files
from edgelung.tiles.lists import read_rows
from edgelung.tiles.names import find, lookup, plain_name, printable
from edgelung.train.groups.grouping import Link
from edgelung.train.index import IndexedTile

COLUMN = "subset|split|set|partition"
# What other programs call the subsets, in lower case.
NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
EXPECTED = "train, val or test (or training, valid, validation, dev, testing)"


class SplitLeak(Struct, frozen=True):
    """How many test tiles of a split have a training tile in their group.

    `share` is of the test tiles, `interval` its 95 % interval over their groups.
    """

    split: str  # name of the list or of the folder
    train: int  # tiles
    val: int
    test: int
    not_in_split: int
    test_groups: int
    shown_in_training: int  # test tiles
    identical_in_training: int  # of these, byte for byte
    share: float
    interval: Interval
    classes: dict[str, tuple[int, int]]  # class → test tiles, those shown in training


def read_published_split(source: Path, tiles: Sequence[IndexedTile]) -> list[str]:
    """The subset of each tile in a published split: 'train', 'val', 'test', or '' for none.

    Args:
        source: a CSV with the columns path and subset (or split, set, partition); or a folder whose
            sub-folders train, val and test hold files of the same names.
        tiles: the tiles of the audit. Names are matched as in `train.index.read_groups`.

    Raises:
        EdgelungError: the split cannot be read, puts a tile into two subsets, or has no training
            or no test tile among `tiles`.
    """
    subset_of: dict[str, str] = {}
    for path, subset in _rows_of_folder(source) if source.is_dir() else _rows_of_list(source):
        key = plain_name(path)
        if subset_of.setdefault(key, subset) != subset:
            raise _two_subsets(source, key, (subset_of[key], subset))
    table = lookup(subset_of)
    subsets = []
    for tile in tiles:
        found = {subset_of[name] for name in find(tile.path, table)}
        if len(found) > 1:
            raise _two_subsets(source, tile.path, sorted(found))
        subsets.append(found.pop() if found else "")
    counts = Counter(subsets)
    for subset in ("train", "test"):
        if not counts[subset]:
            example = next(iter(subset_of), "(no file)")
            raise EdgelungError(
                f"{source} names no {subset} tile of this folder: {len(tiles) - counts['']} of "
                f"{len(tiles)} tiles are found in it; expected paths such as {tiles[0].path}, "
                f"found {printable(example)}"
            )
    return subsets


def _rows_of_list(source: Path) -> Iterator[tuple[str, str]]:
    columns = COLUMN.split("|")
    for row in read_rows(source, (COLUMN,)):
        word = next(row[name] for name in columns if name in row).strip()
        if word.lower() not in NAMES:
            raise EdgelungError(
                f"{source} has the subset {printable(word)!r} for {printable(row['path'])}; "
                f"expected {EXPECTED}"
            )
        yield row["path"], NAMES[word.lower()]


def _rows_of_folder(source: Path) -> Iterator[tuple[str, str]]:
    """The images below train/, val/ and test/; other folders beside them are not of the split."""
    found = set()
    for file in find_files(source):
        top = PurePosixPath(file.path).parts[0].lower()
        if file.is_image and top in NAMES:
            found.add(NAMES[top])
            yield file.path, NAMES[top]
    if missing := [subset for subset in ("train", "test") if subset not in found]:
        raise EdgelungError(
            f"{source} has no folder {missing[0]} with images; expected a folder with train/ and "
            "test/ (and val/) in it, or a CSV with the columns path and subset"
        )


def _two_subsets(source: Path, path: str, subsets: Sequence[str]) -> EdgelungError:
    first, second = subsets[:2]
    return EdgelungError(
        f"{source} puts {printable(path)} into {first} and {second}; expected one subset for each "
        "tile: correct the split, or name the folder that the split was made of"
    )


def measure_leak(
    split: str, tiles: Sequence[IndexedTile], groups: Sequence[str], subsets: Sequence[str]
) -> SplitLeak:
    """Count the test tiles that have a training tile in their group.

    Args:
        split: name of the split.
        groups, subsets: of each tile; '' for a tile that is not in the split.
    """
    trained = {group for group, subset in zip(groups, subsets, strict=True) if subset == "train"}
    files = {tile.sha256 for tile, subset in zip(tiles, subsets, strict=True) if subset == "train"}
    test = [i for i, subset in enumerate(subsets) if subset == "test"]
    shown = np.array([groups[i] in trained for i in test])
    of_class: dict[str, list[int]] = {}
    for i, is_shown in zip(test, shown, strict=True):
        counts = of_class.setdefault(tiles[i].label, [0, 0])
        counts[0] += 1
        counts[1] += int(is_shown)
    test_groups = [groups[i] for i in test]
    counts_of = Counter(subsets)
    train, val, tested = (counts_of[subset] for subset in SUBSETS)
    return SplitLeak(
        split=split,
        train=train,
        val=val,
        test=tested,
        not_in_split=counts_of[""],
        test_groups=len(set(test_groups)),
        shown_in_training=int(shown.sum()),
        identical_in_training=sum(tiles[i].sha256 in files for i in test),
        share=float(shown.mean()),
        interval=interval_of_tiles(shown, test_groups),
        classes={label: (n, leaked) for label, (n, leaked) in sorted(of_class.items())},
    )


def example_links(
    links: Sequence[Link], groups: Sequence[str], subsets: Sequence[str]
) -> list[Link]:
    """The strongest link of a test tile with a training tile in each group.

    Groups with the most test tiles come first.
    """
    best: dict[str, Link] = {}
    for link in links:
        if {subsets[link.first], subsets[link.second]} == {"train", "test"}:
            other = best.setdefault(groups[link.first], link)
            if link.proof.inliers > other.proof.inliers:
                best[groups[link.first]] = link
    tested: Mapping[str, int] = Counter(
        group for group, subset in zip(groups, subsets, strict=True) if subset == "test"
    )
    return [best[group] for group in sorted(best, key=lambda name: (-tested[name], name))]
