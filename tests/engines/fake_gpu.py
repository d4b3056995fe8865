"""A fake GPU, driver and TensorRT for tests without a GPU. It has only what edgelung uses.

Device memory is host memory, so that copies and the host twin of the kernels move real pixels. As
on a GPU, the operations on a stream run when someone synchronizes: a result that is read too early
is wrong, and so is a buffer that is filled again too early. The classes of TensorRT refuse every
name and number of arguments that the recorded API of the real binding does not have.
"""

import ctypes
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgelung.kernels.resize import c_value

RECORD = Path(__file__).with_name("tensorrt_api.json")


class DriverError(Exception):
    """The exception that pycuda would raise."""


class FakeGpu:
    """Device memory, streams and contexts, with a log of the operations on each stream."""

    def __init__(self, memory_bytes: int = 1 << 30) -> None:
        self.name, self.capability, self.count = "Fake RTX", (8, 9), 1
        self.memory_bytes, self.used = memory_bytes, 0
        self.live: dict[int, np.ndarray] = {}  # address → memory that was not freed
        self.pinned: list[np.ndarray] = []
        self.log: list[tuple[int, str]] = []  # stream, operation
        self.captured: list[int] = []
        self.graphs_alive = 0
        self.failing: dict[str, Exception] = {}
        self.twin: ctypes.CDLL | None = None
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.streams: dict[int, FakeStream] = {}
        self._here = threading.local()
        self._lock = threading.Lock()

    def pycuda(self) -> SimpleNamespace:
        """Return the replacement of `pycuda.driver`."""
        gpu = self

        class Device:
            def __init__(self, index: int) -> None:
                assert index < gpu.count

            count = staticmethod(lambda: gpu.count)

            def name(self) -> str:
                return gpu.name

            def compute_capability(self) -> tuple[int, int]:
                return gpu.capability

            def total_memory(self) -> int:
                return gpu.memory_bytes

            def retain_primary_context(self) -> "Context":
                return Context()

        class Context:
            def push(self) -> None:
                gpu._here.depth = gpu.depth + 1

            @staticmethod
            def pop() -> None:
                assert gpu.depth > 0
                gpu._here.depth -= 1

        return SimpleNamespace(
            init=lambda: gpu.meet("init"),
            get_driver_version=lambda: 13000,
            Device=Device,
            Context=Context,
            mem_alloc=lambda n: FakeAllocation(gpu, n),
            pagelocked_empty=self._pagelocked,
            Stream=lambda flags=0: FakeStream(gpu),
            memcpy_htod_async=self._copy_in,
            memcpy_dtoh_async=self._copy_out,
            module_from_buffer=self._module,
        )

    def bindings(self) -> SimpleNamespace:
        """Return the replacement of `cuda.bindings.driver`."""
        ok = (0,)

        def begin(stream: int, mode: str) -> tuple[Any, ...]:
            self.meet("capture")
            self.capturing[stream] = []
            return ok

        def end(stream: int) -> tuple[Any, ...]:
            return (0, self.capturing.pop(stream))

        def instantiate(graph: list[Callable[[], None]], flags: int) -> tuple[Any, ...]:
            self.graphs_alive += 1
            return (0, graph)

        def launch(graph: list[Callable[[], None]], stream: int) -> tuple[Any, ...]:
            self.meet("graph")
            self.enqueue(stream, "graph", lambda: [work() for work in graph])
            return ok

        def destroy(graph: object) -> tuple[Any, ...]:
            self.graphs_alive -= 1
            return ok

        return SimpleNamespace(
            CUstream=int,
            CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="local"),
            cuStreamBeginCapture=begin,
            cuStreamEndCapture=end,
            cuGraphInstantiate=instantiate,
            cuGraphLaunch=launch,
            cuGraphExecDestroy=destroy,
            cuGraphDestroy=lambda graph: ok,
        )

    @property
    def depth(self) -> int:
        return getattr(self._here, "depth", 0)

    def meet(self, operation: str) -> None:
        """Raise the error that a test set for this operation, or if no context is current."""
        if operation in self.failing:
            raise self.failing[operation]
        assert operation == "init" or self.depth > 0, f"{operation} without a current context"

    def enqueue(self, stream: int, operation: str, work: Callable[[], Any]) -> None:
        with self._lock:
            if stream in self.capturing:
                self.capturing[stream].append(work)
                self.captured.append(stream)
                return
            self.log.append((stream, operation))
            self.streams[stream].waiting.append(work)

    def at(self, address: int, count: int) -> np.ndarray:
        """Return `count` bytes of device memory; freed or other addresses are an error."""
        for start, block in self.live.items():
            if start <= address and address + count <= start + len(block):
                return block[address - start : address - start + count]
        raise AssertionError(f"{count} bytes at {address:#x} are not device memory")

    def _pagelocked(self, shape: Any, dtype: Any) -> np.ndarray:
        self.meet("pagelocked_empty")
        self.pinned.append(np.zeros(shape, dtype))
        return self.pinned[-1]

    def _check_pinned(self, host: np.ndarray) -> None:
        assert any(np.shares_memory(host, p) for p in self.pinned), "the host memory is not pinned"
        assert host.flags.c_contiguous

    def _copy_in(self, address: int, host: np.ndarray, stream: "FakeStream") -> None:
        self.meet("copy in")
        self._check_pinned(host)
        target = self.at(address, host.nbytes)
        source = host.view(np.uint8).reshape(-1)
        self.enqueue(stream.handle, "copy in", lambda: np.copyto(target, source))

    def _copy_out(self, host: np.ndarray, address: int, stream: "FakeStream") -> None:
        self.meet("copy out")
        self._check_pinned(host)
        source = self.at(address, host.nbytes)
        target = host.view(np.uint8).reshape(-1)
        self.enqueue(stream.handle, "copy out", lambda: np.copyto(target, source))

    def _module(self, binary: bytes) -> SimpleNamespace:
        self.meet("module")
        assert binary

        def get_function(name: str) -> Callable[..., None]:
            def call(*arguments: Any, grid: Any, block: Any, stream: FakeStream) -> None:
                self.meet("launch")
                words = [c_value(argument) for argument in arguments]
                shape = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
                function = getattr(self.twin, f"host_{name}")
                self.enqueue(stream.handle, name, lambda: function(*shape, *words))

            return call

        return SimpleNamespace(get_function=get_function)


