"""The tiles of a run's split, read again for export: checked, decoded, in batches."""

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.engines.base import Tiles
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile, read_bytes

BATCH = 32


@dataclass(frozen=True)
class Labelled:
    """One tile of the split."""

    path: str
    label: int
    group: str
    sha256: str


@dataclass(frozen=True)
class TileSet:
    """Tiles of one subset below one data folder."""

    data: Path
    tiles: tuple[Labelled, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, int64 [N]."""
        return np.array([tile.label for tile in self.tiles], np.int64)

    def every(self, most: int) -> "TileSet":
        """At most `most` of the tiles, evenly spread over the list and so over the groups."""
        places = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int))
        return TileSet(self.data, tuple(self.tiles[i] for i in places))

    def batches(self, spec: ReaderSpec, threads: int) -> Iterator[Tiles]:
        """uint8 [≤ BATCH, size, size, 3] through the one reader, every file's hash checked."""
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(self.tiles), BATCH):
                part = self.tiles[start : start + BATCH]
                yield np.stack(list(pool.map(lambda tile: self._read(tile, spec), part)))

    def _read(self, tile: Labelled, spec: ReaderSpec) -> npt.NDArray[np.uint8]:
        path = self.data / tile.path
        try:
            data = read_bytes(path)
            if sha256_bytes(data) != tile.sha256:
                raise EdgelungError(
                    f"{path} is not the file that the run was split on (its SHA-256 changed); "
                    "export needs the tiles of the training run: pass --data"
                )
            return decode_tile(data, spec)
        except TileError as error:
            raise EdgelungError(
                f"cannot read the tile {path}: {error.reason}; "
                "export needs the tiles of the training run: pass --data if the folder moved"
            ) from error


def read_split(run: Path, data: Path, classes: tuple[str, ...]) -> dict[str, TileSet]:
    """The subsets of RUN/split.csv: 'train', 'val' and 'test'."""
    path = run / "split.csv"
    subsets: dict[str, list[Labelled]] = {"train": [], "val": [], "test": []}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                subsets[row["subset"]].append(
                    Labelled(row["path"], classes.index(row["class"]), row["group"], row["sha256"])
                )
    except (OSError, KeyError, ValueError) as error:
        raise EdgelungError(
            f"cannot read {path} ({error}); expected path,class,group,subset,sha256"
        ) from error
    present = {tile.label for tile in subsets["val"]}
    if len(present) < len(classes):
        lacking = [name for i, name in enumerate(classes) if i not in present]
        raise EdgelungError(f"{path} has no validation tile of {lacking[0]}: no evidence for it")
    return {name: TileSet(data, tuple(tiles)) for name, tiles in subsets.items()}


def set_aside(tiles: TileSet, wanted: int, seed: int) -> tuple[TileSet, TileSet]:
    """(calibration, gate): validation groups to calibrate with, and the others, that judge.

    Of each class about evenly, whole groups until `wanted` tiles are together, but never more than
    half of a class: what calibrates cannot judge. A class with a single validation group goes to
    the gate: ranges can come from other classes, evidence cannot. A group of several classes counts
    with its first tile's.
    """
    groups: dict[str, list[Labelled]] = {}
    for tile in tiles.tiles:
        groups.setdefault(tile.group, []).append(tile)
    by_class: dict[int, list[list[Labelled]]] = {}
    for _, members in sorted(groups.items()):
        by_class.setdefault(members[0].label, []).append(members)
    rng = np.random.default_rng(seed)
    calibration: list[list[Labelled]] = []
    gate: list[Labelled] = []
    for _, lists in sorted(by_class.items()):
        order = [lists[i] for i in rng.permutation(len(lists))]
        half, in_calibration = sum(map(len, order)) / 2, 0
        for members in order:
            enough = in_calibration * len(by_class) >= wanted
            if enough or in_calibration + len(members) > half:
                gate += members
            else:
                calibration.append(members)
                in_calibration += len(members)
    for label in {tile.label for tile in tiles.tiles} - {tile.label for tile in gate}:
        if not any(tile.label == label for tile in gate):  # it only stands in other classes' groups
            with_it = [m for m in calibration if any(tile.label == label for tile in m)]
            calibration.remove(smallest := min(with_it, key=len))
            gate += smallest
    if not calibration:
        raise EdgelungError(
            "the validation set has one group per class: none is left to calibrate INT8 with; "
            "train with more groups"
        )
    to_calibrate = tuple(tile for members in calibration for tile in members)
    return TileSet(tiles.data, to_calibrate), TileSet(tiles.data, tuple(gate))
