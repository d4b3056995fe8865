"""Run a TensorRT engine in execution slots, so that one batch is copied while another is computed.

Each slot has its own execution context, stream and buffers; the streams of two slots overlap. A
batch size that comes back is replayed as a CUDA graph: one launch instead of some hundred.
"""

from contextlib import suppress

from edgelung.core.errors import one_line
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import Device, DeviceError, Graph, graphs_enabled
from edgelung.engines.device_slot import DeviceSlot, ports_of
from edgelung.engines.tensorrt.api import ExecutionContext, Serializable
from edgelung.engines.tensorrt.flavour import Flavour, error_log

MAX_GRAPHS = 4  # batch sizes with a graph, per slot: each holds a context with its activations


class LoadedEngine:
    """A deserialized engine on one device.

    Attributes:
        ports: its input and outputs.

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
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        shapes = {name: tuple(self._engine.get_tensor_shape(name)) for name in names}
        self.ports = ports_of({name: shape[1:] for name, shape in shapes.items()})  # N is -1
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


class ExecutionSlot(DeviceSlot):
    """A slot that computes in a TensorRT context."""

    def __init__(self, loaded: LoadedEngine, max_batch: int) -> None:
        self._loaded = loaded
        self._seen_batches: set[int] = set()
        # A graph is valid only while nobody changes the context it was recorded from (TensorRT's
        # developer guide, 'CUDA Graphs'), so each graph has its own context.
        self._graphs: dict[int, tuple[Graph, ExecutionContext]] = {}
        self._use_graphs = graphs_enabled()
        self._context: ExecutionContext | None = None
        super().__init__(loaded.device, loaded.ports, max_batch)
        try:
            self._context = self._new_context()
        except BaseException:
            self.close()
            raise

    def compute(self, count: int) -> None:
        """See `DeviceSlot.compute`."""
        if recorded := self._graphs.get(count):
            recorded[0].launch()
        elif self._needs_graph(count) and (context := self._context_for_graph()):
            self.compute_in(context, count)
            self.stream.wait()  # TensorRT has prepared this shape: it can be recorded now
            self._record(context, count)
        else:
            self.compute_in(self._context, count)

    def compute_in(self, context: ExecutionContext | None, count: int) -> None:
        """Enqueue the graph without a recording; None is the slot's own context."""
        context = context or self._context
        assert context is not None
        shape = (count, *self.ports.input.row)
        name = self.ports.input.name
        self._require(context.set_input_shape(name, shape), f"the shape {shape}")
        self._launch(context, count)

    def close(self) -> None:
        """Release graphs, contexts and memory."""
        with suppress(DeviceError):
            self.stream.wait()
        for graph, _ in self._graphs.values():
            with suppress(DeviceError):
                graph.free()
        self._graphs.clear()
        self._context = None
        super().close()

    def _new_context(self) -> ExecutionContext:
        context = self._loaded.context()
        for port in (self.ports.input, *self.ports.outputs):
            accepted = context.set_tensor_address(port.name, int(self.memory(port.name)))
            self._require(accepted, f"the address of {port.name}")
        return context

    def _launch(self, context: ExecutionContext, count: int) -> None:
        self._require(context.execute_async_v3(self.stream.handle), f"{count} tiles")
        self.copy_out(count)

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
            graph = self.stream.capture(lambda: self._launch(context, count))
            self._graphs[count] = (graph, context)
        except DeviceError:  # no cuda-bindings, or work that cannot be recorded
            self._use_graphs = False

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise DeviceError(
                f"{self._loaded.flavour.title} refuses {what}: {self._loaded.last_error()}"
            )
