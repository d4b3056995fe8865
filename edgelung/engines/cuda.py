"""The CUDA device: memory, streams and kernels through pycuda, CUDA graphs through cuda-bindings.

This is the only module that calls the driver. All objects belong to the device's primary context,
which TensorRT, ONNX Runtime and PyTorch share. Use them inside `with device.current():`, from any
thread. Every error of the driver becomes a `DeviceError` that names the operation.
"""

import ctypes.util
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgelung.core.errors import EdgelungError, one_line
from edgelung.engines.base import EngineUnavailableError

PYCUDA = "pycuda.driver"
GRAPHS = "cuda.bindings.driver"
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for work on the default stream

Scalar = TypeVar("Scalar", bound=np.generic)
HostArray = npt.NDArray[np.generic]
Handle = Any  # pycuda and cuda-bindings have no types: an object that only they look into


class DeviceError(EdgelungError):
    """The GPU or its driver failed at run time."""


def gpu_present() -> bool:
    """Return True if the system shows an NVIDIA GPU. Loads no library and starts nothing."""
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    # On Linux, in a container, and on Linux inside Windows.
    paths = ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")
    return any(Path(path).exists() for path in paths)


class Device:
    """One GPU.

    Attributes:
        name: as the driver reports it.
        capability: compute capability, such as (8, 9).
        memory_bytes: total device memory.
        cuda: the newest CUDA version that the driver supports, such as '13.0'.
        driver: the display driver's version; the CUDA version if the system does not tell it.

    Raises:
        EngineUnavailableError: if there is no GPU, no driver or no pycuda.
    """

    def __init__(self, index: int = 0) -> None:
        self._driver = _import_pycuda()
        try:
            self._driver.init()
            count = self._driver.Device.count()
            if count <= index:
                raise EngineUnavailableError(f"no CUDA GPU {index} ({count} visible)")
            device = self._driver.Device(index)
            self._context = device.retain_primary_context()
            self.name = str(device.name())
            self.capability: tuple[int, int] = tuple(device.compute_capability())
            self.memory_bytes = int(device.total_memory())
            version = int(self._driver.get_driver_version())
        except EngineUnavailableError:
            raise
        except Exception as error:  # pycuda's own types: no device, no driver, a driver too old
            raise EngineUnavailableError(f"the GPU cannot be used: {one_line(error)}") from error
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"
        self.driver = driver_version() or self.cuda

    @property
    def architecture(self) -> str:
        """The architecture's name, such as 'sm_89'."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread while the block runs."""
        with _checked("making the GPU current"):
            self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def memory(self, count: int) -> "Memory":
        """Allocate `count` bytes of device memory."""
        try:
            return Memory(self._driver.mem_alloc(max(1, count)))
        except Exception as error:
            raise DeviceError(
                f"the GPU has no {count / 2**20:.0f} MiB free ({one_line(error)}); "
                "close other programs that use it"
            ) from error

    def pinned(self, shape: Sequence[int], dtype: type[Scalar]) -> npt.NDArray[Scalar]:
        """Allocate page-locked host memory, which asynchronous copies need."""
        with _checked("allocating pinned memory"):
            array: npt.NDArray[Scalar] = self._driver.pagelocked_empty(tuple(shape), dtype)
            return array

    def stream(self) -> "Stream":
        """Create a stream."""
        with _checked("creating a stream"):
            return Stream(self._driver, self._driver.Stream(NON_BLOCKING))

    def kernels(self, binary: bytes, names: Sequence[str]) -> "Kernels":
        """Load the kernels `names` from a compiled binary."""
        with _checked("loading the kernels"):
            module = self._driver.module_from_buffer(binary)
            return Kernels(module, {name: module.get_function(name) for name in names})


