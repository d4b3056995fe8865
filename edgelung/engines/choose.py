"""Which variant runs in which engine, and the proof before it is trusted."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.engines.base import Engine, EngineFactory, EngineUnavailableError, Tiles
from edgelung.engines.cuda import Device, gpu_present
from edgelung.engines.names import AUTO_GPU_ENGINES, CPU_ENGINES, GPU_ENGINES, EngineName
from edgelung.engines.onnxruntime import OnnxRuntimeEngine, onnxruntime_cuda, onnxruntime_tensorrt
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.engines.tensorrt.engine import tensorrt, tensorrt_rtx
from edgelung.tiles.reader import TileError, read_tile

# To add an engine: its name in `names.py`, a class that follows `base.Engine`, a line here.
ENGINES: Mapping[EngineName, EngineFactory] = {
    EngineName.OPENVINO: OpenVinoEngine,
    EngineName.ONNXRUNTIME: OnnxRuntimeEngine,
    EngineName.TENSORRT: tensorrt,
    EngineName.TENSORRT_RTX: tensorrt_rtx,
    EngineName.ONNXRUNTIME_CUDA: onnxruntime_cuda,
    EngineName.ONNXRUNTIME_TENSORRT: onnxruntime_tensorrt,
}
# INT8 linears are the cheapest on CPUs. FP16 has no arithmetic of its own there: it saves disk.
CPU_PREFERENCE = (Precision.INT8, Precision.FP32, Precision.FP16)
# For a GPU engine that is named and whose variants cannot be timed; INT8 is often no faster there.
GPU_PREFERENCE = (Precision.FP16, Precision.INT8_FP16, Precision.INT8, Precision.FP32)


@dataclass(frozen=True)
class Chosen:
    """An engine that has reproduced the golden tiles, and why it was chosen."""

    engine: Engine
    variant: Variant
    reason: str
    golden_difference: float


def open_engine(
    bundle: Bundle,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    prebuilt: Path | None = None,
    *,
    latency: bool = False,
) -> Chosen:
    """Load a variant of the bundle in an engine and check it on the golden tiles.

    Args:
        bundle: the opened bundle.
        engine: the engine to run; None takes the fastest on a GPU, else the first CPU engine that
            works. A named engine is what runs, or an error says why it cannot.
        precision: the variant to run; None lets the engine's preference decide among those that
            passed their gate.
        threads: CPU threads; None: all cores that this process may use.
        prebuilt: folder of TensorRT-RTX engines, which are programs that the user trusts.
        latency: one batch as soon as possible, instead of the most tiles per second.

    Raises:
        EdgelungError: no engine can run it, or the golden tiles come out wrong.
    """
    if prebuilt is not None and engine != EngineName.TENSORRT_RTX:
        raise EdgelungError("--prebuilt holds TensorRT-RTX engines; it needs --engine tensorrt-rtx")
    factories = dict(ENGINES)
    if prebuilt is not None:
        factories[EngineName.TENSORRT_RTX] = partial(tensorrt_rtx, prebuilt=prebuilt)
    cores = threads or available_cores()
    missing = []
    on_gpu = gpu_present() if engine is None else engine in GPU_ENGINES
    if on_gpu and (engine is None or precision is None):
        names = AUTO_GPU_ENGINES if engine is None else (engine,)
        some = {name: factories[name] for name in names}
        try:
            return _fastest(bundle, Device(), some, precision, cores, latency)
        except EngineUnavailableError as error:  # a named engine gives its own reason below
            missing.append(f"a GPU is here, but {error}")
        except EdgelungError as error:
            if engine is not None:
                raise
            missing.append(f"a GPU is here, but {error}")
    variant, why = _choose_variant(bundle, precision, on_gpu and engine is not None)
    for name in CPU_ENGINES if engine is None else (engine,):
        try:
            loaded = _factory(factories[name], variant)(variant.path, cores, latency=latency)
        except (EngineUnavailableError, EdgelungError) as error:  # in our own words
            missing.append(f"{name}: {error}")
        except Exception as error:  # runtimes raise types of their own when a graph does not load
            missing.append(f"{name}: cannot load {variant.path.name}: {one_line(error)}")
        else:
            difference = check_golden(bundle, loaded, variant.precision)
            return Chosen(loaded, variant, "; ".join([why, *missing]), difference)
    if engine is not None:
        missing = missing[-1:]
    raise EdgelungError(f"no engine can run {variant.precision} here: {'; '.join(missing)}")


def _factory(factory: EngineFactory, variant: Variant) -> EngineFactory:
    """OpenVINO may use BF16 for a variant that passed its gate so."""
    check = variant.gate.openvino
    in_bf16 = check is not None and check.verdict == "pass" and check.floating_point == "bf16"
    if factory is OpenVinoEngine and variant.passed and in_bf16:
        return partial(OpenVinoEngine, bf16=True)
    return factory


def _fastest(
    bundle: Bundle,
    device: Device,
    factories: Mapping[EngineName, EngineFactory],
    precision: Precision | None,
    cores: int,
    latency: bool,
) -> Chosen:
    """The fastest of these engines and of the variants that may run, on the GPU."""
    from edgelung.core.cache import engine_cache
    from edgelung.engines.fastest import batch_of, fastest

    passed = [variant for variant in bundle.variants.values() if variant.passed]
    variants = passed if precision is None else [bundle.variant(precision)]

    def load(name: EngineName, variant: Variant) -> tuple[Engine, float]:
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


def check_golden(bundle: Bundle, engine: Engine, precision: Precision) -> float:
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
    if not difference <= precision.about.golden_tolerance:  # `not <=`: NaN is a difference too
        raise EdgelungError(
            f"{engine.name} does not reproduce the bundle's golden tiles at {precision}: "
            f"probabilities differ by up to {difference:.3g}, allowed "
            f"{precision.about.golden_tolerance:g}; nothing was predicted. Try --engine "
            f"{' or '.join(name for name in CPU_ENGINES if name != engine.name)}"
        )
    return difference


def _choose_variant(bundle: Bundle, precision: Precision | None, gpu: bool) -> tuple[Variant, str]:
    """The variant to run without timing any, and why."""
    if precision is not None:
        variant = bundle.variant(precision)
        if variant.passed:
            return variant, f"{precision} asked for"
        return variant, f"{precision} asked for; its gate: {variant.gate.verdict}"
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
            yield f"{name} not offered (gate: {variant.gate.verdict})"
