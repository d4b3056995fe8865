"""Decoded tiles for training: read by the one reader, kept in memory if they fit."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgelung.core.errors import EdgelungError
from edgelung.core.system import free_memory
from edgelung.core.workers import Task, Workers
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile

T = TypeVar("T")
Indices = npt.NDArray[np.int64]

MEMORY_SHARE = 0.4  # of the free memory, for decoded tiles
DEVICE_SHARE = 0.15  # of the free memory of a GPU, which models and activations need


class TileStore:
    """Random access to decoded tiles.

    All tiles are decoded once and kept if they fit into a share of the free memory (15,000 tiles of
    224 px take 2.3 GB). Otherwise each batch is decoded when it is asked for.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: ReaderSpec,
        on_tile: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._paths = paths
        self._spec = spec
        self._pool = Workers(os.cpu_count())
        self._pixels: npt.NDArray[np.uint8] | None = None  # (N, size, size, 3)
        self._on_device: Tensor | None = None  # the same
        stores = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each process has its own
        if len(paths) * spec.size**2 * 3 * stores < MEMORY_SHARE * free_memory():
            pixels = np.empty((len(paths), spec.size, spec.size, 3), np.uint8)

            def decode(index: int) -> None:
                pixels[index] = self._read(index)
                on_tile(1)

            list(self._pool.map(decode, range(len(paths))))
            self._pixels = pixels

    @property
    def size(self) -> int:
        """Pixels of a tile's side."""
        return self._spec.size

    @property
    def in_memory(self) -> bool:
        """True if the decoded tiles are kept."""
        return self._pixels is not None

    def __len__(self) -> int:
        return len(self._paths)

    def copy_to(self, device: torch.device) -> None:
        """Keep the tiles on a GPU too, if they fit into a share of its free memory.

        Then `batch` takes them from there: no batch is gathered and copied by the host.
        """
        if self._pixels is None or self._on_device is not None:
            return
        free, _ = torch.cuda.mem_get_info(device)
        if self._pixels.nbytes < DEVICE_SHARE * free:
            self._on_device = torch.from_numpy(self._pixels).to(device)

    def batch(self, indices: Indices) -> Tensor:
        """The tiles at `indices`: uint8 (B, 3, size, size), on the device if they are there."""
        if self._on_device is not None:
            rows = torch.from_numpy(indices).to(self._on_device.device)
            return self._on_device[rows].permute(0, 3, 1, 2)
        if self._pixels is not None:
            pixels = self._pixels[indices]
        else:
            pixels = np.stack(list(self._pool.map(self._read, indices)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _read(self, index: int) -> npt.NDArray[np.uint8]:
        return read_training_tile(self._paths[index], self._spec)


@dataclass(frozen=True)
class DecodedTiles:
    """The tiles of a run, decoded at one or two sizes.

    Attributes:
        store: the tiles that training views are made from, at the largest input of the models.
        as_in_use: the tiles at the student's input, as inference decodes them; None if `store` has
            that size.
    """

    store: TileStore
    as_in_use: TileStore | None = None

    def shown_at(self, size: int) -> TileStore:
        """The tiles that a model of this input size is shown when it is evaluated."""
        if self.as_in_use is not None and self.as_in_use.size == size:
            return self.as_in_use
        return self.store


@dataclass(frozen=True)
class LabelledTiles:
    """The decoded tiles of a run, their labels and the indices of each subset."""

    decoded: DecodedTiles
    labels: Tensor  # int64 (N,)
    subsets: dict[str, Indices]

    @property
    def store(self) -> TileStore:
        """The tiles that views are made from."""
        return self.decoded.store


def read_training_tile(path: Path, spec: ReaderSpec) -> npt.NDArray[np.uint8]:
    """Read a tile as uint8 (size, size, 3); raises EdgelungError if it cannot be read."""
    try:
        return read_tile(path, spec)
    except TileError as error:
        raise EdgelungError(
            f"cannot read the training tile {path}: {error.reason}; repair or remove it"
        ) from error


def prefetch(load: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """Yield `load(step)` for each step; a thread loads the next one while one is in use."""
    with Workers(1) as pool:
        waiting: deque[Task[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
