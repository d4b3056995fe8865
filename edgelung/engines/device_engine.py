"""What the engines of a GPU share: slots that take turns, batches in parts, tiles of any size."""

import logging
import os
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from queue import SimpleQueue

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.base import AS_IN_FILE, EngineFactory, Output, Tiles, join_outputs, output_of
from edgelung.engines.cuda import Device, DeviceError
from edgelung.engines.device_slot import DeviceSlot
from edgelung.kernels.resize import Pixels, Plan
from edgelung.tiles.reader import resize

MAX_RESIZE_BYTES = 256 * 2**20  # per slot: decoded tiles and what lies between the two passes

logger = logging.getLogger(__name__)


class DeviceEngine(ABC):
    """A graph in some runtime on the first GPU, in `concurrency` slots.

    Attributes:
        name, device, concurrency, float_type: see `Engine`.
        max_batch: the most tiles that run at once; larger batches run in parts.
        plain: what to load instead if this engine does not reproduce the golden tiles; None if
            there is nothing else to try.
    """

    float_type = AS_IN_FILE
    concurrency: int
    plain: EngineFactory | None = None

    def __init__(self, name: str, device: Device, max_batch: int) -> None:
        self.name, self.device, self.max_batch = name, device.name, max_batch
        self._device = device
        self._slots: list[DeviceSlot] = []
        self._free_slots: SimpleQueue[DeviceSlot] = SimpleQueue()

    def _open(self, make_slot: Callable[[], DeviceSlot]) -> None:
        """Make the slots, with the device current. One by one: if one does not fit, free all."""
        try:
            for _ in range(self.concurrency):
                self._slots.append(make_slot())
        except BaseException:
            self._release()
            raise
        for slot in self._slots:
            self._free_slots.put(slot)

    @property
    def infer_size(self) -> int:
        """Side of the tiles that `infer` takes, in pixels."""
        return self._slots[0].ports.input.row[0] if self._slots else 0

    def infer(self, tiles: Tiles) -> Output:
        """See `Engine.infer`."""
        with self.slot() as slot:
            return join_outputs([self._predict(slot, part) for part in self.parts(tiles)])

    def parts(self, tiles: Tiles) -> list[Tiles]:
        """Split a batch into parts of at most `max_batch` tiles."""
        step = self.max_batch
        return [tiles[i : i + step] for i in range(0, len(tiles), step)]

    @cached_property
    def resizes(self) -> bool:
        """See `ResizingEngine.resizes`. The self-test runs once, on tiles of different sizes."""
        if os.environ.get("EDGELUNG_GPU_RESIZE", "1") == "0":
            return False
        size = self.infer_size
        rng = np.random.default_rng(0)
        shapes = ((size, size), (size + 65, size), (7, 3 * size), (2 * size - 1, size // 2))
        tiles = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
        tiles = tiles[: self.max_batch]
        try:
            with self.slot() as slot:
                resized = slot.resize(tiles)
        except Exception as error:  # whatever failed, the CPU can resize
            logger.info("tiles are resized on the CPU: %s", one_line(error))
            return False
        expected = (resize(tile, size) for tile in tiles)
        if any((ours != theirs).any() for ours, theirs in zip(resized, expected, strict=True)):
            logger.info(
                "tiles are resized on the CPU: the kernels on %s give other pixels", self.device
            )
            return False
        return True

    def infer_pixels(self, tiles: Sequence[Pixels]) -> Output:
        """See `ResizingEngine.infer_pixels`."""
        try:
            with self.slot() as slot:
                batches = self.parts_by_memory(tiles)
                return join_outputs([self._predict_pixels(slot, batch) for batch in batches])
        except DeviceError:  # no memory for such tiles; if the GPU is at fault, this fails too
            return self.infer(np.stack([resize(tile, self.infer_size) for tile in tiles]))

    def parts_by_memory(self, tiles: Sequence[Pixels]) -> list[Sequence[Pixels]]:
        """Split tiles (H, W, 3) into batches that fit into a slot and into its resize."""
        return split_by_memory(tiles, self.infer_size, self.max_batch, MAX_RESIZE_BYTES)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._slots:
            with self._device.current():
                self._release()

    @contextmanager
    def slot(self) -> Iterator[DeviceSlot]:
        """Take a free slot, or wait for one, and make the device current in this thread."""
        slot = self._free_slots.get()
        try:
            with self._device.current():
                yield slot
        finally:
            self._free_slots.put(slot)

    def _predict(self, slot: DeviceSlot, tiles: Tiles) -> Output:
        slot.copy_in(tiles)
        slot.compute(len(tiles))
        return output_of(slot.results(len(tiles)))

    def _predict_pixels(self, slot: DeviceSlot, tiles: Sequence[Pixels]) -> Output:
        slot.copy_in_pixels(tiles)
        slot.compute(len(tiles))
        return output_of(slot.results(len(tiles)))

    def _release(self) -> None:
        """Release the slots, with the device current."""
        for slot in self._slots:
            slot.close()
        self._slots = []


def split_by_memory(
    tiles: Sequence[Pixels], size: int, max_batch: int, max_bytes: int
) -> list[Sequence[Pixels]]:
    """Split tiles (H, W, 3) into batches of at most `max_batch` tiles and `max_bytes` of memory.

    The memory is what their resize to `size` needs on the device. A tile that alone needs more is a
    batch of its own.
    """
    batches: list[Sequence[Pixels]] = []
    start, used = 0, 0
    for i, tile in enumerate(tiles):
        plan = Plan([(tile.shape[0], tile.shape[1])], size)
        needed = plan.upload_bytes + plan.scratch_bytes
        if i > start and (i - start >= max_batch or used + needed > max_bytes):
            batches.append(tiles[start:i])
            start, used = i, 0
        used += needed
    if start < len(tiles):
        batches.append(tiles[start:])
    return batches
