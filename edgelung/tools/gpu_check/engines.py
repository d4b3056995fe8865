"""Parts that measure the engines: the same results as on the CPU, latency and throughput."""

import os
import re
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import one_line
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.core.workers import Workers
from edgelung.engines import choose
from edgelung.engines.base import Engine, EngineUnavailableError, Graph, Probabilities, Tiles
from edgelung.engines.cuda import Device
from edgelung.engines.names import GPU_ENGINES, EngineName
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.tensorrt.build import Profile
from edgelung.engines.tensorrt.engine import TensorRtEngine
from edgelung.tools.gpu_check.timing import CannotRunError, Figures, percentiles, time_calls

BATCHES = (1, 8, 32, 128)
TENSORRT = ("tensorrt", "tensorrt-rtx")
MEASURED = GPU_ENGINES
# Dense FP16 TFLOP/s with FP32 accumulation and memory GB/s, from NVIDIA's data sheets.
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


def peak(card: str) -> tuple[float, float]:
    """Return the FP16 TFLOP/s and the GB/s of a GPU by its name; raises CannotRunError."""
    for name, figures in PEAKS.items():
        if re.search(rf"\b{name}\b", card):
            return figures
    raise CannotRunError(f"no data-sheet figures for {card}")


def model_gflop(tokens: int, width: int, depth: int, patches: int, patch: int = 16) -> float:
    """Return the GFLOP of one tile; a multiplication and an addition count as two."""
    linears = 12 * width * width * tokens * depth  # qkv 3, proj 1, MLP 8
    attention = 2 * tokens * tokens * width * depth
    embedding = 3 * patch * patch * width * patches
    return 2 * (linears + attention + embedding) / 1e9


def parity(bundle: Bundle, tiles: Tiles) -> Figures:
    """Compare every engine and variant with ONNX Runtime on the CPU, on the same tiles."""
    result: Figures = {}
    reference = {
        name: OnnxRuntimeEngine(variant.graph, available_cores(), latency=True)
        for name, variant in bundle.variants.items()
        if variant.second is None
    }
    full = in_batches(reference[FULL_PRECISION], tiles)
    for precision, engine in reference.items():
        expected = full if precision == FULL_PRECISION else in_batches(engine, tiles)
        for name in MEASURED:
            try:
                row = _compare(name, bundle.variants[precision].graph, tiles, expected)
                probabilities = row.pop("probabilities")
                row["agreement_with_fp32"] = same_label(probabilities, full)
            except Exception as error:  # runtimes raise their own exception types
                row = {"cannot_run": one_line(error, 300)}
            result[f"{name} {precision}"] = row
    return result


def _compare(name: EngineName, graph: Graph, tiles: Tiles, expected: Probabilities) -> Figures:
    """Load an engine twice, to time a build and a cached load, and compare its probabilities."""
    start = time.perf_counter()
    choose.ENGINES[name](graph, available_cores()).close()
    loaded = time.perf_counter()
    engine = choose.ENGINES[name](graph, available_cores())
    seconds_to_load = time.perf_counter() - loaded
    try:
        probabilities = in_batches(engine, tiles)
    finally:
        engine.close()
    return {
        "seconds_to_build_and_load": loaded - start,
        "seconds_to_load": seconds_to_load,
        "tiles": len(tiles),
        "largest_difference": float(np.abs(probabilities - expected).max()),
        "agreement_with_same_file_on_cpu": same_label(probabilities, expected),
        "probabilities": probabilities,
    }


