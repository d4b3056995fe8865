"""Parts that measure the GPU itself: memory, streams, CUDA graphs and edgelung's own kernels."""

from collections.abc import Callable

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.cuda import Device, DeviceError, Stream
from edgelung.engines.resize import DeviceResize
from edgelung.tiles.reader import resize_by_pillow
from edgelung.tools.gpu_check.timing import Figures, percentiles, time_calls


def resize_kernels() -> Figures:
    """Compare the resize kernels with the reader, and measure bytes per second, at three sizes."""
    device = Device()
    rng = np.random.default_rng(0)
    result: Figures = {}
    with device.current():
        stream = device.stream()
        kernels = DeviceResize(device, stream)
        for side, count in ((288, 128), (768, 64), (2000, 8)):
            tiles = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
            out = device.pinned((count, 224, 224, 3), np.uint8)
            memory = device.memory(out.nbytes)
            kernels.enqueue(tiles, 224, memory)
            stream.copy_out(out, memory)
            stream.wait()
            expected = np.stack([resize_by_pillow(t, 224) for t in tiles])
            seconds = kernels.seconds(20)
            moved = count * 3 * (side * side + 2 * side * 224 + 224 * 224)
            result[f"{side} px, {count} tiles"] = {
                "differing_values": int((out != expected).sum()),
                "milliseconds": 1e3 * seconds,
                "GB_per_second": moved / seconds / 1e9,
                "tiles_per_second": count / seconds,
            }
            memory.free()
        kernels.free()
    return result


def device_layer() -> Figures:
    """Measure copies, streams and CUDA graphs as the engines use them, with the resize as work."""
    device = Device()
    result: Figures = {"card": device.name, "capability": device.architecture}
    with device.current():
        copies = _Copies(device)
        resize = _Resize(device)
        for name, copy in (("host to device", copies.copy_in), ("device to host", copies.copy_out)):
            seconds = _median_seconds(_then_wait(copy, copies.stream))
            result[f"{name}, GB per second"] = copies.host.nbytes / seconds / 1e9
        result["bytes that came back changed"] = int((copies.back != copies.host).sum())

        graph = resize.stream.capture(resize.run)
        for name, work in (("launches", resize.run), ("one graph", graph.launch)):
            resize.pixels[:] = 0
            taken = time_calls(_then_wait(work, resize.stream), 200)
            result[f"resize of 16 tiles, {name}, ms"] = percentiles(taken)
        wrong = int((resize.pixels != resize.expected).sum())
        result["values that the graph's replay gets wrong"] = wrong

        def copy_beside_resizes() -> None:
            copies.copy_in()
            for _ in range(20):
                graph.launch()
            copies.stream.wait()
            resize.stream.wait()

        alone = _median_seconds(_then_wait(copies.copy_in, copies.stream))
        result["copy of 256 MiB alone, ms"] = 1e3 * alone
        result["copy of 256 MiB beside 20 resizes, ms"] = 1e3 * _median_seconds(copy_beside_resizes)
        graph.free()
        resize.free()
        copies.free()
        try:
            device.memory(2 * device.memory_bytes).free()
        except DeviceError as error:
            result["asked for twice its memory"] = one_line(error, 120)
    return result


class _Copies:
    """256 MiB of pinned random bytes, copied to the device and back on a stream of their own."""

    def __init__(self, device: Device) -> None:
        self.stream = device.stream()
        self.host = device.pinned((256 * 2**20,), np.uint8)
        self.host[:] = np.random.default_rng(0).integers(0, 256, len(self.host), np.uint8)
        self.back = device.pinned(self.host.shape, np.uint8)
        self._memory = device.memory(self.host.nbytes)

    def copy_in(self) -> None:
        """Enqueue the copy to the device."""
        self.stream.copy_in(self._memory, self.host)

    def copy_out(self) -> None:
        """Enqueue the copy back."""
        self.stream.copy_out(self.back, self._memory)

    def free(self) -> None:
        """Free the device memory."""
        self._memory.free()


class _Resize:
    """16 tiles of 768 px, resized to 224 px and copied back on a stream of their own."""

    def __init__(self, device: Device) -> None:
        rng = np.random.default_rng(1)
        tiles = [rng.integers(0, 256, (768, 768, 3), np.uint8) for _ in range(16)]
        self.expected = np.stack([resize_by_pillow(tile, 224) for tile in tiles])
        self.stream = device.stream()
        self.pixels = device.pinned(self.expected.shape, np.uint8)
        self._memory = device.memory(self.pixels.nbytes)
        self._kernels = DeviceResize(device, self.stream)
        self._kernels.enqueue(tiles, 224, self._memory)
        self.stream.wait()

    def run(self) -> None:
        """Enqueue the resize and the copy of its pixels."""
        self._kernels._launch()
        self.stream.copy_out(self.pixels, self._memory)

    def free(self) -> None:
        """Free the kernels' and the device's memory."""
        self._kernels.free()
        self._memory.free()


def _then_wait(work: Callable[[], None], stream: Stream) -> Callable[[], None]:
    def call() -> None:
        work()
        stream.wait()

    return call


def _median_seconds(work: Callable[[], None]) -> float:
    return float(np.median(time_calls(work, 10)))
