"""The CUDA device through pycuda, and what pycuda lacks (graphs) through cuda-bindings.

The one module that touches the driver. Everything it hands out belongs to the device's primary
context, which TensorRT, ONNX Runtime and PyTorch share; use it within `with device.current():`,
from any thread. Whatever the driver refuses becomes a `DeviceError` that says what was being done.
"""

import ctypes.util
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelung.core.errors import EdgelungError, one_line
from edgelung.engines.base import EngineUnavailableError

PYCUDA = "pycuda.driver"
GRAPHS = "cuda.bindings.driver"
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: never waits for what others put on the default stream


class DeviceError(EdgelungError):
    """The GPU or its driver refused something while running."""


def gpu_present() -> bool:
    """Whether the system shows an NVIDIA GPU, whatever is installed for it; starts nothing."""
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    # The second is a container's, the third that of Linux within Windows.
    places = ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/usr/lib/wsl/lib/libcuda.so.1")
    return any(Path(place).exists() for place in places)


class Device:
    """One GPU. Raises EngineUnavailableError where there is none or nothing to reach it with."""

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
        self.cuda = f"{version // 1000}.{version % 1000 // 10}"  # what the driver supports
        self.driver = driver_version() or self.cuda

    @property
    def architecture(self) -> str:
        """'sm_89', say."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current in this thread."""
        with _checked("making the GPU current"):
            self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def memory(self, count: int) -> "Memory":
        """`count` bytes of device memory."""
        try:
            return Memory(self._driver.mem_alloc(max(1, count)))
        except Exception as error:
            raise DeviceError(
                f"the GPU has no {count / 2**20:.0f} MiB free ({one_line(error)}); "
                "close other programs that use it"
            ) from error

    def pinned(self, shape: Sequence[int], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Host memory that the GPU copies from and to without a detour."""
        with _checked("allocating pinned memory"):
            array: npt.NDArray[Any] = self._driver.pagelocked_empty(tuple(shape), dtype)
            return array

    def stream(self) -> "Stream":
        """A new stream."""
        with _checked("making a stream"):
            return Stream(self._driver, self._driver.Stream(NON_BLOCKING))

    def kernels(self, binary: bytes, names: Sequence[str]) -> "Kernels":
        """Load compiled kernels."""
        with _checked("loading the kernels"):
            module = self._driver.module_from_buffer(binary)
            return Kernels(module, {name: module.get_function(name) for name in names})


class Memory:
    """A block of device memory; `int(memory)` is its address."""

    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation

    def __int__(self) -> int:
        return int(self._allocation)

    def free(self) -> None:
        """Give it back now rather than when Python finds the time."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            with _checked("freeing memory"):
                allocation.free()


class Kernels:
    """A loaded module of kernels."""

    def __init__(self, module: Any, functions: dict[str, Any]) -> None:
        self._module = module  # the functions live as long as it does
        self._functions = functions

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[object],
        stream: "Stream",
    ) -> None:
        """Put one launch on the stream."""
        with _checked(f"launching {name}"):
            self._functions[name](*arguments, grid=grid, block=block, stream=stream.stream)


class Stream:
    """Work in order; copies return at once and need pinned host memory that stays in place."""

    def __init__(self, driver: Any, stream: Any) -> None:
        self._driver = driver
        self.stream = stream
        self.handle = int(stream.handle)

    def copy_in(self, device: Memory, host: npt.NDArray[Any]) -> None:
        """Host → device."""
        with _checked("copying to the GPU"):
            self._driver.memcpy_htod_async(int(device), host, self.stream)

    def copy_out(self, host: npt.NDArray[Any], device: Memory) -> None:
        """Device → host."""
        with _checked("copying from the GPU"):
            self._driver.memcpy_dtoh_async(host, int(device), self.stream)

    def wait(self) -> None:
        """Until everything on the stream is done; an error of any of it comes out here."""
        with _checked("running a batch"):
            self.stream.synchronize()

    def capture(self, work: Callable[[], None]) -> "Graph":
        """Record what `work` puts on this stream, without running it."""
        cuda = _import_graphs()
        stream = cuda.CUstream(self.handle)
        # Thread-local: what another thread does meanwhile on its own stream is none of ours.
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
    """Recorded work that one call launches."""

    def __init__(self, cuda: Any, executable: Any, stream: Any) -> None:
        self._cuda, self._executable, self._stream = cuda, executable, stream

    def launch(self) -> None:
        """Put the recorded work on its stream."""
        _call(self._cuda.cuGraphLaunch, self._executable, self._stream)

    def free(self) -> None:
        """Give back what the driver holds for it."""
        if self._executable is not None:
            _call(self._cuda.cuGraphExecDestroy, self._executable)
            self._executable = None


def driver_version() -> str | None:
    """The display driver's version, '580.65.06' say; None where the system does not tell."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((w for w in words if w[:1].isdigit() and "." in w), None)


def _import_pycuda() -> Any:
    try:
        return importlib.import_module(PYCUDA)
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(
            "pycuda is not installed; pip install 'edgelung[gpu]' (builds with the CUDA toolkit)"
        ) from error
    except Exception as error:  # ImportError: its compiled half found no libcuda
        found = "" if ctypes.util.find_library("cuda") else "no NVIDIA driver: libcuda is missing; "
        raise EngineUnavailableError(f"{found}pycuda does not load ({one_line(error)})") from error


def _import_graphs() -> Any:
    try:
        return importlib.import_module(GRAPHS)
    except Exception as error:
        raise DeviceError(
            f"CUDA graphs need cuda-bindings ({one_line(error)}); pip install 'edgelung[gpu]'"
        ) from error


def graphs_wanted() -> bool:
    """Whether CUDA graphs are used; EDGELUNG_CUDA_GRAPHS=0 turns them off (to compare)."""
    return os.environ.get("EDGELUNG_CUDA_GRAPHS", "1") != "0"


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call into cuda-bindings, which returns the error instead of raising it."""
    name = getattr(function, "__name__", "CUDA")
    try:
        error, *results = function(*arguments)
    except Exception as failure:
        raise DeviceError(f"the GPU failed at {name}: {one_line(failure)}") from failure
    if int(error) != 0:
        raise DeviceError(f"the GPU failed at {name}: {one_line(error)}")
    return results[0] if results else None


@contextmanager
def _checked(doing: str) -> Iterator[None]:
    try:
        yield
    except EdgelungError:
        raise
    except Exception as error:  # pycuda.driver.Error and its kin
        raise DeviceError(f"the GPU failed while {doing}: {one_line(error)}") from error
