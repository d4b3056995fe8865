"""The tiles of a run, read again for export: which calibrate, which judge, decoded once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.results import SetSize
from edgelung.artifacts.run import SUBSETS, RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.core.workers import Workers
from edgelung.engines.base import Tiles
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile, read_bytes

# Tiles per batch. Small: the activations of 8 tiles stay in a core's cache (FP32 runs 10 % and FP16
# 16 % faster than in batches of 32), and the last batches keep all cores busy.
BATCH = 8
# Bytes of decoded tiles that stay in memory: 14,000 tiles of 224 px. A computer with 8 GB has that
# beside the graphs.
MEMORY_LIMIT = 2 * 2**30


@dataclass(frozen=True)
class LabelledTile:
    """One tile of the split; `label` is the index of its class."""

    path: str
    label: int
    group: str
    sha256: str


@dataclass(frozen=True)
class TileSet:
    """Tiles below one data folder."""

    data: Path
    tiles: tuple[LabelledTile, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, int64 (N,)."""
        return np.array([tile.label for tile in self.tiles], np.int64)

    @property
    def groups(self) -> list[str]:
        """The group of each tile, length N."""
        return [tile.group for tile in self.tiles]

    @property
    def paths(self) -> list[str]:
        """The path of each tile, relative to the data folder."""
        return [tile.path for tile in self.tiles]

    @property
    def size(self) -> SetSize:
        """Tiles and groups."""
        return SetSize(tiles=len(self), groups=len(set(self.groups)))

    def every(self, limit: int) -> "TileSet":
        """At most `limit` of the tiles, evenly spread over the list and so over the groups."""
        indices = np.unique(np.linspace(0, len(self) - 1, min(limit, len(self))).astype(int))
        return self.take(indices)

    def take(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> "TileSet":
        """The tiles at these indices, in their order."""
        return TileSet(self.data, tuple(self.tiles[i] for i in indices))


class TileReader:
    """Reads tiles through the one reader (`edgelung.tiles.reader`) and checks every file's hash.

    Sets that fit into `memory_limit` bytes are decoded once (`keep`); the tiles of others are
    decoded each time they are read.

    Attributes:
        spec: how pixels are read.
        decodes: how many times a tile was decoded so far.
    """

    def __init__(self, spec: ReaderSpec, memory_limit: int = MEMORY_LIMIT) -> None:
        self.spec = spec
        self.decodes = 0
        self._free = memory_limit
        self._kept: dict[Path, npt.NDArray[np.uint8]] = {}
        self._decoded: set[Path] = set()

    @property
    def distinct_tiles(self) -> int:
        """How many different tiles were decoded so far."""
        return len(self._decoded)

    def keep(self, tiles: TileSet, title: str) -> bool:
        """Decode a set and keep its pixels in memory, if it fits; returns True if it does.

        `title` names the progress bar.
        """
        needed = len(tiles) * 3 * self.spec.size**2
        if needed > self._free:
            return False
        self._free -= needed
        with progress(title, len(tiles)) as advance:
            read = 0
            for batch in self.batches(tiles):
                for tile, pixels in zip(tiles.tiles[read : read + len(batch)], batch, strict=True):
                    self._kept[tiles.data / tile.path] = pixels
                read += len(batch)
                advance(len(batch))
        return True

    def offer(self, path: Path, pixels: npt.NDArray[np.uint8]) -> None:
        """Keep a tile that the caller decoded, if it fits; it counts as decoded."""
        self.decodes += 1
        self._decoded.add(path)
        if pixels.nbytes <= self._free:
            self._free -= pixels.nbytes
            self._kept[path] = pixels

    def batches(self, tiles: TileSet, size: int = BATCH) -> Iterator[Tiles]:
        """Yield the tiles as uint8 (≤ size, H, W, 3), in order.

        Raises:
            EdgelungError: if a file cannot be read or is not the one that the run was split on.
        """
        with Workers(available_cores()) as pool:
            for start in range(0, len(tiles), size):
                part = tiles.tiles[start : start + size]
                missing = {tiles.data / tile.path for tile in part} - self._kept.keys()
                self.decodes += len(missing)
                self._decoded |= missing
                yield np.stack(list(pool.map(lambda tile: self._pixels(tiles.data, tile), part)))

    def read(self, tiles: TileSet) -> Tiles:
        """All tiles of a small set as one array uint8 (N, H, W, 3)."""
        return np.concatenate(list(self.batches(tiles)))

    def _pixels(self, data: Path, tile: LabelledTile) -> npt.NDArray[np.uint8]:
        path = data / tile.path
        if path in self._kept:
            return self._kept[path]
        try:
            return decode_tile(read_checked(data, tile), self.spec)
        except TileError as error:
            raise _unreadable(path, error) from error


def read_checked(data: Path, tile: LabelledTile) -> bytes:
    """The bytes of a tile's file. Raises EdgelungError if it is not the file of the split."""
    path = data / tile.path
    try:
        content = read_bytes(path)
    except TileError as error:
        raise _unreadable(path, error) from error
    if sha256_bytes(content) != tile.sha256:
        raise EdgelungError(
            f"{path} is not the file that the run was split on (its SHA-256 changed); "
            "export needs the tiles of the training run: pass --data"
        )
    return content


def _unreadable(path: Path, error: TileError) -> EdgelungError:
    return EdgelungError(
        f"cannot read the tile {path}: {error.reason}; "
        "export needs the tiles of the training run: pass --data if the folder moved"
    )


def join_tiles(sets: Sequence[TileSet]) -> TileSet:
    """Several sets of one data folder as one, in their order."""
    return TileSet(sets[0].data, tuple(tile for part in sets for tile in part.tiles))


def read_split(run: RunFolder, data: Path, classes: tuple[str, ...]) -> dict[str, TileSet]:
    """Read the subsets of the run's split.csv: 'train', 'val' and 'test'.

    Raises:
        EdgelungError: if it cannot be read, names another class, or lacks a class in 'val'.
    """
    subsets: dict[str, list[LabelledTile]] = {name: [] for name in SUBSETS}
    for row in run.read_split():
        if row.label not in classes:
            raise EdgelungError(
                f"{run.split_path} has the class {row.label!r}; the model knows "
                f"{', '.join(classes)}: the files do not belong to one run"
            )
        label = classes.index(row.label)
        subsets[row.subset].append(LabelledTile(row.path, label, row.group, row.sha256))
    present = {tile.label for tile in subsets["val"]}
    if len(present) < len(classes):
        missing = next(name for i, name in enumerate(classes) if i not in present)
        raise EdgelungError(
            f"{run.split_path} has no validation tile of {missing}: no evidence for it"
        )
    return {name: TileSet(data, tuple(tiles)) for name, tiles in subsets.items()}


def set_aside(tiles: TileSet, requested: int, seed: int) -> tuple[TileSet, TileSet]:
    """Split the validation set into calibration and gate tiles: (calibration, gate).

    Whole groups are drawn at random, about evenly from each class, until `requested` tiles are
    together, but never more than half of a class: tiles that calibrate cannot judge. A class with a
    single validation group goes to the gate: ranges can come from other classes, evidence cannot.
    A group with tiles of several classes counts as one of its first tile's class.
    """
    groups: dict[str, list[LabelledTile]] = {}
    for tile in tiles.tiles:
        groups.setdefault(tile.group, []).append(tile)
    by_class: dict[int, list[list[LabelledTile]]] = {}
    for _, members in sorted(groups.items()):
        by_class.setdefault(members[0].label, []).append(members)
    rng = np.random.default_rng(seed)
    calibration: list[list[LabelledTile]] = []
    gate: list[LabelledTile] = []
    for _, of_class in sorted(by_class.items()):
        shuffled = [of_class[i] for i in rng.permutation(len(of_class))]
        half, drawn = sum(map(len, shuffled)) / 2, 0
        for members in shuffled:
            enough = drawn * len(by_class) >= requested
            if enough or drawn + len(members) > half:
                gate += members
            else:
                calibration.append(members)
                drawn += len(members)
    for label in {tile.label for tile in tiles.tiles} - {tile.label for tile in gate}:
        # The class occurs only in groups that count as another class's: move one to the gate.
        if not any(tile.label == label for tile in gate):
            with_label = [m for m in calibration if any(tile.label == label for tile in m)]
            calibration.remove(smallest := min(with_label, key=len))
            gate += smallest
    if not calibration:
        raise EdgelungError(
            "the validation set has one group per class: none is left to calibrate INT8 with; "
            "train with more groups"
        )
    drawn_tiles = tuple(tile for members in calibration for tile in members)
    return TileSet(tiles.data, drawn_tiles), TileSet(tiles.data, tuple(gate))
