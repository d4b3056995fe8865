"""ONNX Runtime: on the CPU the reference that the other engines are compared with; on a GPU too."""

import io
import os
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.base import AS_IN_FILE, EngineUnavailableError, Probabilities, Tiles

PROVIDER = "CPUExecutionProvider"
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


class OnnxRuntimeEngine:
    """An ONNX Runtime session with exactly one execution provider.

    As many batches side by side as there are threads, one thread each; with `latency`, and on a
    GPU, one at a time. Raises EngineUnavailableError where anything but that provider would run.
    """

    def __init__(
        self,
        graph: Path,
        threads: int,
        *,
        latency: bool = False,
        name: str = "onnxruntime",
        provider: str = PROVIDER,
    ) -> None:
        self.name = name
        self.device = provider.removesuffix("ExecutionProvider")
        # The CPU provider has no FP16 arithmetic: it casts.
        self.float_type = "fp32" if provider == PROVIDER else AS_IN_FILE
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise EngineUnavailableError(
                f"onnxruntime is not installed ({one_line(error)}); pip install onnxruntime-gpu"
            ) from error
        if provider not in (offered := ort.get_available_providers()):
            raise EngineUnavailableError(
                f"this onnxruntime has no {provider} (it has {', '.join(offered)}); "
                "pip install onnxruntime-gpu"
            )
        options = ort.SessionOptions()
        one = latency or provider != PROVIDER
        self.concurrency = 1 if one else threads
        options.intra_op_num_threads = threads if one else 1
        options.log_severity_level = 3  # errors only: warnings about graph details help nobody here
        if provider != PROVIDER:
            options.log_severity_level = 4  # the error below says it in one line
            # Part of the graph on the CPU would be neither what was asked for nor fast.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN as pip installed them
                with redirect_stdout(io.StringIO()):  # what it fails to find, it prints
                    ort.preload_dlls()
        providers: list[Any] = [provider]
        if provider == CUDA:  # FP32 is the reference: not in TF32, the provider's default
            providers = [(provider, {"use_tf32": "0"})]
        elif provider == TENSORRT:  # knows no such option; read when its libraries load
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        # No fallback, now or when a batch fails later: what was asked for must be what runs.
        load = partial(ort.InferenceSession, str(graph), options, providers, enable_fallback=0)
        try:
            try:
                self._session = load()
            except Exception as error:
                if "float8" not in str(error):
                    raise
                # ONNX Runtime 1.31 fuses FP8's Q/DQ into kernels for INT8, which then refuse it.
                options.add_session_config_entry("session.disable_quant_qdq", "1")
                self._session = load()
        except Exception as error:
            if provider == PROVIDER:
                raise
            # Its libraries are missing, or it refuses the graph.
            raise EngineUnavailableError(f"{provider} does not load: {one_line(error)}") from error
        running = self._session.get_providers()
        if running[:1] != [provider] or set(running) - {provider, PROVIDER}:
            raise EngineUnavailableError(f"asked ONNX Runtime for {provider}, it runs {running}")

    def infer(self, tiles: Tiles) -> Probabilities:
        """See `Engine.infer`."""
        (probabilities,) = self._session.run(["probs"], {"tiles": tiles})
        return np.asarray(probabilities, dtype=np.float32)

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session


onnxruntime_cuda = partial(OnnxRuntimeEngine, name="onnxruntime-cuda", provider=CUDA)
onnxruntime_tensorrt = partial(OnnxRuntimeEngine, name="onnxruntime-tensorrt", provider=TENSORRT)
