"""OpenVINO on the CPU: the fastest engine on a machine without a GPU."""

import io
import json
import sys
from queue import SimpleQueue
from types import ModuleType
from typing import Protocol

import numpy as np

from edgelung.core.cache import Key, open_cache
from edgelung.core.errors import one_line
from edgelung.core.system import saturates_int8
from edgelung.engines.base import (
    EngineUnavailableError,
    Floats,
    Graph,
    Output,
    Tiles,
    output_of,
)

Config = dict[str, str | int | bool]

QUANTIZED = b"QuantizeLinear"  # an operator's name, which an ONNX file holds as text


class InferResult(Protocol):
    """What this module uses of what a request gives."""

    def to_tuple(self) -> tuple[Floats, ...]: ...


class InferRequest(Protocol):
    """What this module uses of `openvino.InferRequest`, which has no types here."""

    def infer(self, inputs: Tiles | Floats, *, share_inputs: bool) -> InferResult: ...


class CompiledModel(Protocol):
    """What this module uses of `openvino.CompiledModel`."""

    def get_property(self, name: str) -> list[str]: ...
    def create_infer_request(self) -> InferRequest: ...
    def export_model(self) -> io.BytesIO | bytes: ...


class Core(Protocol):
    """What this module uses of `openvino.Core`; a model that was read is passed on as it is."""

    def get_property(self, device: str, name: str) -> str | list[str]: ...
    def read_model(self, model: bytes) -> object: ...
    def compile_model(self, model: object, device: str, config: Config) -> CompiledModel: ...
    def import_model(self, model: io.BytesIO, device: str, config: Config) -> CompiledModel: ...


class OpenVinoEngine:
    """A model compiled by OpenVINO for the CPU.

    It runs `threads` batches at once, each in a stream of one thread, so that no core waits for
    another within a batch. With `latency`, one stream uses all threads.

    Floating point is computed in FP32. With `bf16` it is computed in BF16 if the CPU can: beside
    INT8, attention then takes half the time.

    Raises:
        EngineUnavailableError: if openvino is not installed; for INT8 on a processor where it does
            not sum exactly.
    """

    name = "openvino"
    device = "CPU"

    def __init__(
        self, graph: Graph, threads: int, *, latency: bool = False, bf16: bool = False
    ) -> None:
        try:
            ov = _openvino()
        except ImportError as error:
            raise EngineUnavailableError(
                f"openvino is not installed ({one_line(error)}); pip install openvino"
            ) from error
        if saturates_int8() and QUANTIZED in graph.read():
            raise EngineUnavailableError(
                "this CPU has no VNNI instructions, and without them OpenVINO's INT8 sums are "
                "wrong; use --engine onnxruntime, or --precision fp32"
            )
        self.concurrency = 1 if latency else threads
        core: Core = ov.Core()
        use_bf16 = bf16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.float_type = "bf16" if use_bf16 else "fp32"
        config: Config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": self.concurrency,
            # Without this hint OpenVINO computes in BF16 on every CPU that can.
            "INFERENCE_PRECISION_HINT": "bf16" if use_bf16 else "f32",
            # Other threads decode on the same cores, so streams must be free to move.
            "ENABLE_CPU_PINNING": False,
        }
        self._model = _compile(core, ov.get_version(), graph, config)
        devices = list(self._model.get_property("EXECUTION_DEVICES"))
        if devices != ["CPU"]:
            raise EngineUnavailableError(f"asked OpenVINO for the CPU, it runs on {devices}")
        self._requests: SimpleQueue[InferRequest] = SimpleQueue()
        for _ in range(self.concurrency):
            self._requests.put(self._model.create_infer_request())

    def infer(self, tiles: Tiles) -> Output:
        """See `Engine.infer`."""
        return output_of(self.run(tiles))

    def run(self, batch: Tiles | Floats) -> list[Floats]:
        """See `StageEngine.run`."""
        request = self._requests.get()
        try:
            # The array itself and a tuple: a list and look-ups by index take 0.1 ms more.
            outputs = request.infer(batch, share_inputs=True).to_tuple()
            return [np.asarray(output, np.float32) for output in outputs]
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._requests, self._model


def _openvino() -> ModuleType:
    """Import openvino without its model converter, which doubles the time of the import."""
    converter = "openvino.tools.ovc"
    if "openvino" not in sys.modules:
        sys.modules.setdefault(converter, None)  # type: ignore[arg-type]  # makes its import fail
    try:
        import openvino
    finally:
        if sys.modules.get(converter) is None:
            sys.modules.pop(converter, None)
    # The binding creates its NumPy types at first use and releases the GIL meanwhile: two threads
    # that do so at once deadlock. So create them here, before there is a second thread.
    openvino.Type.u8.to_dtype()
    module: ModuleType = openvino
    return module


def _compile(core: Core, version: str, graph: Graph, config: Config) -> CompiledModel:
    """Return the compiled model, from the user's cache if it was compiled here before.

    The cache key covers everything that shapes the result: the graph's bytes, OpenVINO's version,
    the processor and the configuration.
    """
    processor = core.get_property("CPU", "FULL_DEVICE_NAME")
    capabilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    setup = json.dumps([version, processor, capabilities, config], sort_keys=True)
    cache, key = open_cache("openvino"), Key("model", {"graph": graph.sha256, "setup": setup})
    if (compiled := cache.get(key).data) is not None:
        try:
            return core.import_model(io.BytesIO(compiled), "CPU", config)
        except Exception:  # this OpenVINO cannot read it: compile again
            cache.remove(key)
    model = core.compile_model(core.read_model(graph.read()), "CPU", config)
    if cache.enabled:
        exported = model.export_model()
        data = exported.getvalue() if isinstance(exported, io.BytesIO) else bytes(exported)
        cache.try_put(key, data)
    return model
