"""ONNX Runtime on the CPU: the reference that the other engines are compared with."""

from pathlib import Path

import numpy as np

from edgelung.engines.base import EngineUnavailableError, Probabilities, Tiles
from edgelung.errors import one_line

PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """An ONNX Runtime session with exactly one execution provider.

    As many batches side by side as there are threads, one thread each; with `latency` all threads
    work on one.
    """

    name = "onnxruntime"
    device = "CPU"

    def __init__(self, graph: Path, threads: int, *, latency: bool = False) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise EngineUnavailableError(
                f"onnxruntime is not installed ({one_line(error)}); pip install onnxruntime-gpu"
            ) from error
        options = ort.SessionOptions()
        self.concurrency = 1 if latency else threads
        options.intra_op_num_threads = threads if latency else 1
        options.log_severity_level = 3  # errors only: warnings about graph details help nobody here
        self._session = ort.InferenceSession(str(graph), options, providers=[PROVIDER])
        # Providers fall back without raising: what was asked for must be what runs.
        running = self._session.get_providers()
        if running != [PROVIDER]:
            raise EngineUnavailableError(f"asked ONNX Runtime for {PROVIDER}, it runs {running}")

    def infer(self, tiles: Tiles) -> Probabilities:
        """See `Engine.infer`."""
        (probabilities,) = self._session.run(["probs"], {"tiles": tiles})
        return np.asarray(probabilities, dtype=np.float32)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session
