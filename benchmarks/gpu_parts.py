"""What `gpu_check.py` measures, one function a question; each raises where it has no answer."""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gpu_device import Figures, percentiles, time_calls

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import one_line
from edgelung.core.system import available_cores
from edgelung.engines import choose
from edgelung.engines.base import Engine, EngineUnavailableError, resizes
from edgelung.engines.cuda import Device
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.tensorrt.build import Profile
from edgelung.engines.tensorrt.engine import TensorRtEngine
from edgelung.inference.pipeline import predict_batches
from edgelung.inference.record import record_of
from edgelung.inference.session import gather, infer_folder
from edgelung.inference.writer import format_of
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import (
    ReaderSpec,
    TileError,
    decode_tile,
    read_pixels,
    read_tile,
    resize,
)

BATCHES = (1, 8, 32, 128)
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "fp8")
TENSORRT = ("tensorrt", "tensorrt-rtx")
DECODE_BOUND = 2  # levels of 255 by which another JPEG decoder may differ to be called the same
# Dense FP16 TFLOP/s with FP32 accumulation, and memory GB/s, as NVIDIA's data sheets give them.
PEAKS = {
    "GH200": (989, 4000),
    "H200": (989, 4800),
    "H100 PCIe": (756, 2000),
    "H100": (989, 3350),
    "A100": (312, 1935),
    "RTX PRO 6000": (504, 1792),
    "RTX 5090": (210, 1792),
    "RTX 4090": (165, 1008),
    "RTX 3090": (71, 936),
    "L40S": (362, 864),
    "L40": (181, 864),
    "L4": (121, 300),
    "T4": (65, 320),
}


class CannotRunError(Exception):
    """Why a part has no figures here."""


def peak(card: str) -> tuple[float, float]:
    """(FP16 TFLOP/s, GB/s) of this card."""
    for name, figures in PEAKS.items():
        if re.search(rf"\b{name}\b", card):
            return figures
    raise CannotRunError(f"no data-sheet figures for {card}")


def model_gflop(tokens: int, width: int, depth: int, patches: int, patch: int = 16) -> float:
    """GFLOP of one tile: multiply and add counted apart, attention included."""
    linears = 12 * width * width * tokens * depth  # qkv 3, proj 1, MLP 8
    attention = 2 * tokens * tokens * width * depth
    embedding = 3 * patch * patch * width * patches
    return 2 * (linears + attention + embedding) / 1e9


def read_some(folder: Path, count: int, size: int) -> tuple[np.ndarray, list[Path]]:
    """The first `count` readable tiles below `folder`, spread over it."""
    paths = [Path(f.location) for f in find_files(folder) if f.is_image and not f.reason]
    chosen: list[Path] = []
    tiles = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        try:
            tiles.append(read_tile(path, ReaderSpec(size=size)))
        except TileError:
            continue
        chosen.append(path)
    if not tiles:
        raise CannotRunError(f"no readable tile below {folder}")
    return np.stack(tiles), chosen


def parity(bundle: Bundle, tiles: np.ndarray) -> Figures:
    """Every engine and variant against ONNX Runtime's CPU on the same tiles; build seconds."""
    result: Figures = {}
    reference = {
        name: OnnxRuntimeEngine(variant.path, available_cores(), latency=True)
        for name, variant in bundle.variants.items()
    }
    truth = in_batches(reference["fp32"], tiles)
    for name, engine in reference.items():
        expected = truth if name == "fp32" else in_batches(engine, tiles)
        for runtime in (*choose.GPU_ENGINES, "onnxruntime-tensorrt"):
            row: Figures = {}
            try:
                for step in ("seconds_to_build_and_load", "seconds_to_load"):
                    start = time.perf_counter()
                    found = choose.ENGINES[runtime](bundle.variants[name].path, available_cores())
                    row[step] = time.perf_counter() - start
                    if step != "seconds_to_load":
                        found.close()
                values = in_batches(found, tiles)
                found.close()
                row |= {
                    "tiles": len(tiles),
                    "largest_difference": float(np.abs(values - expected).max()),
                    "agreement_with_same_file_on_cpu": same_label(values, expected),
                    "agreement_with_fp32": same_label(values, truth),
                }
            except Exception as error:
                row = {"cannot_run": one_line(error, 300)}
            result[f"{runtime} {name}"] = row
    return result