class Memory:
    """A block of device memory; `int(memory)` is its address."""

    def __init__(self, allocation: Handle) -> None:
        self._allocation = allocation

    def __int__(self) -> int:
        return int(self._allocation)

    def free(self) -> None:
        """Free the block now, without waiting for Python's garbage collection."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            with _checked("freeing memory"):
                allocation.free()


class LoadedKernel(Protocol):
    """A kernel as pycuda loads it."""

    def __call__(
        self, *arguments: object, grid: Sequence[int], block: Sequence[int], stream: Handle
    ) -> None: ...


class Kernels:
    """The kernels of one loaded module, by name."""

    def __init__(self, module: Handle, functions: dict[str, LoadedKernel]) -> None:
        self._module = module  # the functions are valid only while the module is alive
        self._functions = functions

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[object],
        stream: "Stream",
    ) -> None:
        """Enqueue one kernel launch on the stream."""
        with _checked(f"launching {name}"):
            self._functions[name](*arguments, grid=grid, block=block, stream=stream.stream)


class Stream:
    """A queue of operations that run in order.

    Copies return at once: their host memory must be pinned, and stay unchanged until `wait`.
    """

    def __init__(self, driver: ModuleType, stream: Handle) -> None:
        self._driver = driver
        self.stream = stream
        self.handle = int(stream.handle)

    def copy_in(self, device: Memory, host: HostArray) -> None:
        """Enqueue a copy from host to device."""
        with _checked("copying to the GPU"):
            self._driver.memcpy_htod_async(int(device), host, self.stream)

    def copy_out(self, host: HostArray, device: Memory) -> None:
        """Enqueue a copy from device to host."""
        with _checked("copying from the GPU"):
            self._driver.memcpy_dtoh_async(host, int(device), self.stream)

    def wait(self) -> None:
        """Wait for the stream. Raises the first error of any operation on it."""
        with _checked("running a batch"):
            self.stream.synchronize()

    def capture(self, work: Callable[[], None]) -> "Graph":
        """Record what `work` enqueues on this stream as a CUDA graph, without running it."""
        cuda = _import_graphs()
        stream = cuda.CUstream(self.handle)
        # Thread-local: calls of other threads on their own streams do not disturb the capture.
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(cuda.cuStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            cuda.cuStreamEndCapture(stream)  # leave the stream usable
            raise
        recorded = _call(cuda.cuStreamEndCapture, stream)
        try:
            executable = _call(cuda.cuGraphInstantiate, recorded, 0)
        finally:
            _call(cuda.cuGraphDestroy, recorded)
        return Graph(cuda, executable, stream)


class Graph:
    """A recorded CUDA graph: one call launches all its operations."""

    def __init__(self, cuda: ModuleType, executable: Handle, stream: Handle) -> None:
        self._cuda, self._executable, self._stream = cuda, executable, stream

    def launch(self) -> None:
        """Enqueue the recorded operations on the stream they were recorded from."""
        _call(self._cuda.cuGraphLaunch, self._executable, self._stream)

    def free(self) -> None:
        """Release the driver's resources."""
        if self._executable is not None:
            _call(self._cuda.cuGraphExecDestroy, self._executable)
            self._executable = None


def driver_version() -> str | None:
    """Return the display driver's version, such as '580.65.06'; None if the system hides it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def graphs_enabled() -> bool:
    """Return False if EDGELUNG_CUDA_GRAPHS=0 turns CUDA graphs off, to compare without them."""
    return os.environ.get("EDGELUNG_CUDA_GRAPHS", "1") != "0"


def _import_pycuda() -> ModuleType:
    try:
        return importlib.import_module(PYCUDA)
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            "pycuda is not installed; pip install 'edgelung[gpu]' (builds with the CUDA toolkit)"
        ) from error
    except Exception as error:  # ImportError: its compiled part does not find libcuda
        has_driver = ctypes.util.find_library("cuda") is not None
        reason = "" if has_driver else "no NVIDIA driver: libcuda is missing; "
        raise EngineUnavailableError(f"{reason}pycuda does not load ({one_line(error)})") from error


def _import_graphs() -> ModuleType:
    try:
        return importlib.import_module(GRAPHS)
    except Exception as error:
        raise DeviceError(
            f"CUDA graphs need cuda-bindings ({one_line(error)}); pip install 'edgelung[gpu]'"
        ) from error


def _call(function: Handle, *arguments: object) -> Handle:
    """Call a function of cuda-bindings, which returns its error instead of raising it."""
    name = getattr(function, "__name__", "CUDA")
    try:
        error, *results = function(*arguments)
    except Exception as failure:
        raise DeviceError(f"the GPU failed at {name}: {one_line(failure)}") from failure
    if int(error) != 0:
        raise DeviceError(f"the GPU failed at {name}: {one_line(error)}")
    return results[0] if results else None


@contextmanager
def _checked(operation: str) -> Iterator[None]:
    """Turn the driver's exceptions into a DeviceError that names the operation."""
    try:
        yield
    except EdgelungError:
        raise
    except Exception as error:  # pycuda.driver.Error and its subclasses
        raise DeviceError(f"the GPU failed while {operation}: {one_line(error)}") from error
