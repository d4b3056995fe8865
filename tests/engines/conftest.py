"""The fake GPU (fake_gpu.py) in place of pycuda, cuda-bindings and TensorRT."""

import ctypes
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_gpu
import fake_onnxruntime
import onnxruntime
import pytest

from edgelung.artifacts.bundle import Bundle
from edgelung.engines.tensorrt.build import Profile
from edgelung.engines.tensorrt.engine import TensorRtEngine
from edgelung.kernels import build as kernels_build

WHEELS = {
    "tensorrt": "tensorrt-cu13-bindings==11.4.0.106",
    "tensorrt-rtx": "tensorrt-rtx-cu13-bindings==1.7.1.116",
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with a fake GPU and an empty engine cache."""
    machine = fake_gpu.FakeGpu()
    monkeypatch.setitem(sys.modules, "pycuda.driver", machine.pycuda())
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", machine.bindings())
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    return machine


@pytest.fixture
def install(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Install a fake TensorRT: `install('tensorrt')`, or the API of another wheel."""

    def call(name: str, wheel: str = "") -> Any:
        module = fake_gpu.FakeTensorRt(gpu, wheel or WHEELS[name])
        monkeypatch.setitem(sys.modules, name.replace("-", "_"), module)
        return module

    return call


@pytest.fixture
def twin(gpu: Any, tmp_path: Path) -> None:
    """Let the fake GPU run the kernels of the host twin."""
    if shutil.which("g++") is None or kernels_build.read_record() is None:
        pytest.skip("needs g++ and built kernels")
    gpu.twin = ctypes.CDLL(str(kernels_build.build_host(tmp_path / "twin.so")))


@pytest.fixture
def open_small(bundle: Bundle, install: Any) -> Any:
    """Open a TensorRT engine of at most 8 tiles a batch."""

    def call(name: str = "tensorrt", **options: Any) -> TensorRtEngine:
        if name.replace("-", "_") not in sys.modules:
            install(name)
        options = {"profile": Profile(opt_batch=4, max_batch=8)} | options
        return TensorRtEngine(bundle.variants["fp32"].graph, 1, name=name, **options)

    return call


@pytest.fixture
def cuda_sessions(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[fake_onnxruntime.FakeSession]:
    """Let ONNX Runtime's CUDA provider run on the fake GPU; returns the sessions as they come."""
    sessions: list[fake_onnxruntime.FakeSession] = []

    def session(onnx: bytes, options: Any, providers: list[Any], **more: Any) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return fake_onnxruntime.REAL(onnx, options, providers, **more)
        ((name, settings),) = providers
        assert name == fake_onnxruntime.CUDA
        sessions.append(fake_onnxruntime.FakeSession(gpu, onnx, settings))
        return sessions[-1]

    names = [fake_onnxruntime.CUDA, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return sessions
