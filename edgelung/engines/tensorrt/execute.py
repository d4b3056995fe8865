"""Run a TensorRT engine: two lanes, each with a stream, so that copies overlap computing.

A lane has its own execution context, pinned buffers and stream; on it copy in, compute and copy
out follow each other, and while one lane computes the other copies. A batch size that comes back
is replayed as a CUDA graph, one launch instead of some hundred.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.base import EngineUnavailableError, Probabilities, Tiles
from edgelung.engines.cuda import Device, DeviceError, Graph, Memory, graphs_wanted
from edgelung.engines.resize import DeviceResize
from edgelung.engines.tensorrt.build import INPUT, OUTPUT, Profile
from edgelung.engines.tensorrt.flavour import Flavour, logger_of
from edgelung.kernels.resize import Pixels, Plan

# Batch sizes that get a graph, per lane: each holds a context with its own activations.
MAX_GRAPHS = 4


class Loaded:
    """A deserialized engine on one device. Raises EngineUnavailableError where it does not load."""

    def __init__(self, flavour: Flavour, device: Device, plan: bytes, runtime_cache: bytes) -> None:
        # The device comes first: without one, deserialising returns nothing or ends the process.
        self.flavour, self.device = flavour, device
        trt = flavour.trt
        self.logger = logger_of(flavour)
        self._runtime = trt.Runtime(self.logger)  # the engine lives as long as it does
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineUnavailableError(
                f"{flavour.title} does not load the engine on {device.name}: {self.last_words()}"
            )
        shape = tuple(self.engine.get_tensor_shape(INPUT))  # (-1, size, size, 3)
        self.size = int(shape[1])
        self.classes = int(tuple(self.engine.get_tensor_shape(OUTPUT))[1])
        self._config = self._cache = None
        if flavour.ahead_of_time:  # kernels are compiled here, on first use; keep them
            self._config = self.engine.create_runtime_config()
            # A graph would go on replaying the slow kernels that stand in until the compiler ends.
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            self._cache = self._config.create_runtime_cache()
            if runtime_cache:
                self._cache.deserialize(runtime_cache)
            self._config.set_runtime_cache(self._cache)

    def context(self) -> Any:
        """A new execution context; one thread at a time may use it."""
        make = self.engine.create_execution_context
        context = make(self._config) if self._config is not None else make()
        if context is None:
            raise DeviceError(
                f"{self.flavour.title} has no memory for an execution context on "
                f"{self.device.name}: {self.last_words()}"
            )
        return context

    def runtime_cache(self) -> bytes:
        """What TensorRT-RTX compiled so far; empty for the others."""
        return bytes(self._cache.serialize()) if self._cache is not None else b""

    def last_words(self) -> str:
        """TensorRT's last error."""
        return one_line(self.logger.errors[-1]) if self.logger.errors else "it gave no reason"

    def close(self) -> None:
        """Let go of engine and runtime, in this order."""
        self._cache = self._config = None
        self.engine = None
        self._runtime = None


