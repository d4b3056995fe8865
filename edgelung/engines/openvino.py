"""OpenVINO on the CPU: the fast engine where there is no GPU."""

import io
import json
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from edgelung.core.cache import Cache
from edgelung.core.errors import one_line
from edgelung.engines.base import EngineUnavailableError, Probabilities, Tiles


class OpenVinoEngine:
    """A model compiled by OpenVINO for the CPU.

    As many batches side by side as there are threads, each in a stream of one thread: no core waits
    for another within a batch. With `latency` one stream has all threads.

    Floating point is computed in FP32, on CPUs with BF16 in that if `bf16` allows it: worth it
    beside INT8, where attention then takes half the time.
    """

    name = "openvino"
    device = "CPU"

    def __init__(
        self, graph: Path, threads: int, *, latency: bool = False, bf16: bool = False
    ) -> None:
        try:
            ov = _openvino()
        except ImportError as error:
            raise EngineUnavailableError(
                f"openvino is not installed ({one_line(error)}); pip install openvino"
            ) from error
        self.concurrency = 1 if latency else threads
        core, data = ov.Core(), graph.read_bytes()
        half = bf16 and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.float_type = "bf16" if half else "fp32"
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": self.concurrency,
            # On CPUs with BF16 OpenVINO would compute in it unasked.
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            # Other threads decode on the same cores: a stream must be free to move.
            "ENABLE_CPU_PINNING": False,
        }
        self._model = _compiled(ov, core, data, config)
        running = self._model.get_property("EXECUTION_DEVICES")
        if list(running) != ["CPU"]:
            raise EngineUnavailableError(f"asked OpenVINO for the CPU, it runs on {running}")
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.concurrency):
            self._requests.put(self._model.create_infer_request())

    def infer(self, tiles: Tiles) -> Probabilities:
        """See `Engine.infer`."""
        request = self._requests.get()
        try:
            result = request.infer({"tiles": tiles}, share_inputs=True)
            return np.asarray(result[0], np.float32)
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._requests, self._model


def _openvino() -> Any:
    """The module without its model converter, which takes as long to import as all the rest."""
    converter = "openvino.tools.ovc"
    if "openvino" not in sys.modules:
        sys.modules.setdefault(converter, None)  # type: ignore[arg-type]  # Python's 'not there'
    try:
        import openvino
    finally:
        if sys.modules.get(converter) is None:
            sys.modules.pop(converter, None)
    # The binding sets up its NumPy types at first use and gives the GIL away meanwhile: two threads
    # there at once wait for each other for good. So: here, before there are two.
    openvino.Type.u8.to_dtype()
    return openvino


def _compiled(ov: Any, core: Any, data: bytes, config: dict[str, Any]) -> Any:
    """The compiled model, from the user's cache where it was compiled here before.

    The key holds everything that shapes it: the graph's own bytes, OpenVINO's version, the
    processor, the configuration.
    """
    processor = core.get_property("CPU", "FULL_DEVICE_NAME")
    abilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    key = json.dumps([ov.get_version(), processor, abilities, config], sort_keys=True).encode()
    cache = Cache("openvino", data + key)
    if (blob := cache.read()) is not None:
        try:
            return core.import_model(io.BytesIO(blob), "CPU", config)
        except Exception:  # not what this OpenVINO can read, after all: compiled anew below
            cache.drop()
    model = core.compile_model(core.read_model(data), "CPU", config)
    if cache.wanted:
        kept = model.export_model()
        cache.write(kept.getvalue() if isinstance(kept, io.BytesIO) else bytes(kept))
    return model
