"""The one resize on the GPU: tiles of differing sizes → the engine's input, in device memory."""

import time
from collections.abc import Sequence

import numpy as np

from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import Device, Memory, Stream
from edgelung.kernels import build
from edgelung.kernels.resize import KERNELS, Launch, Pixels, Plan


class DeviceResize:
    """Resize kernels on one stream. Not for several threads at once.

    Raises EngineUnavailableError where this installation holds no kernels.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        if build.read_record() is None:
            raise EngineUnavailableError(
                "the CUDA kernels are not built or not of these sources; "
                "run: python -m edgelung.kernels.build (needs nvcc)"
            )
        self._device, self._stream = device, stream
        self._kernels = device.kernels((build.HERE / build.BINARY).read_bytes(), KERNELS)
        self._staged: Pixels | None = None
        self._upload: Memory | None = None
        self._scratch: Memory | None = None
        self._room = (0, 0)
        self._launches: list[Launch] = []

    def enqueue(self, tiles: Sequence[Pixels], size: int, out: Memory) -> None:
        """Put the resize of uint8 RGB tiles (H, W, 3) to `out` (N, size, size, 3) on the stream.

        The stream must have finished with an earlier batch: its staging memory is used again.
        """
        plan = Plan([(tile.shape[0], tile.shape[1]) for tile in tiles], size)
        self._make_room(plan)
        assert self._staged is not None
        assert self._upload is not None
        assert self._scratch is not None
        upload = int(self._upload)
        plan.fill(self._staged, tiles, upload, int(self._scratch))
        self._stream.copy_in(self._upload, self._staged[: plan.upload_bytes])
        self._launches = plan.launches(upload, int(out))
        self._launch()

    def seconds(self, repeats: int) -> float:
        """Seconds that the kernels of the last batch take, without its copy (for benchmarks)."""
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
        self._upload = self._scratch = self._staged = None
        self._room = (0, 0)

    def _make_room(self, plan: Plan) -> None:
        needed = (plan.upload_bytes, plan.scratch_bytes)
        if all(room >= need for room, need in zip(self._room, needed, strict=True)):
            return
        grown = [max(room, need * 5 // 4) for room, need in zip(self._room, needed, strict=True)]
        self.free()
        self._staged = self._device.pinned((grown[0],), np.uint8)
        self._upload = self._device.memory(grown[0])
        self._scratch = self._device.memory(grown[1])
        self._room = (grown[0], grown[1])