class Lane:
    """One batch in flight: context, stream, pinned and device buffers for `profile.most` tiles."""

    def __init__(self, loaded: Loaded, profile: Profile) -> None:
        device = loaded.device
        tile = (loaded.size, loaded.size, 3)
        self._loaded = loaded
        self._seen: set[int] = set()
        # A graph is valid as long as nobody changes the context that it was recorded from
        # (TensorRT's developer guide, 'CUDA Graphs'), so each has a context of its own.
        self._graphs: dict[int, tuple[Graph, Any]] = {}
        self._graphs_wanted = graphs_wanted()
        self._resize: DeviceResize | None = None
        self._in: Memory | None = None
        self._out: Memory | None = None
        self._stream = device.stream()
        try:
            self._host_in = device.pinned((profile.most, *tile), np.uint8)
            self._host_out = device.pinned((profile.most, loaded.classes), np.float32)
            self._in = device.memory(self._host_in.nbytes)
            self._out = device.memory(self._host_out.nbytes)
            self._context = self._new_context()
        except BaseException:
            self.close()
            raise

    def run(self, tiles: Tiles) -> Probabilities:
        """Probabilities (N, classes) of tiles (N, size, size, 3), N ≤ the profile's most."""
        assert self._in is not None
        count = len(tiles)
        self._host_in[:count] = tiles
        self._stream.copy_in(self._in, self._host_in[:count])
        return self._predict(count)

    def run_pixels(self, tiles: Sequence[Pixels]) -> Probabilities:
        """As `run`, of tiles (H, W, 3) of any size, resized on the device."""
        self._enqueue_resize(tiles)
        return self._predict(len(tiles))

    def resized(self, tiles: Sequence[Pixels]) -> Tiles:
        """The pixels (N, size, size, 3) that `run_pixels` gives the model."""
        assert self._in is not None
        self._enqueue_resize(tiles)
        found = self._host_in[: len(tiles)]
        self._stream.copy_out(found, self._in)
        self._stream.wait()
        return np.array(found)

    def close(self) -> None:
        """Give back graphs, memory and contexts."""
        with suppress(DeviceError):  # after a failed batch the stream fails too; free all the same
            self._stream.wait()
        for graph, _ in self._graphs.values():
            with suppress(DeviceError):
                graph.free()
        self._graphs.clear()
        self._context = None
        for held in (self._resize, self._in, self._out):
            if held is not None:
                with suppress(DeviceError):
                    held.free()
        self._resize = self._in = self._out = None

    def _new_context(self) -> Any:
        context = self._loaded.context()
        assert self._in is not None
        assert self._out is not None
        self._require(context.set_tensor_address(INPUT, int(self._in)), "the input's address")
        self._require(context.set_tensor_address(OUTPUT, int(self._out)), "the output's address")
        return context

    def _enqueue_resize(self, tiles: Sequence[Pixels]) -> None:
        if self._resize is None:
            self._resize = DeviceResize(self._loaded.device, self._stream)
        assert self._in is not None
        self._resize.enqueue(tiles, self._loaded.size, self._in)

    def _predict(self, count: int) -> Probabilities:
        """Of the tiles that the stream has put, or will have put, into the input."""
        if recorded := self._graphs.get(count):
            recorded[0].launch()
            self._stream.wait()
        elif self._worth_a_graph(count) and (context := self._spare_context()):
            self._compute(context, count)
            self._stream.wait()  # TensorRT has met this shape now: what follows can be recorded
            self._record(context, count)
        else:
            self._compute(self._context, count)
            self._stream.wait()
        return np.array(self._host_out[:count])  # a copy: the next batch uses the buffer again

    def _compute(self, context: Any, count: int) -> None:
        shape = (count, *self._host_in.shape[1:])
        self._require(context.set_input_shape(INPUT, shape), f"the shape {shape}")
        self._launch(context, count)

    def _launch(self, context: Any, count: int) -> None:
        assert self._out is not None
        self._require(context.execute_async_v3(self._stream.handle), f"{count} tiles")
        self._stream.copy_out(self._host_out[:count], self._out)

    def _spare_context(self) -> Any:
        """One more context for a graph; None, and no more graphs, where it has no memory."""
        try:
            return self._new_context()
        except DeviceError:
            self._graphs_wanted = False
            return None

    def _worth_a_graph(self, count: int) -> bool:
        """The second time a batch size comes; a tail comes once."""
        known = count in self._seen
        self._seen.add(count)
        return known and self._graphs_wanted and len(self._graphs) < MAX_GRAPHS

    def _record(self, context: Any, count: int) -> None:
        try:
            graph = self._stream.capture(lambda: self._launch(context, count))
            self._graphs[count] = (graph, context)
        except DeviceError:  # no cuda-bindings, or work that cannot be recorded
            self._graphs_wanted = False

    def _require(self, accepted: Any, what: str) -> None:
        if not accepted:
            raise DeviceError(
                f"{self._loaded.flavour.title} refuses {what}: {self._loaded.last_words()}"
            )


def batches_of_pixels(
    tiles: Sequence[Pixels], size: int, most: int, room: int
) -> list[Sequence[Pixels]]:
    """Cut `tiles` so that no part has more than `most` or needs more than `room` bytes."""
    parts: list[Sequence[Pixels]] = []
    start, needed = 0, 0
    for i, tile in enumerate(tiles):
        plan = Plan([(tile.shape[0], tile.shape[1])], size)
        bytes_ = plan.upload_bytes + plan.scratch_bytes
        if i > start and (i - start >= most or needed + bytes_ > room):
            parts.append(tiles[start:i])
            start, needed = i, 0
        needed += bytes_
    if start < len(tiles):
        parts.append(tiles[start:])
    return parts
