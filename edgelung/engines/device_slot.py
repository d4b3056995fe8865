"""Execution slot for one batch on a GPU: buffers, a stream, copies; a runtime adds the computation.

On the slot's stream the copy to the device, the computation and the copy back follow each other.
Addresses never change, so that a CUDA graph can be replayed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgelung.engines.base import Floats, Tiles
from edgelung.engines.cuda import Device, DeviceError, HostArray, Memory, Stream
from edgelung.engines.resize import DeviceResize
from edgelung.kernels.resize import Pixels

TILES, PROBS, SCORE, TOKENS = "tiles", "probs", "ood", "tokens"  # the tensors of bundles' graphs


class Port(NamedTuple):
    """An input or output of a graph: its name, and the shape of one row."""

    name: str
    row: tuple[int, ...]

    @property
    def dtype(self) -> type[np.uint8] | type[np.float32]:
        """The type of its numbers."""
        return np.uint8 if self.name == TILES else np.float32


@dataclass(frozen=True)
class Ports:
    """The input of a graph, and its outputs in the order of the file."""

    input: Port
    outputs: tuple[Port, ...]


def ports_of(rows: Mapping[str, Sequence[int]]) -> Ports:
    """The ports of a graph from the shape of one row of each of its tensors.

    Tokens are the input of a graph without tiles: the second one, behind an early exit.
    """
    ports = {name: Port(name, tuple(row)) for name, row in rows.items()}
    first = ports.pop(TILES if TILES in ports else TOKENS)
    return Ports(first, tuple(ports[name] for name in (PROBS, SCORE, TOKENS) if name in ports))


class Buffer:
    """Device memory for `rows` rows of a tensor, and page-locked host memory for the same.

    Tokens have no host memory: they stay on the device.
    """

    def __init__(self, device: Device, port: Port, rows: int) -> None:
        shape, bytes_of = (rows, *port.row), np.dtype(port.dtype).itemsize
        self._host: HostArray | None = None
        if port.name != TOKENS:
            self._host = device.pinned(shape, port.dtype)
        self._memory: Memory | None = device.memory(int(np.prod(shape)) * bytes_of)

    @property
    def memory(self) -> Memory:
        """The device memory, which the buffer owns."""
        assert self._memory is not None, "the buffer was freed"
        return self._memory

    @property
    def host(self) -> HostArray:
        """The host memory (rows, …)."""
        assert self._host is not None, "tokens stay on the device"
        return self._host

    def free(self) -> None:
        """Free the device memory."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with suppress(DeviceError):
                memory.free()


class DeviceSlot(ABC):
    """Predicts one batch at a time. Use it with the device current, from one thread at a time.

    Attributes:
        device: the GPU.
        stream: runs everything of this slot.
        ports: of the graph.
        max_batch: the most rows of a batch.
    """

    def __init__(
        self, device: Device, ports: Ports, max_batch: int, stream: Stream | None = None
    ) -> None:
        self.device, self.ports, self.max_batch = device, ports, max_batch
        self._buffers: dict[str, Buffer] = {}
        self.resizer: DeviceResize | None = None
        self.stream = stream or device.stream()
        try:
            for port in (ports.input, *ports.outputs):
                self._buffers[port.name] = Buffer(device, port, max_batch)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def compute(self, count: int) -> None:
        """Enqueue the graph on the first `count` rows of the input, and `copy_out`."""

    def memory(self, name: str) -> Memory:
        """The device memory of an input or output."""
        return self._buffers[name].memory

    def copy_in(self, tiles: Tiles) -> None:
        """Enqueue the copy of tiles uint8 (N, size, size, 3), N ≤ `max_batch`, to the input."""
        buffer, count = self._buffers[TILES], len(tiles)
        buffer.host[:count] = tiles
        self.stream.copy_in(buffer.memory, buffer.host[:count])

    def copy_in_pixels(self, tiles: Sequence[Pixels]) -> None:
        """Enqueue the resize of tiles uint8 (H, W, 3) of any sizes into the input."""
        if self.resizer is None:
            self.resizer = DeviceResize(self.device, self.stream)
        self.resizer.enqueue(tiles, self.ports.input.row[0], self.memory(TILES))

    def copy_out(self, count: int) -> None:
        """Enqueue the copy of the first `count` rows of the outputs, except tokens, to the host."""
        for port in self.ports.outputs:
            if port.name != TOKENS:
                buffer = self._buffers[port.name]
                self.stream.copy_out(buffer.host[:count], buffer.memory)

    def results(self, count: int) -> list[Floats]:
        """Wait for the stream; returns the first `count` rows of the outputs, except tokens."""
        self.stream.wait()
        return [  # copies: the next batch reuses the buffers
            np.array(self._buffers[port.name].host[:count], np.float32)
            for port in self.ports.outputs
            if port.name != TOKENS
        ]

    def resize(self, tiles: Sequence[Pixels]) -> Tiles:
        """Return the pixels uint8 (N, size, size, 3) that `copy_in_pixels` gives to the graph."""
        self.copy_in_pixels(tiles)
        buffer = self._buffers[TILES]
        self.stream.copy_out(buffer.host[: len(tiles)], buffer.memory)
        self.stream.wait()
        return np.array(buffer.host[: len(tiles)], np.uint8)

    def close(self) -> None:
        """Release the memory; a runtime releases its own objects first."""
        with suppress(DeviceError):  # after a failed batch the stream fails as well; free anyway
            self.stream.wait()
        if self.resizer is not None:
            with suppress(DeviceError):
                self.resizer.free()
            self.resizer = None
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
