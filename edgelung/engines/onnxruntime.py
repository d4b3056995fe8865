"""ONNX Runtime: on the CPU the reference for all other engines; with TensorRT on a GPU.

Its CUDA provider: `onnxruntime_cuda.py`.
"""

import ctypes
import io
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.base import (
    AS_IN_FILE,
    EngineUnavailableError,
    Floats,
    Graph,
    Output,
    Tiles,
    output_of,
)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
LIBRARIES = {  # of the GPU providers, in ONNX Runtime's folder on Linux
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
SILENT = 4  # log level 'fatal'; every error that is not fatal is raised as an exception too


class Session(Protocol):
    """What is used of `onnxruntime.InferenceSession`, which has no types."""

    def run(self, outputs: list[str] | None, inputs: dict[str, Tiles | Floats]) -> list[Floats]: ...
    def run_with_iobinding(self, binding: "Binding", options: "RunOptions") -> None: ...
    def io_binding(self) -> "Binding": ...
    def get_inputs(self) -> list["SessionPort"]: ...
    def get_outputs(self) -> list["SessionPort"]: ...
    def get_providers(self) -> list[str]: ...


class SessionPort(Protocol):
    """What is used of `onnxruntime.NodeArg`: an input or output, its batch named 'N'."""

    name: str
    shape: list[int | str]


class Binding(Protocol):
    """What is used of `onnxruntime.IOBinding`."""

    def bind_input(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: type[np.generic],
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None: ...
    def bind_output(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: type[np.generic],
        shape: tuple[int, ...],
        buffer_ptr: int,
    ) -> None: ...


class RunOptions(Protocol):
    """What is used of `onnxruntime.RunOptions`."""

    def add_run_config_entry(self, name: str, value: str) -> None: ...


class SessionOptions(Protocol):
    """What this module uses of `onnxruntime.SessionOptions`."""

    intra_op_num_threads: int
    log_severity_level: int

    def add_session_config_entry(self, name: str, value: str) -> None: ...


class OnnxRuntimeEngine:
    """An ONNX Runtime session with exactly one execution provider.

    On the CPU it runs `threads` batches at once with one thread each, or with `latency` one batch
    with all threads. On a GPU it runs one batch at a time.

    Raises:
        EngineUnavailableError: if another provider than the requested one would run.
    """

    def __init__(
        self,
        graph: Graph,
        threads: int,
        *,
        latency: bool = False,
        name: str = "onnxruntime",
        provider: str = CPU,
    ) -> None:
        self.name = name
        self.device = provider.removesuffix("ExecutionProvider")
        # The CPU provider has no FP16 arithmetic: it converts to FP32.
        self.float_type = "fp32" if provider == CPU else AS_IN_FILE
        one_batch = latency or provider != CPU
        self.concurrency = 1 if one_batch else threads
        self._session = open_session(graph.read(), provider, threads if one_batch else 1)
        self._input = self._session.get_inputs()[0].name

    def infer(self, tiles: Tiles) -> Output:
        """See `Engine.infer`."""
        return output_of(self.run(tiles))

    def run(self, batch: Tiles | Floats) -> list[Floats]:
        """See `StageEngine.run`."""
        arrays = self._session.run(None, {self._input: batch})  # all, in the order of the file
        return [np.asarray(array, dtype=np.float32) for array in arrays]

    def close(self) -> None:
        """See `Engine.close`."""
        del self._session


def open_session(
    onnx: bytes, provider: str, threads: int, more: Mapping[str, str] | None = None
) -> Session:
    """Load a graph in a session of one provider.

    Args:
        onnx: the graph.
        provider: runs the whole graph.
        threads: of the CPU provider.
        more: further options of the provider.

    Raises:
        EngineUnavailableError: if the provider does not load here, or another one would run.
    """
    ort = import_runtime(provider)
    options = _session_options(ort, provider, threads)
    try:
        session = _load_session(ort, onnx, options, provider, more or {})
    except Exception as error:  # the graph is refused, or the provider's libraries are missing
        if provider == CPU:
            raise
        reason = _missing_library(ort, provider) or one_line(error)
        raise EngineUnavailableError(f"{provider} does not load: {reason}") from error
    active = session.get_providers()
    if active[:1] != [provider] or set(active) - {provider, CPU}:
        raise EngineUnavailableError(f"asked ONNX Runtime for {provider}, it runs {active}")
    return session


def import_runtime(provider: str) -> ModuleType:
    """Import onnxruntime, silence its log and check that it was built with `provider`."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineUnavailableError(
            f"onnxruntime is not installed ({one_line(error)}); pip install onnxruntime-gpu"
        ) from error
    # Providers log to the default logger, not to the session's, when their libraries do not load.
    ort.set_default_logger_severity(SILENT)
    available = ort.get_available_providers()
    if provider not in available:
        raise EngineUnavailableError(
            f"this onnxruntime has no {provider} (it has {', '.join(available)}); "
            "pip install onnxruntime-gpu"
        )
    module: ModuleType = ort
    return module


def _session_options(ort: ModuleType, provider: str, threads: int) -> SessionOptions:
    options: SessionOptions = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = SILENT
    if provider == CPU:
        # Without VNNI, INT8 sums would saturate. This takes exact kernels there, and has no effect
        # on other processors.
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        # A graph that runs partly on the CPU is neither what was asked for nor fast.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if hasattr(ort, "preload_dlls"):  # load CUDA and cuDNN from where pip installed them
            with redirect_stdout(io.StringIO()):  # it prints the libraries that it does not find
                ort.preload_dlls()
    return options


def _load_session(
    ort: ModuleType, onnx: bytes, options: SessionOptions, provider: str, more: Mapping[str, str]
) -> Session:
    """Load the graph with `provider` alone: ONNX Runtime must not fall back, now or later."""
    providers: list[str | tuple[str, dict[str, str]]] = [provider]
    if provider == CUDA:  # FP32 is the reference: compute it in FP32, not in TF32, the default
        providers = [(provider, {"use_tf32": "0", **more})]
    elif provider == TENSORRT:  # has no such option; its libraries read this as they load
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

    def load() -> Session:
        session: Session = ort.InferenceSession(onnx, options, providers, enable_fallback=0)
        return session

    try:
        return load()
    except Exception as error:
        if "float8" not in str(error):
            raise
        # ONNX Runtime 1.31 fuses FP8's Q/DQ into kernels for INT8, which then refuse it.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        return load()


def _missing_library(ort: ModuleType, provider: str) -> str | None:
    """Name the shared library that `provider` lacks; None if that is not what is wrong.

    ONNX Runtime only logs it, and raises an error about what follows from it.
    """
    try:
        ctypes.CDLL(str(Path(str(ort.__file__)).parent / "capi" / LIBRARIES[provider]))
    except OSError as error:
        if "cannot open shared object file" in str(error) and LIBRARIES[provider] not in str(error):
            return one_line(error)
    return None


onnxruntime_tensorrt = partial(OnnxRuntimeEngine, name="onnxruntime-tensorrt", provider=TENSORRT)
