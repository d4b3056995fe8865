"""Run a TensorRT engine in execution slots, so that one batch is copied while another is computed.

Each slot has its own execution context, stream and pinned buffers. On its stream the copy to the
device, the computation and the copy back follow each other; the streams of two slots overlap. A
batch size that comes back is replayed as a CUDA graph: one launch instead of some hundred.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.base import EngineUnavailableError, Output, Tiles
from edgelung.engines.cuda import Device, DeviceError, Graph, Memory, graphs_enabled
from edgelung.engines.resize import DeviceResize
from edgelung.engines.tensorrt.api import ExecutionContext, Serializable
from edgelung.engines.tensorrt.build import INPUT, OUTPUT, SCORE, Profile
from edgelung.engines.tensorrt.flavour import Flavour, error_log
from edgelung.kernels.resize import Pixels, Plan

MAX_GRAPHS = 4  # batch sizes with a graph, per slot: each holds a context with its activations


class LoadedEngine:
    """A deserialized engine on one device.

    Attributes:
        size: side of the tiles that it takes, in pixels.
        classes: number of classes.
        has_score: True if it computes `Output.ood`.

    Raises:
        EngineUnavailableError: if TensorRT does not load the plan here.
    """

    def __init__(self, flavour: Flavour, device: Device, plan: bytes, runtime_cache: bytes) -> None:
        # The device first: without one, deserializing returns nothing or ends the process.
        self.flavour, self.device = flavour, device
        trt = flavour.trt
        self._log = error_log(flavour)
        self._runtime = trt.Runtime(self._log)  # the engine is valid only while the runtime lives
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineUnavailableError(
                f"{flavour.title} does not load the engine on {device.name}: {self.last_error()}"
            )
        self.size = int(tuple(self._engine.get_tensor_shape(INPUT))[1])  # (-1, size, size, 3)
        self.classes = int(tuple(self._engine.get_tensor_shape(OUTPUT))[1])  # (-1, classes)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.has_score = SCORE in names
        self._config = None
        self._cache: Serializable | None = None
        if flavour.ahead_of_time:  # TensorRT-RTX compiles kernels at first use; keep them
            self._config = self._engine.create_runtime_config()
            # Without EAGER, a graph would always replay the slow kernels that TensorRT-RTX uses
            # until the fast ones are compiled.
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            cache = self._config.create_runtime_cache()
            if runtime_cache:
                cache.deserialize(runtime_cache)
            self._config.set_runtime_cache(cache)
            self._cache = cache

    def context(self) -> ExecutionContext:
        """Create an execution context. Only one thread at a time may use it."""
        create = self._engine.create_execution_context
        context: ExecutionContext | None = (
            create(self._config) if self._config is not None else create()
        )
        if context is None:
            raise DeviceError(
                f"{self.flavour.title} has no memory for an execution context on "
                f"{self.device.name}: {self.last_error()}"
            )
        return context

    def runtime_cache(self) -> bytes:
        """Return what TensorRT-RTX compiled so far; empty for TensorRT."""
        return bytes(self._cache.serialize()) if self._cache is not None else b""

    def last_error(self) -> str:
        """Return TensorRT's last error on one line."""
        return one_line(self._log.errors[-1]) if self._log.errors else "it gave no reason"

    def close(self) -> None:
        """Release the engine and the runtime, in this order."""
        self._cache = self._config = None
        self._engine = None
        self._runtime = None


