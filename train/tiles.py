"""Tiles as training wants them: decoded by the one reader, kept in memory where they fit."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from edgelung.core.errors import EdgelungError
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile

T = TypeVar("T")

MEMORY_SHARE = 0.4  # of the free memory that decoded tiles may take


class TileStore:
    """Random access to decoded tiles, uint8 [size, size, 3] each.

    All are decoded once and kept if they fit in a share of the free memory (15,000 tiles at 224 px
    take 2.3 GB); otherwise each batch is decoded as it is asked for.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: ReaderSpec,
        on_tile: Callable[[int], None] = lambda n: None,
    ) -> None:
        self._paths = paths
        self._spec = spec
        self._pool = ThreadPoolExecutor(os.cpu_count(), "decode")
        self._kept: npt.NDArray[np.uint8] | None = None
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that hold as much each
        if len(paths) * spec.size**2 * 3 * beside < MEMORY_SHARE * _free_memory():
            kept = np.empty((len(paths), spec.size, spec.size, 3), np.uint8)

            def decode(index: int) -> None:
                kept[index] = self._read(index)
                on_tile(1)

            list(self._pool.map(decode, range(len(paths))))
            self._kept = kept

    @property
    def kept(self) -> bool:
        """Whether the decoded tiles are in memory."""
        return self._kept is not None

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """uint8 (B, 3, size, size) of the tiles at `indices`."""
        if self._kept is not None:
            pixels = self._kept[indices]
        else:
            pixels = np.stack(list(self._pool.map(self._read, indices)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _read(self, index: int) -> npt.NDArray[np.uint8]:
        try:
            return read_tile(self._paths[index], self._spec)
        except TileError as error:
            raise EdgelungError(
                f"cannot read the training tile {self._paths[index]}: {error.reason}; "
                "mend or remove it"
            ) from error


def ahead(load: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    """`load(step)` of each step in turn, made while the one before is in use."""
    with ThreadPoolExecutor(1, "loader") as pool:
        waiting: deque[Future[T]] = deque()
        for step in steps:
            waiting.append(pool.submit(load, step))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _free_memory() -> int:
    """Bytes that may still be taken: what the system can free, within a container's limit."""
    free = 4 * 2**30  # a guess, where the system does not say
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(li for li in lines if li.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free
