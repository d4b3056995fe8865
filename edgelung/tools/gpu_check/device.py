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
        probe = _Probe(device)
        result |= probe.copies()
        result |= probe.graph_replay()
        result |= probe.overlap()
        probe.free()
        try:
            device.memory(2 * device.memory_bytes).free()
        except DeviceError as error:
            result["asked for twice its memory"] = one_line(error, 120)
    return result


class _Probe:
    """A copy stream with 256 MiB of pinned memory, and a stream that resizes 16 tiles."""

    def __init__(self, device: Device) -> None:
        rng = np.random.default_rng(0)
        self.copy_stream, self.stream = device.stream(), device.stream()
        self.host = device.pinned((256 * 2**20,), np.uint8)
        self.host[:] = rng.integers(0, 256, len(self.host), np.uint8)
        self.back = device.pinned(self.host.shape, np.uint8)
        self.memory = device.memory(self.host.nbytes)
        tiles = [rng.integers(0, 256, (768, 768, 3), np.uint8) for _ in range(16)]
        self.expected = np.stack([resize_by_pillow(tile, 224) for tile in tiles])
        self.kernels = DeviceResize(device, self.stream)
        self.pixels = device.pinned(self.expected.shape, np.uint8)
        self.resized = device.memory(self.pixels.nbytes)
        self.kernels.enqueue(tiles, 224, self.resized)
        self.stream.wait()
        self.graph = self.stream.capture(self.resize)

    def copy_in(self) -> None:
        """Enqueue host → device."""
        self.copy_stream.copy_in(self.memory, self.host)

    def copy_out(self) -> None:
        """Enqueue device → host."""
        self.copy_stream.copy_out(self.back, self.memory)

    def resize(self) -> None:
        """Enqueue the resize of the tiles and the copy of its result."""
        self.kernels._launch()
        self.stream.copy_out(self.pixels, self.resized)

    def copies(self) -> Figures:
        """Throughput of both directions, and whether the bytes come back unchanged."""
        result: Figures = {}
        for name, copy in (("host to device", self.copy_in), ("device to host", self.copy_out)):
            seconds = float(np.median(time_calls(_finished(self.copy_stream, copy), 10)))
            result[f"{name}, GB per second"] = self.host.nbytes / seconds / 1e9
        result["bytes that came back changed"] = int((self.back != self.host).sum())
        return result

    def graph_replay(self) -> Figures:
        """The resize as single launches and as one CUDA graph."""
        result: Figures = {}
        for name, work in (("launches", self.resize), ("one graph", self.graph.launch)):
            self.pixels[:] = 0
            taken = time_calls(_finished(self.stream, work), 200)
            result[f"resize of 16 tiles, {name}, ms"] = percentiles(taken)
        wrong = int((self.pixels != self.expected).sum())
        result["values that the graph's replay gets wrong"] = wrong
        return result

    def overlap(self) -> Figures:
        """A copy alone, and beside 20 resizes on the other stream."""

        def beside() -> None:
            self.copy_in()
            for _ in range(20):
                self.graph.launch()
            self.copy_stream.wait()
            self.stream.wait()

        alone = float(np.median(time_calls(_finished(self.copy_stream, self.copy_in), 10)))
        both = float(np.median(time_calls(beside, 10)))
        return {
            "copy of 256 MiB alone, ms": 1e3 * alone,
            "copy of 256 MiB beside 20 resizes, ms": 1e3 * both,
        }

    def free(self) -> None:
        """Free graph, kernels and device memory."""
        self.graph.free()
        self.kernels.free()
        self.memory.free()
        self.resized.free()


def _finished(stream: Stream, work: Callable[[], None]) -> Callable[[], None]:
    """`work` and the wait for its stream, as one call to time."""

    def call() -> None:
        work()
        stream.wait()

    return call
