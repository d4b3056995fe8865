"""The resize on the GPU: decoded tiles of different sizes → the engine's input, in device memory.

It launches the kernels of `edgelung.kernels`, which give the pixels of the CPU reader.
"""

import time
from collections.abc import Sequence

import numpy as np

from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import Device, Kernels, Memory, Stream
from edgelung.kernels import build
from edgelung.kernels.resize import KERNELS, Launch, Pixels, Plan


class DeviceResize:
    """The resize kernels on one stream. Only one thread at a time may use it.

    Raises:
        EngineUnavailableError: if this installation has no compiled kernels.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._kernels = load_kernels(device, KERNELS)
        self._staging: Pixels | None = None  # pinned host memory, copied to `_upload`
        self._upload: Memory | None = None
        self._scratch: Memory | None = None
        self._capacity = (0, 0)  # bytes of `_upload` and `_scratch`
        self._launches: list[Launch] = []

    def enqueue(self, tiles: Sequence[Pixels], size: int, out: Memory) -> None:
        """Enqueue the resize of `tiles` on the stream.

        The stream must have finished the previous batch, because its staging memory is reused.

        Args:
            tiles: N tiles, uint8 RGB (H, W, 3).
            size: side of the results, in pixels.
            out: device memory for uint8 (N, size, size, 3).
        """
        plan = Plan([(tile.shape[0], tile.shape[1]) for tile in tiles], size)
        self._reserve(plan)
        assert self._staging is not None
        assert self._upload is not None
        assert self._scratch is not None
        upload = int(self._upload)
        plan.fill(self._staging, tiles, upload, int(self._scratch))
        self._stream.copy_in(self._upload, self._staging[: plan.upload_bytes])
        self._launches = plan.launches(upload, int(out))
        self._launch()

    def seconds(self, repeats: int) -> float:
        """Measure the seconds of the last batch's kernels, without its copy (for benchmarks)."""
        self._stream.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            self._launch()
        self._stream.wait()
        return (time.perf_counter() - start) / repeats

    def _launch(self) -> None:
        for kernel, grid, block, arguments in self._launches:
            self._kernels.launch(kernel, grid, block, arguments, self._stream)

    def free(self) -> None:
        """Free the device memory."""
        for memory in (self._upload, self._scratch):
            if memory is not None:
                memory.free()
        self._upload = self._scratch = self._staging = None
        self._capacity = (0, 0)

    def _reserve(self, plan: Plan) -> None:
        """Allocate memory for the plan, with a quarter to spare, if the present is too small."""
        needed = (plan.upload_bytes, plan.scratch_bytes)
        if all(held >= need for held, need in zip(self._capacity, needed, strict=True)):
            return
        upload_bytes, scratch_bytes = (
            max(held, need * 5 // 4) for held, need in zip(self._capacity, needed, strict=True)
        )
        self.free()
        self._staging = self._device.pinned((upload_bytes,), np.uint8)
        self._upload = self._device.memory(upload_bytes)
        self._scratch = self._device.memory(scratch_bytes)
        self._capacity = (upload_bytes, scratch_bytes)


def load_kernels(device: Device, names: Sequence[str]) -> Kernels:
    """Load some of edgelung's compiled kernels.

    Raises:
        EngineUnavailableError: if this installation has no compiled kernels.
    """
    if build.read_record() is None:
        raise EngineUnavailableError(
            "the CUDA kernels are not built, or were built from other sources; "
            "run: python -m edgelung.kernels.build (needs nvcc)"
        )
    return device.kernels((build.HERE / build.BINARY).read_bytes(), names)
