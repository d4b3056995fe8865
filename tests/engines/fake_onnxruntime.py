"""A fake CUDA provider of ONNX Runtime on the fake GPU: the graph runs on the CPU, on the stream.

As ONNX Runtime does, it records a CUDA graph at the first run with a number, and replays it at the
next: from then on the shapes and addresses of that first run count, whatever is bound.
"""

from types import SimpleNamespace
from typing import Any

import fake_gpu
import numpy as np
import onnxruntime

CUDA = "CUDAExecutionProvider"
REAL = onnxruntime.InferenceSession  # before a test replaces it


class FakeSession:
    """What `onnxruntime.InferenceSession` offers with the CUDA provider."""

    def __init__(self, gpu: fake_gpu.FakeGpu, onnx: bytes, options: dict[str, str]) -> None:
        self._gpu, self.options = gpu, options
        plain = onnxruntime.SessionOptions()
        plain.intra_op_num_threads = 1
        plain.log_severity_level = 4
        plain.add_session_config_entry("session.x64quantprecision", "1")  # as a GPU computes
        self._cpu = REAL(onnx, plain, providers=["CPUExecutionProvider"])
        self.stream = int(options["user_compute_stream"])
        self.recorded: dict[int, Any] = {}
        self.runs: list[tuple[str, int]] = []  # what was done, rows
        self.broken = ""

    def get_inputs(self) -> list[Any]:
        return list(self._cpu.get_inputs())

    def get_outputs(self) -> list[Any]:
        return list(self._cpu.get_outputs())

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def io_binding(self) -> Any:
        bound: dict[str, tuple[Any, ...]] = {}

        def bind(name: str, kind: str, device: int, dtype: Any, shape: Any, address: int) -> None:
            assert (kind, device) == ("cuda", 0)
            bound[name] = (np.dtype(dtype), shape, address)

        return SimpleNamespace(bound=bound, bind_input=bind, bind_output=bind)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        entry = options.get_run_config_entry
        assert entry("disable_synchronize_execution_providers") == "1"
        number = int(entry("gpu_graph_id"))
        assert number == -1 or self.options.get("enable_cuda_graph") == "1"
        bound, what = dict(binding.bound), "run"
        if number >= 0:
            if self.broken == "record":
                raise RuntimeError("operation not permitted when stream is capturing")
            what = "replay" if number in self.recorded else "record"
            bound = self.recorded.setdefault(number, bound)
        first = self._cpu.get_inputs()[0].name
        self.runs.append((what, bound[first][1][0]))

        def work() -> None:
            dtype, shape, address = bound[first]
            count = int(np.prod(shape)) * dtype.itemsize
            rows = self._gpu.at(address, count).view(dtype).reshape(shape)
            names = [output.name for output in self._cpu.get_outputs()]
            for name, found in zip(names, self._cpu.run(names, {first: rows}), strict=True):
                if self.broken == "replay" and number >= 0:
                    found = np.roll(found, 1, axis=0)
                assert (found.dtype, found.shape) == bound[name][:2]
                self._gpu.at(bound[name][2], found.nbytes)[:] = found.reshape(-1).view(np.uint8)

        self._gpu.enqueue(self.stream, "onnxruntime", work)
