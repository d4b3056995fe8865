"""The early exit on a GPU: what continues is picked on the device. Not yet run on a GPU.

    tiles ─► first graph ─► probabilities, scores, tokens
                                 │ kernels: which tiles continue, their tokens without gaps
                                 ▼
             second graph ◄─ tokens of those, padded to a static size ─► probabilities, scores

Two static engines instead of a branch per batch. The host waits once in between, for the number of
tiles that continue; meanwhile other slots, if the engine has any, keep the device busy. Both graphs
run at static sizes only, powers of two, so that few sizes need a CUDA graph. What the neighbours of
a tile show changes nothing in it. How many there are, and how many of them continue, sets the
sizes, and with them the order of sums. The rows that fill up a batch hold what an earlier one left
there; nothing reads their results.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np

from edgelung.engines.base import EngineUnavailableError, Output, Tiles, join_outputs
from edgelung.engines.cuda import Device, DeviceError
from edgelung.engines.device_engine import DeviceEngine
from edgelung.engines.device_slot import PROBS, SCORE, TOKENS, DeviceSlot
from edgelung.engines.exit_rule import ExitRule
from edgelung.engines.resize import load_kernels
from edgelung.kernels.early_exit import KERNELS, Positions, launches
from edgelung.kernels.resize import Pixels
from edgelung.tiles.reader import resize


class DeviceExitEngine:
    """Two engines of one GPU as one. It has the name, device and slots of the first.

    Raises:
        EngineUnavailableError: if this installation has no compiled kernels.
        DeviceError: if the GPU has too little memory.
    """

    def __init__(self, first: DeviceEngine, second: DeviceEngine, rule: ExitRule) -> None:
        self.name, self.device = first.name, first.device
        self.concurrency, self.float_type = first.concurrency, first.float_type
        self.plain = first.plain or second.plain
        self._first, self._second = first, second
        self._pickers: SimpleQueue[Picker] = SimpleQueue()
        with first.slot() as slot:
            for _ in range(first.concurrency):
                self._pickers.put(Picker(slot.device, rule, first.max_batch))

    def infer(self, tiles: Tiles) -> Output:
        """See `Engine.infer`."""
        with self._slots() as (first, second, picker):
            outputs = []
            for part in self._first.parts(tiles):
                first.copy_in(part)
                outputs.append(_predict(first, second, picker, len(part)))
        return join_outputs(outputs)

    @property
    def resizes(self) -> bool:
        """See `ResizingEngine.resizes`."""
        return self._first.resizes

    def infer_pixels(self, tiles: Sequence[Pixels]) -> Output:
        """See `ResizingEngine.infer_pixels`."""
        try:
            with self._slots() as (first, second, picker):
                outputs = []
                for part in self._first.parts_by_memory(tiles):
                    first.copy_in_pixels(part)
                    outputs.append(_predict(first, second, picker, len(part)))
            return join_outputs(outputs)
        except DeviceError:  # see `DeviceEngine.infer_pixels`
            size = self._first.infer_size
            return self.infer(np.stack([resize(tile, size) for tile in tiles]))

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._pickers.empty():
            with self._first.slot():
                while not self._pickers.empty():
                    self._pickers.get().free()
        self._first.close()
        self._second.close()

    @contextmanager
    def _slots(self) -> Iterator[tuple[DeviceSlot, DeviceSlot, "Picker"]]:
        """Take a slot of each engine, in this order, and make the device current."""
        with self._first.slot() as first, self._second.slot() as second:
            picker = self._pickers.get()
            try:
                yield first, second, picker
            finally:
                self._pickers.put(picker)


class Picker:
    """Picks the tiles that continue, on the stream of the first graph.

    Raises:
        EngineUnavailableError: if this installation has no compiled kernels.
    """

    def __init__(self, device: Device, rule: ExitRule, max_batch: int) -> None:
        self._kernels = load_kernels(device, KERNELS)
        self._rule = rule
        self._host = device.pinned((max_batch,), np.int32)
        self._memory = device.memory(self._host.nbytes)

    def enqueue(self, first: DeviceSlot, second: DeviceSlot, count: int) -> Positions:
        """Enqueue the move of the tokens that continue to the input of `second`.

        Returns the positions (N,), which the host may read when the stream of `first` is done.
        """
        rows = {port.name: port.row for port in first.ports.outputs}
        for kernel, grid, block, arguments in launches(
            probs=int(first.memory(PROBS)),
            scores=int(first.memory(SCORE)),
            tokens=int(first.memory(TOKENS)),
            positions=int(self._memory),
            out=int(second.memory(TOKENS)),
            count=count,
            classes=rows[PROBS][0],
            row_bytes=int(np.prod(rows[TOKENS])) * np.dtype(np.float32).itemsize,
            confidence=self._rule.confidence,
            known_up_to=self._rule.known_up_to,
        ):
            self._kernels.launch(kernel, grid, block, arguments, first.stream)
        positions = self._host[:count]
        first.stream.copy_out(positions, self._memory)
        return positions

    def free(self) -> None:
        """Free the device memory."""
        self._memory.free()


def static_size(count: int, max_batch: int) -> int:
    """The size at which a graph runs `count` tiles: a power of two, or `max_batch`."""
    return min(1 << (count - 1).bit_length(), max_batch)


def require_stages(first: DeviceEngine, second: DeviceEngine) -> None:
    """Check that the tokens of the first graph are the input of the second.

    Raises:
        EngineUnavailableError: if they are not.
    """
    with first.slot() as a, second.slot() as b:
        rows = {port.name: port.row for port in a.ports.outputs}
        if not {PROBS, SCORE, TOKENS} <= set(rows) or b.ports.input != (TOKENS, rows[TOKENS]):
            raise EngineUnavailableError(
                f"the first graph gives {rows}, the second takes {b.ports.input}"
            )
        if first.max_batch > second.max_batch:
            raise EngineUnavailableError("the second engine takes smaller batches than the first")


def _predict(first: DeviceSlot, second: DeviceSlot, picker: Picker, count: int) -> Output:
    """Predict the `count` tiles that are on their way to the input of `first`."""
    first.compute(static_size(count, first.max_batch))
    waiting = picker.enqueue(first, second, count)
    probabilities, scores = first.results(count)
    continues = np.array(waiting) >= 0
    if rest := int(continues.sum()):
        second.compute(static_size(rest, second.max_batch))
        probabilities[continues], scores[continues] = second.results(rest)
    return Output(probabilities, scores, 1 + continues.astype(np.uint8))
