"""ONNX Runtime's CUDA provider: bound memory, CUDA graphs, fused operators. Not yet run on a GPU.

    tiles ─► page-locked memory ─► the session's input ─► graph, replayed ─► outputs ─► page-locked

Input and outputs are bound to fixed device memory, and everything runs on one stream of edgelung's,
so that nothing waits until the results are read. ONNX Runtime records one CUDA graph per batch size
that comes back. FP16 graphs are rewritten with fused operators (`onnx_fusion.py`).
"""

import logging

import numpy as np

from edgelung import __version__
from edgelung.core.cache import ENGINE_FOLDER, Key, open_cache
from edgelung.core.errors import one_line
from edgelung.engines.base import Engine, EngineUnavailableError, Graph
from edgelung.engines.cuda import Device, DeviceError, Stream, graphs_enabled
from edgelung.engines.device_engine import DeviceEngine
from edgelung.engines.device_slot import DeviceSlot, ports_of
from edgelung.engines.names import EngineName
from edgelung.engines.onnx_fusion import RULES, fuse
from edgelung.engines.onnxruntime import (
    CUDA,
    Binding,
    OnnxRuntimeEngine,
    RunOptions,
    Session,
    import_runtime,
    open_session,
)

MAX_BATCH = 128
MAX_GRAPHS = 8  # batch sizes with a graph: their activations share the session's memory
NO_GRAPH = -1  # the run option that neither records nor replays
# Two runs of one batch differ by no more than the order of their sums does, in FP16.
GRAPH_TOLERANCE = 1e-2

logger = logging.getLogger(__name__)


class OnnxRuntimeCudaEngine(DeviceEngine):
    """A graph in ONNX Runtime's CUDA provider on the first GPU.

    One slot: ONNX Runtime records a CUDA graph in a mode in which no other thread may allocate.

    Args:
        graph: the ONNX file.
        device: the GPU.
        fused: rewrite FP16 graphs with fused operators.

    Raises:
        EngineUnavailableError: if the provider does not load here.
        DeviceError: if the GPU has too little memory.
    """

    concurrency = 1

    def __init__(self, graph: Graph, device: Device, *, fused: bool = True) -> None:
        super().__init__(EngineName.ONNXRUNTIME_CUDA, device, MAX_BATCH)
        rewritten = fused_graph(graph) if fused else None
        if rewritten is not None:
            self.plain = plain_onnxruntime_cuda
        with device.current():
            stream = device.stream()
            session, graphs = _open(rewritten or graph.read(), stream)
            self._open(lambda: OnnxRuntimeSlot(device, session, stream, graphs=graphs))


