"""OpenVINO on the CPU: the fast engine where there is no GPU."""

from pathlib import Path

import numpy as np

from edgelung.engines.base import EngineUnavailableError, Probabilities, Tiles
from edgelung.errors import one_line


class OpenVinoEngine:
    """A model compiled by OpenVINO for the CPU."""

    name = "openvino"
    device = "CPU"
    concurrency = 1

    def __init__(self, graph: Path, threads: int) -> None:
        try:
            import openvino as ov
        except ImportError as error:
            raise EngineUnavailableError(
                f"openvino is not installed ({one_line(error)}); pip install openvino"
            ) from error
        config = {
            "INFERENCE_NUM_THREADS": threads,
            # On CPUs with BF16 OpenVINO would compute FP32 graphs in BF16 unasked; the precision
            # is what the ONNX file says.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._model = ov.Core().compile_model(str(graph), "CPU", config)
        running = self._model.get_property("EXECUTION_DEVICES")
        if list(running) != ["CPU"]:
            raise EngineUnavailableError(f"asked OpenVINO for the CPU, it runs on {running}")
        self._request = self._model.create_infer_request()

    def infer(self, tiles: Tiles) -> Probabilities:
        """See `Engine.infer`."""
        result = self._request.infer({"tiles": tiles}, share_inputs=True)
        return np.array(result["probs"], dtype=np.float32)  # a copy: the request reuses its buffer

    def close(self) -> None:
        """See `Engine.close`."""
        del self._request, self._model