class ExecutionSlot:
    """Execution slot for one batch at a time.

    Holds a TensorRT context, a CUDA stream, and pinned and device buffers for up to
    `profile.max_batch` tiles.
    """

    def __init__(self, loaded: LoadedEngine, profile: Profile) -> None:
        device, tile_shape = loaded.device, (loaded.size, loaded.size, 3)
        self._loaded = loaded
        self._seen_batches: set[int] = set()
        # A graph is valid only while nobody changes the context it was recorded from (TensorRT's
        # developer guide, 'CUDA Graphs'), so each graph has its own context.
        self._graphs: dict[int, tuple[Graph, ExecutionContext]] = {}
        self._use_graphs = graphs_enabled()
        self._resize: DeviceResize | None = None
        self._in: Memory | None = None
        self._out: Memory | None = None
        self._score: Memory | None = None
        self._context: ExecutionContext | None = None
        self._stream = device.stream()
        try:
            self._host_in = device.pinned((profile.max_batch, *tile_shape), np.uint8)
            self._host_out = device.pinned((profile.max_batch, loaded.classes), np.float32)
            self._host_score = device.pinned((profile.max_batch,), np.float32)
            self._in = device.memory(self._host_in.nbytes)
            self._out = device.memory(self._host_out.nbytes)
            if loaded.has_score:
                self._score = device.memory(self._host_score.nbytes)
            self._context = self._new_context()
        except BaseException:
            self.close()
            raise

    def run(self, tiles: Tiles) -> Output:
        """Predict tiles uint8 (N, size, size, 3), N ≤ `max_batch`."""
        assert self._in is not None
        count = len(tiles)
        self._host_in[:count] = tiles
        self._stream.copy_in(self._in, self._host_in[:count])
        return self._predict(count)

    def run_pixels(self, tiles: Sequence[Pixels]) -> Output:
        """Predict tiles uint8 (H, W, 3) of any sizes, resized on the device; otherwise as `run`."""
        self._enqueue_resize(tiles)
        return self._predict(len(tiles))

    def resize(self, tiles: Sequence[Pixels]) -> Tiles:
        """Return the pixels uint8 (N, size, size, 3) that `run_pixels` gives to the model."""
        assert self._in is not None
        self._enqueue_resize(tiles)
        pixels = self._host_in[: len(tiles)]
        self._stream.copy_out(pixels, self._in)
        self._stream.wait()
        return np.array(pixels)

    def close(self) -> None:
        """Release graphs, contexts and memory."""
        with suppress(DeviceError):  # after a failed batch the stream fails as well; free anyway
            self._stream.wait()
        for graph, _ in self._graphs.values():
            with suppress(DeviceError):
                graph.free()
        self._graphs.clear()
        self._context = None
        for resource in (self._resize, self._in, self._out, self._score):
            if resource is not None:
                with suppress(DeviceError):
                    resource.free()
        self._resize = self._in = self._out = self._score = None

    def _new_context(self) -> ExecutionContext:
        context = self._loaded.context()
        assert self._in is not None
        assert self._out is not None
        self._require(context.set_tensor_address(INPUT, int(self._in)), "the input's address")
        self._require(context.set_tensor_address(OUTPUT, int(self._out)), "the output's address")
        if self._score is not None:
            accepted = context.set_tensor_address(SCORE, int(self._score))
            self._require(accepted, "the score's address")
        return context

    def _enqueue_resize(self, tiles: Sequence[Pixels]) -> None:
        if self._resize is None:
            self._resize = DeviceResize(self._loaded.device, self._stream)
        assert self._in is not None
        self._resize.enqueue(tiles, self._loaded.size, self._in)

    def _predict(self, count: int) -> Output:
        """Predict the `count` tiles that the stream writes to the input buffer."""
        if recorded := self._graphs.get(count):
            recorded[0].launch()
            self._stream.wait()
        elif self._needs_graph(count) and (context := self._context_for_graph()):
            self._compute(context, count)
            self._stream.wait()  # TensorRT has prepared this shape: it can be recorded now
            self._record(context, count)
        else:
            assert self._context is not None
            self._compute(self._context, count)
            self._stream.wait()
        # Copies: the next batch reuses the buffers.
        score = None if self._score is None else np.array(self._host_score[:count])
        return Output(np.array(self._host_out[:count]), score)

    def _compute(self, context: ExecutionContext, count: int) -> None:
        shape = (count, *self._host_in.shape[1:])
        self._require(context.set_input_shape(INPUT, shape), f"the shape {shape}")
        self._launch(context, count)

    def _launch(self, context: ExecutionContext, count: int) -> None:
        assert self._out is not None
        self._require(context.execute_async_v3(self._stream.handle), f"{count} tiles")
        self._stream.copy_out(self._host_out[:count], self._out)
        if self._score is not None:
            self._stream.copy_out(self._host_score[:count], self._score)

    def _context_for_graph(self) -> ExecutionContext | None:
        """Create a context for a graph. If memory runs out, record no more graphs."""
        try:
            return self._new_context()
        except DeviceError:
            self._use_graphs = False
            return None

    def _needs_graph(self, count: int) -> bool:
        """Return True from the second time a batch size comes; the last batch comes only once."""
        came_before = count in self._seen_batches
        self._seen_batches.add(count)
        return came_before and self._use_graphs and len(self._graphs) < MAX_GRAPHS

    def _record(self, context: ExecutionContext, count: int) -> None:
        try:
            graph = self._stream.capture(lambda: self._launch(context, count))
            self._graphs[count] = (graph, context)
        except DeviceError:  # no cuda-bindings, or work that cannot be recorded
            self._use_graphs = False

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise DeviceError(
                f"{self._loaded.flavour.title} refuses {what}: {self._loaded.last_error()}"
            )


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