class OnnxRuntimeSlot(DeviceSlot):
    """A slot that computes in a session, which runs on the slot's stream."""

    def __init__(self, device: Device, session: Session, stream: Stream, *, graphs: bool) -> None:
        tensors = [*session.get_inputs(), *session.get_outputs()]
        rows = {tensor.name: [int(n) for n in tensor.shape[1:]] for tensor in tensors}
        self._session: Session | None = session
        self._use_graphs = graphs
        self._graphs: dict[int, int] = {}  # batch size → number of its graph
        self._seen_batches: set[int] = set()
        self._bindings: dict[int, Binding] = {}
        self._options: dict[int, RunOptions] = {}
        super().__init__(device, ports_of(rows), MAX_BATCH, stream)

    def compute(self, count: int) -> None:
        """See `DeviceSlot.compute`."""
        if self._needs_graph(count):
            self._record(count)
        self._run(count, self._graphs.get(count, NO_GRAPH))
        self.copy_out(count)

    def close(self) -> None:
        """Release the session, its graphs and the memory."""
        self._bindings.clear()
        self._session = None
        super().close()

    def _needs_graph(self, count: int) -> bool:
        """Return True once: when a batch size comes for the second time."""
        came_before = count in self._seen_batches
        self._seen_batches.add(count)
        room = len(self._graphs) < MAX_GRAPHS
        return came_before and self._use_graphs and room and count not in self._graphs

    def _record(self, count: int) -> None:
        """Record a graph of this batch size, and use it if it gives what was computed without."""
        self._run(count, NO_GRAPH)
        self.copy_out(count)
        expected = self.results(count)
        number = len(self._graphs) + 1
        try:
            self._run(count, number)
            self.copy_out(count)
            found = self.results(count)
        except DeviceError as error:
            self._use_graphs = False
            logger.info("ONNX Runtime runs without CUDA graphs: %s", error)
            return
        pairs = zip(found, expected, strict=True)
        # What fills up a batch behind an early exit may be no numbers: NaN is as good as NaN.
        if all(
            np.allclose(ours, theirs, GRAPH_TOLERANCE, GRAPH_TOLERANCE, equal_nan=True)
            for ours, theirs in pairs
        ):
            self._graphs[count] = number
        else:
            self._use_graphs = False
            logger.info("ONNX Runtime runs without CUDA graphs: one gave other numbers")

    def _run(self, count: int, graph: int) -> None:
        """Enqueue the model; the first run with the number of a graph records it."""
        if count not in self._bindings:
            self._bindings[count] = self._bind(count)
        if graph not in self._options:
            options: RunOptions = import_runtime(CUDA).RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(graph))
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            self._options[graph] = options
        assert self._session is not None, "the slot was closed"
        try:
            self._session.run_with_iobinding(self._bindings[count], self._options[graph])
        except Exception as error:  # ONNX Runtime raises its own types
            raise DeviceError(f"ONNX Runtime fails on {count} tiles: {one_line(error)}") from error

    def _bind(self, count: int) -> Binding:
        assert self._session is not None
        binding = self._session.io_binding()
        first, *outputs = (self.ports.input, *self.ports.outputs)
        address = int(self.memory(first.name))
        binding.bind_input(first.name, "cuda", 0, first.dtype, (count, *first.row), address)
        for port in outputs:
            address = int(self.memory(port.name))
            binding.bind_output(port.name, "cuda", 0, port.dtype, (count, *port.row), address)
        return binding


def onnxruntime_cuda(
    graph: Graph, threads: int, *, latency: bool = False, fused: bool = True
) -> Engine:
    """Load a graph in the CUDA provider: see `EngineFactory`.

    Without pycuda there is no bound memory, no CUDA graph and no fused operator.
    """
    try:
        device = Device()
    except EngineUnavailableError as error:
        name = EngineName.ONNXRUNTIME_CUDA
        engine = OnnxRuntimeEngine(graph, threads, latency=latency, name=name, provider=CUDA)
        logger.info("ONNX Runtime runs without bound memory and CUDA graphs: %s", error)
        return engine
    return OnnxRuntimeCudaEngine(graph, device, fused=fused)


def plain_onnxruntime_cuda(graph: Graph, threads: int, *, latency: bool = False) -> Engine:
    """Load the graph as it is in the file."""
    return onnxruntime_cuda(graph, threads, latency=latency, fused=False)


def fused_graph(graph: Graph) -> bytes | None:
    """The graph with fused operators, from the private cache; None if it runs as it is."""
    key = Key("fused-graph", {"graph": graph.sha256}, {"rules": RULES, "edgelung": __version__})

    def build() -> bytes:
        data, count = fuse(graph.read())
        if not count:
            raise EngineUnavailableError("nothing in it can be fused")
        return data

    try:
        return open_cache(ENGINE_FOLDER, max_entries=None).get_or_build(key, build)
    except ImportError:
        reason = "the package onnx is not installed; pip install 'edgelung[gpu]'"
    except EngineUnavailableError as error:
        reason = str(error)
    logger.info("ONNX Runtime runs %s as it is: %s", graph.name, reason)
    return None


def _open(onnx: bytes, stream: Stream) -> tuple[Session, bool]:
    """Open the session on a stream; also return True if it can record CUDA graphs."""
    options = {
        "user_compute_stream": str(stream.handle),
        # The sums of fused layer norms in FP32: in FP16 they overflow.
        "enable_skip_layer_norm_strict_mode": "1",
    }
    if graphs_enabled():
        try:
            return open_session(onnx, CUDA, 1, options | {"enable_cuda_graph": "1"}), True
        except EngineUnavailableError as error:
            refused = str(error)
        session = open_session(onnx, CUDA, 1, options)  # raises if graphs are not what is wrong
        logger.info("ONNX Runtime runs without CUDA graphs: %s", refused)
        return session, False
    return open_session(onnx, CUDA, 1, options), False