class FakeAllocation:
    def __init__(self, gpu: FakeGpu, count: int) -> None:
        gpu.meet("mem_alloc")
        if gpu.used + count > gpu.memory_bytes:
            raise DriverError("cuMemAlloc failed: out of memory")
        self._gpu = gpu
        raw = np.full(count + 256, 0xAB, np.uint8)  # new memory is not zero
        start = -raw.ctypes.data % 256
        self._block = raw[start : start + count]
        gpu.used += count
        gpu.live[int(self)] = self._block

    def __int__(self) -> int:
        return int(self._block.ctypes.data)

    def free(self) -> None:
        self._gpu.meet("free")
        del self._gpu.live[int(self)]
        self._gpu.used -= len(self._block)


class FakeStream:
    _handles = itertools.count(1)

    def __init__(self, gpu: FakeGpu) -> None:
        gpu.meet("stream")
        self._gpu = gpu
        self.handle = next(self._handles)
        self.waiting: list[Callable[[], Any]] = []
        gpu.streams[self.handle] = self

    def synchronize(self) -> None:
        self._gpu.meet("synchronize")
        self._gpu.log.append((self.handle, "wait"))
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()


class Strict:
    """An object that has the members of a recorded class and no others."""

    def __init__(self, api: dict[str, Any], kind: str, real: Any) -> None:
        object.__setattr__(self, "_strict", (api[kind], kind, real))

    def __getattr__(self, name: str) -> Any:
        members, kind, real = object.__getattribute__(self, "_strict")
        if name not in members:
            raise AttributeError(f"{kind} has no {name} in this TensorRT")
        value = getattr(real, name)
        if not callable(value) or isinstance(value, type):
            return value

        def call(*arguments: Any) -> Any:
            fits = [
                sum(not p.endswith("?") for p in overload) - 1
                <= len(arguments)
                <= len(overload) - 1
                for overload in members[name]
                if overload[:1] == ["self"]
            ]
            assert any(fits), f"{kind}.{name} does not take {len(arguments)} arguments"
            return value(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        members, kind, real = object.__getattribute__(self, "_strict")
        if name not in members:
            raise AttributeError(f"{kind} has no {name} in this TensorRT")
        setattr(real, name, value)


class FakeTensorRt:
    """The module `tensorrt` or `tensorrt_rtx`. Its engine is the ONNX file, run on the CPU."""

    def __init__(self, gpu: FakeGpu, wheel: str) -> None:
        record = json.loads(RECORD.read_text())
        self._api, self._gpu = record[wheel], gpu
        self.__version__ = wheel.split("==")[1]
        self.deserialised = 0
        self.builds: list[dict[str, Any]] = []
        self.refuse: dict[str, bool] = {}
        self.shapes: list[int] = []
        for name in ("NetworkDefinitionCreationFlag", "BuilderFlag", "ComputeCapability"):
            if name in self._api:
                words = [w for w in self._api[name] if w.isupper()]
                members = {w: SimpleNamespace(name=w) for w in words}
                setattr(self, name, SimpleNamespace(__members__=members, **members))
        self.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
        if "DynamicShapesKernelSpecializationStrategy" in self._api:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

            def __init__(self) -> None:
                pass

        self.ILogger = ILogger

    def _strict(self, kind: str, **members: Any) -> Strict:
        return Strict(self._api, kind, SimpleNamespace(**members))

    def Builder(self, logger: Any) -> Strict:
        assert not self._api["Builder"]["__init__"][0][2:]
        record: dict[str, Any] = {"flags": [], "targets": [], "logger": logger}
        self.builds.append(record)

        def create_network(flags: int) -> Strict:
            assert flags == 1 << 1, "not strongly typed"
            tensor = self._strict("ITensor", name="tiles", shape=(-1, 64, 64, 3))
            return self._strict("INetworkDefinition", num_layers=0, get_input=lambda i: tensor)

        def build(network: Strict, config: Strict) -> bytes | None:
            if self.refuse.get("build"):
                logger.log(1, "Error Code 9: no implementation for node blocks.0")
                return None
            return b"plan:" + record["onnx"]

        def create_config() -> Strict:
            return self._strict(
                "IBuilderConfig",
                clear_flag=lambda flag: record["flags"].append(f"no {flag.name}"),
                add_optimization_profile=lambda p: record.update(profile=p),
                create_timing_cache=lambda blob: (
                    record.update(timing=bytes(blob))
                    or self._strict("ITimingCache", serialize=lambda: b"timings")
                ),
                set_timing_cache=lambda cache, ignore: True,
                num_compute_capabilities=0,
                set_compute_capability=lambda c, i: record["targets"].append(c.name) or True,
            )

        def create_profile() -> Strict:
            return self._strict(
                "IOptimizationProfile",
                set_shape=lambda name, *bounds: record.update(bounds=(name, bounds)),
            )

        return self._strict(
            "Builder",
            create_network=create_network,
            create_builder_config=create_config,
            create_optimization_profile=create_profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Strict, logger: Any) -> Strict:
        def parse(data: bytes) -> bool:
            self.builds[-1]["onnx"] = data
            return not self.refuse.get("parse")

        error = self._strict(
            "ParserError",
            node=lambda: 7,
            node_name=lambda: "blocks.0.attn.qkv",
            node_operator=lambda: "MatMul",
            desc=lambda: "types differ",
        )
        return self._strict("OnnxParser", parse=parse, num_errors=2, get_error=lambda i: error)

    def Runtime(self, logger: Any) -> Strict:
        assert self._gpu.depth > 0, "deserialising without a device"

        def deserialise(plan: bytes) -> Strict | None:
            self.deserialised += 1
            if self.refuse.get("load") or not plan.startswith(b"plan:"):
                logger.log(1, "Error Code 1: serialization assertion")
                return None
            return self._engine(plan[5:])

        return self._strict("Runtime", deserialize_cuda_engine=deserialise)

    def _engine(self, onnx: bytes) -> Strict:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", "1")  # as a GPU computes
        session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        tensors = [*session.get_inputs(), *session.get_outputs()]
        shapes = {tensor.name: (-1, *tensor.shape[1:]) for tensor in tensors}
        cache = None
        if "IRuntimeCache" in self._api:
            cache = self._strict(
                "IRuntimeCache", deserialize=lambda blob: True, serialize=lambda: b"compiled"
            )

        def create_context(*config: Any) -> Strict | None:
            assert bool(config) == (cache is not None)
            return None if self.refuse.get("context") else self._context(session)

        return self._strict(
            "ICudaEngine",
            num_io_tensors=len(shapes),
            get_tensor_name=lambda index: list(shapes)[index],
            get_tensor_shape=lambda name: shapes[name],
            create_execution_context=create_context,
            create_runtime_config=lambda: self._strict(
                "IRuntimeConfig",
                create_runtime_cache=lambda: cache,
                set_runtime_cache=lambda c: True,
                dynamic_shapes_kernel_specialization_strategy="lazy",
            ),
        )

    def _context(self, session: Any) -> Strict:
        addresses: dict[str, int] = {}
        state: dict[str, Any] = {"shape": None, "recorded": False}
        gpu, (first,) = self._gpu, session.get_inputs()
        dtype = np.dtype(np.uint8 if first.type == "tensor(uint8)" else np.float32)

        def set_shape(name: str, shape: tuple[int, ...]) -> bool:
            assert name == first.name
            assert not state["recorded"], "a context was changed after its graph was recorded"
            state["shape"] = shape
            self.shapes.append(shape[0])
            return not self.refuse.get("shape")

        def execute(stream: int) -> bool:
            gpu.meet("execute")
            shape = state["shape"]
            state["recorded"] = stream in gpu.capturing

            def work() -> None:
                count = int(np.prod(shape)) * dtype.itemsize
                rows = gpu.at(addresses[first.name], count).view(dtype).reshape(shape)
                names = [output.name for output in session.get_outputs()]
                for name, found in zip(names, session.run(names, {first.name: rows}), strict=True):
                    gpu.at(addresses[name], found.nbytes)[:] = found.view(np.uint8).reshape(-1)

            gpu.enqueue(stream, "execute", work)
            return not self.refuse.get("execute")

        return self._strict(
            "IExecutionContext",
            set_tensor_address=lambda name, address: addresses.update({name: address}) or True,
            set_input_shape=set_shape,
            execute_async_v3=execute,
        )
