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
    rng = np.random.default_rng(0)
    result: Figures = {"card": device.name, "capability": device.architecture}
    with device.current():
        streams = [device.stream(), device.stream()]
        host = device.pinned((256 * 2**20,), np.uint8)
        host[:] = rng.integers(0, 256, len(host), np.uint8)
        back = device.pinned(host.shape, np.uint8)
        memory = device.memory(host.nbytes)

        def finished(stream: Stream, work: Callable[[], None]) -> Callable[[], None]:
            def call() -> None:
                work()
                stream.wait()

            return call

        def copy_in() -> None:
            streams[0].copy_in(memory, host)

        def copy_out() -> None:
            streams[0].copy_out(back, memory)

        for name, copy in (("host to device", copy_in), ("device to host", copy_out)):
            seconds = float(np.median(time_calls(finished(streams[0], copy), 10)))
            result[f"{name}, GB per second"] = host.nbytes / seconds / 1e9
        result["bytes that came back changed"] = int((back != host).sum())

        tiles = [rng.integers(0, 256, (768, 768, 3), np.uint8) for _ in range(16)]
        expected = np.stack([resize_by_pillow(tile, 224) for tile in tiles])
        kernels = DeviceResize(device, streams[1])
        found = device.pinned(expected.shape, np.uint8)
        resized = device.memory(found.nbytes)
        kernels.enqueue(tiles, 224, resized)
        streams[1].wait()

        def resize() -> None:
            kernels._launch()
            streams[1].copy_out(found, resized)

        graph = streams[1].capture(resize)
        for name, work in (("launches", resize), ("one graph", graph.launch)):
            found[:] = 0
            taken = time_calls(finished(streams[1], work), 200)
            result[f"resize of 16 tiles, {name}, ms"] = percentiles(taken)
        result["values that the graph's replay gets wrong"] = int((found != expected).sum())

        def beside() -> None:
            copy_in()
            for _ in range(20):
                graph.launch()
            for stream in streams:
                stream.wait()

        alone = float(np.median(time_calls(finished(streams[0], copy_in), 10)))
        both = float(np.median(time_calls(beside, 10)))
        result["copy of 256 MiB alone, ms"] = 1e3 * alone
        result["copy of 256 MiB beside 20 resizes, ms"] = 1e3 * both
        graph.free()
        kernels.free()
        for block in (memory, resized):
            block.free()
        try:
            device.memory(2 * device.memory_bytes).free()
        except DeviceError as error:
            result["asked for twice its memory"] = one_line(error, 120)
    return result