def latency(graph: Graph, precision: Precision, graphs: bool, size: int) -> Figures:
    """Measure the milliseconds of `infer` per batch size, on the TensorRT that is installed.

    Without TensorRT: on ONNX Runtime's CUDA provider.
    """
    os.environ["EDGELUNG_CUDA_GRAPHS"] = "1" if graphs else "0"
    no_tensorrt, start = None, time.perf_counter()
    engine: Engine
    try:
        engine = first_tensorrt(graph)
    except CannotRunError as error:
        no_tensorrt, start = str(error), time.perf_counter()
        try:
            engine = choose.ENGINES[EngineName.ONNXRUNTIME_CUDA](graph, available_cores())
        except EngineUnavailableError as other:
            raise CannotRunError(f"{error}; {one_line(other, 200)}") from other
    finally:
        del os.environ["EDGELUNG_CUDA_GRAPHS"]
    result: Figures = {"engine": engine.name, "precision": precision, "cuda_graphs": graphs}
    result["seconds_to_build_or_load"] = time.perf_counter() - start
    if no_tensorrt:
        result["no_tensorrt"] = no_tensorrt
    for batch in BATCHES:
        tiles = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        taken = time_calls(partial(engine.infer, tiles), 300 if batch <= 8 else 60)
        result[f"batch {batch}"] = percentiles(taken)
    engine.close()
    return result


def throughput(graph: Graph, gflop: float, size: int) -> Figures:
    """Measure MLPerf's SingleStream and Offline on every engine, as a share of the FP16 peak.

    Offline keeps as many batches in flight as the engine takes.
    """
    result: Figures = {"gflop_per_tile": gflop, "note": "shorter than MLPerf's rules ask"}
    try:
        tflops, _ = peak(card_name())
    except CannotRunError as error:
        tflops, result["no_share_of_peak"] = None, str(error)
    for name in MEASURED:
        try:
            engine = choose.ENGINES[name](graph, available_cores())
            try:
                result[name] = scenarios(engine, size)
            finally:
                engine.close()
        except Exception as error:
            result[name] = {"cannot_run": one_line(error, 300)}
            continue
        if tflops:
            rate = result[name]["offline_tiles_per_second"]
            result[name]["share_of_fp16_peak"] = rate * gflop / 1e3 / tflops
    return result


def scenarios(engine: Engine, size: int, seconds: float = 4.0) -> Figures:
    """Measure the latency of one tile at a time, and tiles/s with the engine kept full."""
    rng = np.random.default_rng(0)
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
    with Workers(engine.concurrency) as pool:
        done = sum(pool.map(keep_busy, range(engine.concurrency)))
    rate = done / (time.perf_counter() - start)
    return {"single_stream_ms": single, "offline_tiles_per_second": rate}


def card_name() -> str:
    """Return the GPU's name, as its driver gives it."""
    try:
        return Device().name
    except EngineUnavailableError:  # without pycuda, torch can tell
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "unknown"


def torch_models(architecture: str) -> Figures:
    """Measure the architecture in torch, FP16, eager and compiled with CUDA graphs."""
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

            def call(f: Callable[..., object] = run, x: torch.Tensor = x) -> None:
                with torch.inference_mode():
                    f(x)
                torch.cuda.synchronize()

            taken = time_calls(call, 100 if batch == 1 else 30)
            result[f"{kind} batch {batch}"] = percentiles(taken) | {
                "tiles_per_second": batch / float(np.median(taken))
            }
    return result


def first_tensorrt(graph: Graph) -> TensorRtEngine:
    """Load `graph` in the first TensorRT that runs here, for batches up to 128."""
    reasons = []
    for name in TENSORRT:
        try:
            return TensorRtEngine(graph, 1, name=name, profile=Profile())
        except Exception as error:
            reasons.append(f"{name}: {one_line(error, 200)}")
    raise CannotRunError("; ".join(reasons))


def in_batches(engine: Engine, tiles: Tiles) -> Probabilities:
    """Predict all tiles, 32 at a time."""
    starts = range(0, len(tiles), 32)
    return np.concatenate([engine.infer(tiles[i : i + 32]).probabilities for i in starts])


def same_label(a: Probabilities, b: Probabilities) -> float:
    """Return the share of rows that have the same most probable class."""
    return float((a.argmax(1) == b.argmax(1)).mean())