def latency(graph: Path, precision: str, graphs: bool) -> Figures:
    """p50, p90, p99 in milliseconds of `infer` per batch size, on the TensorRT that is here.

    Where there is none, on ONNX Runtime's CUDA provider, which knows no graphs.
    """
    import os

    os.environ["EDGELUNG_CUDA_GRAPHS"] = "1" if graphs else "0"
    no_tensorrt, start = None, time.perf_counter()
    engine: Engine
    try:
        engine = first_tensorrt(graph)
    except CannotRunError as error:
        if graphs:
            raise
        no_tensorrt, start = str(error), time.perf_counter()
        try:
            engine = choose.ENGINES["onnxruntime-cuda"](graph, available_cores())
        except EngineUnavailableError as other:
            raise CannotRunError(f"{error}; {one_line(other, 200)}") from other
    finally:
        del os.environ["EDGELUNG_CUDA_GRAPHS"]
    size = tile_size(engine)
    result: Figures = {"engine": engine.name, "precision": precision, "cuda_graphs": graphs}
    result["seconds_to_build_or_load"] = time.perf_counter() - start
    if no_tensorrt:
        result["no_tensorrt"] = no_tensorrt
    for batch in BATCHES:
        tiles = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        taken = time_calls(lambda t=tiles: engine.infer(t), 300 if batch <= 8 else 60)
        result[f"batch {batch}"] = percentiles(taken)
    engine.close()
    return result


def throughput(graph: Path, gflop: float) -> Figures:
    """MLPerf-style SingleStream and Offline of every engine that runs here, against the roofline.

    Offline keeps as many batches in flight as the engine takes.
    """
    result: Figures = {"gflop_per_tile": gflop, "note": "shorter than MLPerf's rules ask"}
    try:
        tflops, _ = peak(card_name())
    except CannotRunError as error:
        tflops, result["no_share_of_peak"] = None, str(error)
    for name in (*choose.GPU_ENGINES, "onnxruntime-tensorrt"):
        try:
            engine = choose.ENGINES[name](graph, available_cores())
            try:
                result[name] = scenarios(engine)
            finally:
                engine.close()
        except Exception as error:
            result[name] = {"cannot_run": one_line(error, 300)}
            continue
        if tflops:
            rate = result[name]["offline_tiles_per_second"]
            result[name]["share_of_fp16_peak"] = rate * gflop / 1e3 / tflops
    return result


def scenarios(engine: Engine, seconds: float = 4.0) -> Figures:
    """p50, p90 and p99 of one tile at a time; tiles/s with the engine kept full of batches."""
    rng, size = np.random.default_rng(0), tile_size(engine)
    one = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    single = percentiles(time_calls(lambda: engine.infer(one), 1000, seconds))
    many = rng.integers(0, 256, (128, size, size, 3), np.uint8)
    time_calls(lambda: engine.infer(many), 5, seconds)

    def keep_busy(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            engine.infer(many)
            done += len(many)
        return done

    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(engine.concurrency) as pool:
        done = sum(pool.map(keep_busy, range(engine.concurrency)))
    rate = done / (time.perf_counter() - start)
    return {"single_stream_ms": single, "offline_tiles_per_second": rate}


def card_name() -> str:
    """As the driver calls it."""
    try:
        return Device().name
    except EngineUnavailableError:  # pycuda is missing: others can tell
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "unknown"


def torch_models(architecture: str) -> Figures:
    """The same architecture in torch, eager and compiled (with CUDA graphs), FP16, on this card."""
    import timm
    import torch

    if not torch.cuda.is_available():
        raise CannotRunError("torch sees no GPU")
    model = timm.create_model(architecture, num_classes=3).eval().cuda().half()
    result: Figures = {"torch": torch.__version__}
    for kind in ("eager", "compiled"):
        run = torch.compile(model, mode="reduce-overhead") if kind == "compiled" else model
        for batch in (1, 128):
            x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.half)

            def call(f: Any = run, x: Any = x) -> None:
                with torch.inference_mode():
                    f(x)
                torch.cuda.synchronize()

            taken = time_calls(call, 100 if batch == 1 else 30)
            result[f"{kind} batch {batch}"] = percentiles(taken) | {
                "tiles_per_second": batch / float(np.median(taken))
            }
    return result


