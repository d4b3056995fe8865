"""Groups of indexed tiles that show one piece of tissue, and the names of these groups."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.tiles.reader import ReaderSpec
from edgelung.train.groups.grouping import Grouping, group_tiles
from edgelung.train.groups.keypoints import SIZE
from edgelung.train.index import IndexedTile
from edgelung.train.tiles import read_training_tile


def find_groups(data: Path, tiles: Sequence[IndexedTile]) -> Grouping:
    """Group tiles by what they show; raises EdgelungError for one that cannot be read."""
    spec = ReaderSpec(size=SIZE)

    def read(index: int) -> npt.NDArray[np.uint8]:
        return read_training_tile(data / tiles[index].path, spec)

    return group_tiles(len(tiles), read, [tile.sha256 for tile in tiles])


def group_names(tiles: Sequence[IndexedTile], grouping: Grouping) -> list[str]:
    """The name of each tile's group: `<class>-0001`, or `mixed-0001` if it holds several classes.

    Groups are numbered in the order of their first tiles.
    """
    classes: dict[int, set[str]] = {}
    for tile, number in zip(tiles, grouping.group, strict=True):
        classes.setdefault(number, set()).add(tile.label)
    digits = max(4, len(str(len(classes))))

    def name(number: int) -> str:
        labels = classes[number]
        return f"{min(labels) if len(labels) == 1 else 'mixed'}-{number + 1:0{digits}}"

    return [name(number) for number in grouping.group]
