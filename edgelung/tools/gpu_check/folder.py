"""Parts that start from files: a folder from end to end by its stages, and JPEG decoding."""

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.predictions import CSV
from edgelung.core.system import available_cores
from edgelung.core.workers import Workers
from edgelung.engines import choose
from edgelung.engines.base import Tiles, resizes
from edgelung.engines.device_slot import TILES
from edgelung.engines.tensorrt.engine import TensorRtEngine
from edgelung.engines.tensorrt.execute import ExecutionSlot
from edgelung.inference.destination import Destination
from edgelung.inference.pipeline import predict_batches
from edgelung.inference.reading import FileReading
from edgelung.inference.record import LabelRule, record_of
from edgelung.inference.session import infer_folder
from edgelung.inference.source import Source
from edgelung.kernels.resize import Pixels
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import (
    ReaderSpec,
    TileError,
    decode_tile,
    read_pixels,
    read_tile,
    resize,
)
from edgelung.tools.doctor import NVIMGCODEC
from edgelung.tools.gpu_check.engines import in_batches
from edgelung.tools.gpu_check.timing import CannotRunError, Figures, time_calls

DECODE_BOUND = 2  # levels of 255 by which another JPEG decoder may differ to be called the same


def folder_run(bundle: Bundle, folder: Path, out: Path) -> Figures:
    """Predict a folder from end to end, then time its stages one by one, in ms per tile."""
    cores = available_cores()
    destination = Destination.parse(out / "predictions.csv")
    start = time.perf_counter()
    summary = infer_folder(Source((folder,)), bundle, destination, resume=False)
    total = time.perf_counter() - start
    spec = bundle.reader
    tiles, paths = read_some(folder, 256, spec.size)
    pixels = [read_pixels(path, spec) for path in paths]

    def per_tile(work: Callable[[], object]) -> float:
        return 1e3 * float(np.median(time_calls(work, 5))) / len(paths)

    with Workers(cores) as pool:
        stages = {
            "decode": per_tile(lambda: list(pool.map(lambda p: read_pixels(p, spec), paths))),
            "decode and resize on the CPU": per_tile(
                lambda: list(pool.map(lambda p: read_tile(p, spec), paths))
            ),
        }
    chosen = choose.open_engine(bundle)
    engine = chosen.engine
    stages["copy and model"] = per_tile(lambda: in_batches(engine, tiles))
    where = "on the CPU"
    if resizes(engine):
        where = "on the GPU"
        stages["copy, resize on the GPU and model"] = per_tile(lambda: engine.infer_pixels(pixels))
    if isinstance(engine, TensorRtEngine):
        stages |= in_one_slot(engine, tiles[:32], pixels[:32])
    files = [file for file in find_files(folder) if file.is_image][:256]
    batches = predict_batches(files, FileReading(spec), engine, batch_size=32, threads=cores)
    rule = LabelRule(trained_sizes=bundle.trained_sizes)
    records = [record_of(row, rule) for batch in batches for row in batch]
    engine.close()

    def write() -> None:
        with (out / "again.csv").open("wb") as file:
            writer = CSV.writer(file, bundle.classes)
            writer.write(record.prediction(bundle.classes) for record in records)
            writer.close()

    stages["write"] = 1e3 * float(np.median(time_calls(write, 5))) / len(records)
    return {
        "engine": f"{chosen.engine.name} {chosen.variant.precision}",
        "choice": chosen.reason,
        "resize_in_the_folder_run": where,
        "files": summary.files,
        "seconds_with_loading": total,
        "tiles_per_second": summary.tiles_per_second,
        "decoders": cores,
        "ms_per_tile": stages,
    }


def in_one_slot(engine: TensorRtEngine, tiles: Tiles, pixels: Sequence[Pixels]) -> Figures:
    """Time the copy, the resize and the model of one batch, each alone, in ms per tile."""
    count = len(tiles)
    with engine.slot() as slot:
        assert isinstance(slot, ExecutionSlot)

        def timed(work: Callable[[], object]) -> float:
            def whole() -> None:
                work()
                slot.stream.wait()

            return 1e3 * float(np.median(time_calls(whole, 20))) / count

        slot.copy_in(tiles)
        buffer = slot._buffers[TILES]
        stages = {
            "copy alone": timed(lambda: slot.stream.copy_in(buffer.memory, buffer.host[:count])),
            "model alone": timed(lambda: slot.compute_in(None, count)),
        }
        if engine.resizes:
            slot.resize(pixels)
            assert slot.resizer is not None
            stages["resize alone"] = 1e3 * slot.resizer.seconds(20) / count
    return stages


def jpeg_on_gpu(paths: Sequence[Path]) -> Figures:
    """Compare nvimgcodec's decoding, resized as the reader does, with the reader's pixels."""
    try:
        nvimgcodec = importlib.import_module(NVIMGCODEC)
    except ImportError as error:
        raise CannotRunError("nvimgcodec is not installed: tiles are decoded on the CPU") from error
    decoder = nvimgcodec.Decoder()
    data = [path.read_bytes() for path in paths if path.suffix.lower() in (".jpg", ".jpeg")]
    if not data:
        raise CannotRunError("none of the tiles is a JPEG")
    images = decoder.decode(data)
    spec = ReaderSpec()
    worst, mean = 0, 0.0
    for image, encoded in zip(images, data, strict=True):
        pixels = resize(np.ascontiguousarray(image.cpu()), spec.size).astype(int)
        difference = np.abs(pixels - decode_tile(encoded, spec))
        worst = max(worst, int(difference.max()))
        mean += float(difference.mean()) / len(data)
    seconds = float(np.median(time_calls(lambda: decoder.decode(data), 5)))
    return {
        "tiles": len(data),
        "largest_difference": worst,
        "mean_difference": mean,
        "within_the_bound": worst <= DECODE_BOUND,
        "tiles_per_second": len(data) / seconds,
    }


def read_some(folder: Path, count: int, size: int) -> tuple[Tiles, list[Path]]:
    """Read up to `count` tiles (N, size, size, 3), spread over `folder`, with their paths."""
    paths = [Path(f.location) for f in find_files(folder) if f.is_image and not f.reason]
    readable: list[Path] = []
    tiles = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        try:
            tiles.append(read_tile(path, ReaderSpec(size=size)))
        except TileError:
            continue
        readable.append(path)
    if not tiles:
        raise CannotRunError(f"no readable tile below {folder}")
    return np.stack(tiles), readable