def folder_run(bundle: Bundle, folder: Path, out: Path) -> Figures:
    """A folder end to end, then its stages one by one: what each costs per tile, in ms."""
    cores = available_cores()
    predictions = out / "predictions.csv"
    start = time.perf_counter()
    summary = infer_folder(
        gather([folder], None, None, predictions), bundle, predictions, resume=False
    )
    total = time.perf_counter() - start
    spec = bundle.reader
    tiles, paths = read_some(folder, 256, spec.size)
    pixels = [read_pixels(path, spec) for path in paths]

    def per_tile(work: Callable[[], object]) -> float:
        return 1e3 * float(np.median(time_calls(work, 5))) / len(paths)

    with ThreadPoolExecutor(cores) as pool:
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
    batches = predict_batches(files, spec, engine, batch_size=32, threads=cores)
    records = [record_of(row, bundle.classes, None) for batch in batches for row in batch]
    engine.close()

    def write() -> None:
        with (out / "again.csv").open("wb") as file:
            writer = format_of(out / "again.csv")(file, bundle.classes)
            writer.write(records)
            writer.close()

    stages["write"] = 1e3 * float(np.median(time_calls(write, 5))) / len(records)
    return {
        "engine": f"{chosen.engine.name} {chosen.variant.precision}",
        "choice": chosen.reason,
        "resize_in_the_folder_run": where,
        "files": summary["files"],
        "seconds_with_loading": total,
        "tiles_per_second": summary["tiles_per_second"],
        "decoders": cores,
        "ms_per_tile": stages,
    }


def in_one_slot(engine: TensorRtEngine, tiles: np.ndarray, pixels: Sequence[np.ndarray]) -> Figures:
    """Copy, resize and model of one batch, one after the other and each alone, ms per tile."""
    count = len(tiles)
    with engine._slot() as slot:

        def timed(work: Callable[[], object]) -> float:
            def whole() -> None:
                work()
                slot._stream.wait()

            return 1e3 * float(np.median(time_calls(whole, 20))) / count

        slot._host_in[:count] = tiles
        stages = {
            "copy alone": timed(lambda: slot._stream.copy_in(slot._in, slot._host_in[:count])),
            "model alone": timed(lambda: slot._compute(slot._context, count)),
        }
        if engine.resizes:
            slot.resize(pixels)
            stages["resize alone"] = 1e3 * slot._resize.seconds(20) / count
    return stages


def jpeg_on_gpu(paths: Sequence[Path]) -> Figures:
    """nvimgcodec's decode, resized as the reader does, against the reader's pixels; its speed."""
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise CannotRunError("nvimgcodec is not installed: tiles are decoded on the CPU") from error
    decoder = nvimgcodec.Decoder()
    data = [path.read_bytes() for path in paths if path.suffix.lower() in (".jpg", ".jpeg")]
    if not data:
        raise CannotRunError("none of the tiles is a JPEG")
    found = decoder.decode(data)
    spec = ReaderSpec()
    worst, mean = 0, 0.0
    for image, encoded in zip(found, data, strict=True):
        pixels = resize(np.ascontiguousarray(image.cpu()), spec.size).astype(int)
        apart = np.abs(pixels - decode_tile(encoded, spec))
        worst, mean = max(worst, int(apart.max())), mean + float(apart.mean()) / len(data)
    seconds = float(np.median(time_calls(lambda: decoder.decode(data), 5)))
    return {
        "tiles": len(data),
        "largest_difference": worst,
        "mean_difference": mean,
        "within_the_bound": worst <= DECODE_BOUND,
        "tiles_per_second": len(data) / seconds,
    }


def first_tensorrt(graph: Path) -> TensorRtEngine:
    """The first TensorRT that runs here; batches up to 128."""
    reasons = []
    for name in TENSORRT:
        try:
            return TensorRtEngine(graph, 1, name=name, profile=Profile())
        except Exception as error:
            reasons.append(f"{name}: {one_line(error, 200)}")
    raise CannotRunError("; ".join(reasons))


def tile_size(engine: Engine) -> int:
    """Pixels along a side of the tiles that it takes."""
    if isinstance(engine, OnnxRuntimeEngine):
        return int(engine._session.get_inputs()[0].shape[1])
    return int(getattr(engine, "infer_size", 224))


def in_batches(engine: Engine, tiles: np.ndarray) -> np.ndarray:
    """Probabilities of all tiles, 32 at a time."""
    return np.concatenate([engine.infer(tiles[i : i + 32]) for i in range(0, len(tiles), 32)])


def same_label(a: np.ndarray, b: np.ndarray) -> float:
    """Share of rows with the same largest class."""
    return float((a.argmax(1) == b.argmax(1)).mean())
