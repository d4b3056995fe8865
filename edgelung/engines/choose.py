"""Which variant runs in which engine, and the proof before it is trusted."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgelung.artifacts.bundle import FULL_PRECISION, PRECISIONS, Bundle, Variant
from edgelung.core.errors import EdgelungError, one_line
from edgelung.engines.base import Engine, EngineFactory, EngineUnavailableError, Tiles
from edgelung.engines.cuda import Device, gpu_present
from edgelung.engines.onnxruntime import OnnxRuntimeEngine, onnxruntime_cuda, onnxruntime_tensorrt
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.engines.tensorrt.engine import tensorrt, tensorrt_rtx
from edgelung.tiles.reader import TileError, read_tile

ENGINES: dict[str, EngineFactory] = {
    "openvino": OpenVinoEngine,
    "onnxruntime": OnnxRuntimeEngine,
    "tensorrt": tensorrt,
    "tensorrt-rtx": tensorrt_rtx,
    "onnxruntime-cuda": onnxruntime_cuda,
    "onnxruntime-tensorrt": onnxruntime_tensorrt,
}
# What `auto` times where there is a GPU, and what it tries in this order where there is none.
# (onnxruntime-tensorrt builds its engine anew at every start: by name only.)
GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
CPU_ENGINES = ("openvino", "onnxruntime")

# INT8 linears are the cheapest on CPUs; FP16 has no arithmetic of its own there, it saves disk.
CPU_PREFERENCE = ("int8", "fp32", "fp16")
# Where a GPU engine is named and its variants cannot be timed; INT8 is often no faster there.
GPU_PREFERENCE = ("fp16", "int8-fp16", "int8", "fp32")

# Largest |Δ probability| on a golden tile that two right engines may show. Runtimes sum in
# different orders; under INT8 a value at the edge of a step falls to either side, and the step
# carries on. A wrong colour order, normalisation or weight moves some tile by far more.
GOLDEN_TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "int8": 1e-1, "int8-fp16": 1e-1, "fp8": 1e-1}


@dataclass(frozen=True)
class Chosen:
    """An engine that has reproduced the golden tiles, and why it was chosen."""

    engine: Engine
    variant: Variant
    reason: str
    golden_difference: float


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    prebuilt: Path | None = None,
    *,
    latency: bool = False,
) -> Chosen:
    """Load a variant of the bundle and prove it on the golden tiles.

    `auto` takes the fastest on a GPU, else the first that works on the CPU; anything asked for by
    name is what runs, or EdgelungError says why it cannot. `prebuilt` is a folder of TensorRT-RTX
    engines that the user vouches for; `latency` as in `EngineFactory`.
    """
    if prebuilt is not None and engine != "tensorrt-rtx":
        raise EdgelungError("--prebuilt holds TensorRT-RTX engines; it needs --engine tensorrt-rtx")
    if engine != "auto" and engine not in ENGINES:
        raise EdgelungError(f"unknown engine {engine!r}; expected auto, {', '.join(ENGINES)}")
    if precision not in ("auto", *PRECISIONS):
        raise EdgelungError(
            f"unknown precision {precision!r}; expected auto, {', '.join(PRECISIONS)}"
        )
    factories: dict[str, EngineFactory] = dict(ENGINES)
    if prebuilt is not None:
        factories[engine] = partial(tensorrt_rtx, prebuilt=prebuilt)
    cores = threads or available_cores()
    missing = []
    on_gpu = engine in GPU_ENGINES or (engine == "auto" and gpu_present())
    if on_gpu and (engine == "auto" or precision == "auto"):
        try:
            device = Device()
            names = GPU_ENGINES if engine == "auto" else [engine]
            return _fastest(
                bundle, device, {n: factories[n] for n in names}, precision, cores, latency
            )
        except EngineUnavailableError as error:  # what was asked for by name says so itself below
            missing.append(f"a GPU is here, but {error}")
        except EdgelungError as error:
            if engine != "auto":
                raise
            missing.append(f"a GPU is here, but {error}")
    variant, why = _choose_variant(bundle, precision, on_gpu and engine != "auto")
    for name in CPU_ENGINES if engine == "auto" else [engine]:
        try:
            loaded = _factory(factories[name], variant)(variant.path, cores, latency=latency)
        except (EngineUnavailableError, EdgelungError) as error:  # in our own words
            missing.append(f"{name}: {error}")
        except Exception as error:  # runtimes raise types of their own when a graph does not load
            missing.append(f"{name}: cannot load {variant.path.name}: {one_line(error)}")
        else:
            difference = check_golden(bundle, loaded, variant.precision)
            return Chosen(loaded, variant, "; ".join([why, *missing]), difference)
    if engine != "auto":
        missing = missing[-1:]
    raise EdgelungError(f"no engine can run {variant.precision} here: {'; '.join(missing)}")


def _factory(factory: EngineFactory, variant: Variant) -> EngineFactory:
    """OpenVINO may use BF16 for a variant that passed its gate so."""
    judged = variant.gate.get("openvino") or {}
    passed = (variant.passed, judged.get("verdict"), judged.get("floating_point"))
    if factory is OpenVinoEngine and passed == (True, "pass", "bf16"):
        return partial(OpenVinoEngine, bf16=True)
    return factory


def _fastest(
    bundle: Bundle,
    device: Device,
    factories: Mapping[str, EngineFactory],
    precision: str,
    cores: int,
    latency: bool,
) -> Chosen:
    """The fastest of these engines and of the variants that may run, on the GPU."""
    from edgelung.core.cache import engine_cache
    from edgelung.engines.fastest import batch_of, fastest

    passed = [variant for variant in bundle.variants.values() if variant.passed]
    variants = passed if precision == "auto" else [bundle.variant(precision)]

    def load(name: str, variant: Variant) -> tuple[Engine, float]:
        engine = factories[name](variant.path, cores, latency=latency)
        try:
            return engine, check_golden(bundle, engine, variant.precision)
        except BaseException:
            engine.close()
            raise

    candidates = [(name, variant) for name in factories for variant in variants]
    won = fastest(device, candidates, load, batch_of(_golden(bundle)), engine_cache())
    reason = "; ".join([won.reason, *_refused(bundle)])
    return Chosen(won.engine, won.variant, reason, won.golden_difference)


def _golden(bundle: Bundle) -> Tiles:
    try:
        return np.stack([read_tile(tile.path, bundle.reader) for tile in bundle.golden])
    except TileError as error:
        raise EdgelungError(f"a golden tile cannot be read here: {error.reason}") from error


def check_golden(bundle: Bundle, engine: Engine, precision: str) -> float:
    """Largest |Δ probability| over the golden tiles; raises EdgelungError beyond the tolerance."""
    tiles = _golden(bundle)
    expected = np.array([tile.probabilities[precision] for tile in bundle.golden])  # (G, C)
    parts = np.array_split(tiles, min(engine.concurrency, len(tiles)))  # every stream has its share
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            found = np.concatenate(list(pool.map(engine.infer, parts)))
    except Exception as error:  # each runtime has types of its own
        raise EdgelungError(
            f"{engine.name} cannot run the golden tiles at {precision}: {one_line(error)}"
        ) from error
    same_shape = found.shape == expected.shape
    difference = float(np.abs(found - expected).max()) if same_shape else float("inf")
    if not difference <= GOLDEN_TOLERANCE[precision]:  # `not <=`: NaN is a difference too
        raise EdgelungError(
            f"{engine.name} does not reproduce the bundle's golden tiles at {precision}: "
            f"probabilities differ by up to {difference:.3g}, allowed "
            f"{GOLDEN_TOLERANCE[precision]:g}; nothing was predicted. Try --engine "
            f"{' or '.join(name for name in CPU_ENGINES if name != engine.name)}"
        )
    return difference


def available_cores() -> int:
    """Cores that this process may use (`taskset` or a container's share may leave it fewer)."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    try:
        share, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(share) // int(period))))
    except (OSError, ValueError):  # no such file, or the word 'max'
        return cores


def _choose_variant(bundle: Bundle, precision: str, gpu: bool) -> tuple[Variant, str]:
    if precision != "auto":
        variant = bundle.variant(precision)
        if variant.passed:
            return variant, f"{precision} asked for"
        verdict = variant.gate.get("verdict", "not run")
        return variant, f"{precision} asked for; its gate: {verdict}"
    refused = list(_refused(bundle))
    preference = GPU_PREFERENCE if gpu else CPU_PREFERENCE
    for candidate in preference:
        if candidate in bundle.variants and bundle.variants[candidate].passed:
            why = f"auto: first of {', '.join(preference)} that passed the gate"
            return bundle.variants[candidate], "; ".join([why, *refused])
    raise EdgelungError(f"bundle {bundle.folder} has no {FULL_PRECISION} variant")


def _refused(bundle: Bundle) -> Iterator[str]:
    for name, variant in bundle.variants.items():
        if not variant.passed:
            yield f"{name} not offered (gate: {variant.gate.get('verdict', 'not run')})"
