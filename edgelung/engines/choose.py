"""Choose a variant and an engine, and check the engine on the golden tiles before use."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from msgspec import UNSET

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.core.deadlines import loading
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.core.workers import Workers
from edgelung.engines.base import (
    Engine,
    EngineFactory,
    EngineUnavailableError,
    Scores,
    Tiles,
    join_outputs,
)
from edgelung.engines.cuda import Device, gpu_present
from edgelung.engines.early_exit import early_exit_of, load_model
from edgelung.engines.names import AUTO_GPU_ENGINES, CPU_ENGINES, GPU_ENGINES, EngineName
from edgelung.engines.onnxruntime import OnnxRuntimeEngine, onnxruntime_tensorrt
from edgelung.engines.onnxruntime_cuda import onnxruntime_cuda
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.engines.tensorrt.engine import tensorrt, tensorrt_rtx
from edgelung.engines.tensorrt.prebuilt import PrebuiltFolder
from edgelung.tiles.reader import TileError, decode_tile

logger = logging.getLogger(__name__)

# To add an engine: a name in `names.py`, a class that follows `base.Engine`, and a line here.
ENGINES: Mapping[EngineName, EngineFactory] = {
    EngineName.OPENVINO: OpenVinoEngine,
    EngineName.ONNXRUNTIME: OnnxRuntimeEngine,
    EngineName.TENSORRT: tensorrt,
    EngineName.TENSORRT_RTX: tensorrt_rtx,
    EngineName.ONNXRUNTIME_CUDA: onnxruntime_cuda,
    EngineName.ONNXRUNTIME_TENSORRT: onnxruntime_tensorrt,
}
# INT8 linears are the fastest on CPUs, and an early exit spares most tiles most of them. CPUs
# compute FP16 in FP32, so FP16 only saves disk space.
CPU_PREFERENCE = (Precision.INT8_EARLY_EXIT, Precision.INT8, Precision.FP32, Precision.FP16)
# Used if a named GPU engine cannot time its variants; INT8 is often not faster on a GPU.
GPU_PREFERENCE = (Precision.FP16, Precision.INT8_FP16, Precision.INT8, Precision.FP32)


# Pairs that give wrong numbers. OpenVINO 2026.4 computed FP8 wrongly on several streams: the scores
# of the golden tiles were 2,000 times too large, their probabilities hardly differed.
UNRELIABLE: Mapping[tuple[EngineName, Precision], str] = {
    (EngineName.OPENVINO, Precision.FP8): "OpenVINO computes FP8 wrongly"
}
# Largest relative difference of a golden tile's score between two correct engines: in BF16 and INT8
# the features differ by a few percent.
SCORE_TOLERANCE = 0.25


class EngineFacts(Protocol):
    """What the record of a run says of an engine, wherever that runs; see `Engine`."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def float_type(self) -> str: ...


class Choice(Protocol):
    """What predicts in a run; see `Chosen`, which is the choice on this machine."""

    @property
    def engine(self) -> EngineFacts: ...
    @property
    def variant(self) -> Variant: ...
    @property
    def reason(self) -> str: ...
    @property
    def golden_difference(self) -> float: ...


@dataclass(frozen=True)
class Chosen:
    """An engine that reproduced the golden tiles, and the reason why it was chosen."""

    engine: Engine
    variant: Variant
    reason: str
    golden_difference: float


def open_engine(
    bundle: Bundle,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    prebuilt: PrebuiltFolder | None = None,
    *,
    latency: bool = False,
) -> Chosen:
    """Load a variant of the bundle in an engine and check it on the golden tiles.

    Args:
        bundle: the opened bundle.
        engine: the engine to run. None selects the fastest engine on a GPU, else the first CPU
            engine that works. A named engine is never replaced by another.
        precision: the variant to run. None selects among the variants that passed their gate.
        threads: CPU threads; None for all cores that this process may use.
        prebuilt: opened folder of TensorRT-RTX engines, which are programs.
        latency: minimise the latency of a batch instead of maximising tiles per second.

    Raises:
        EdgelungError: if no engine can run the variant, or if an engine does not reproduce the
            golden tiles.
    """
    on_gpu = gpu_present() if engine is None else engine in GPU_ENGINES
    with loading(bundle.folder, builds_gpu_engines=on_gpu):
        return _open_engine(bundle, engine, precision, threads, prebuilt, latency)


def _open_engine(
    bundle: Bundle,
    engine: EngineName | None,
    precision: Precision | None,
    threads: int | None,
    prebuilt: PrebuiltFolder | None,
    latency: bool,
) -> Chosen:
    if prebuilt is not None and engine != EngineName.TENSORRT_RTX:
        raise EdgelungError("--prebuilt holds TensorRT-RTX engines; it needs --engine tensorrt-rtx")
    factories = dict(ENGINES)
    if prebuilt is not None:
        factories[EngineName.TENSORRT_RTX] = partial(tensorrt_rtx, prebuilt=prebuilt)
    cores = threads or available_cores()
    failures = []
    on_gpu = gpu_present() if engine is None else engine in GPU_ENGINES
    if on_gpu and (engine is None or precision is None):
        names = AUTO_GPU_ENGINES if engine is None else (engine,)
        gpu_factories = {name: factories[name] for name in names}
        try:
            return _fastest(bundle, Device(), gpu_factories, precision, cores, latency)
        except EngineUnavailableError as error:
            if engine is None:  # a named engine gives its own reason below
                failures.append(f"a GPU is here, but {error}")
        except EdgelungError as error:
            if engine is not None:
                raise
            failures.append(f"a GPU is here, but {error}")
    if engine is not None and engine not in factories:
        raise EdgelungError(f"no engine is called {engine!r}; there are {', '.join(factories)}")
    to_try = CPU_ENGINES if engine is None else (engine,)
    tried = []
    for variant, why in _variants(bundle, precision, on_gpu and engine is not None):
        tried.append(variant.precision)
        is_wrong = False
        for name in to_try:
            try:
                loaded, difference = _load(bundle, name, factories[name], variant, cores, latency)
            except EngineUnavailableError as error:
                failures.append(f"{name}: {error}")
            except EdgelungError as error:
                if engine is not None:
                    raise EdgelungError(
                        f"{error}; nothing was predicted. Try another --engine or --precision"
                    ) from error
                logger.warning("%s is not used: %s", name, error)
                failures.append(f"{name}: {error}")
                is_wrong = True
            else:
                reason = "; ".join(dict.fromkeys([why, *failures]))
                return Chosen(loaded, variant, reason, difference)
        if is_wrong:  # the bundle may be faulty, then its other variants are not trusted either
            break
    if engine in GPU_ENGINES and not gpu_present():  # installing something would not help
        failures = [
            f"{engine} needs an NVIDIA GPU, and none is visible; leave --engine out to run on "
            "the CPU"
        ]
    reasons = "; ".join(dict.fromkeys(failures))
    raise EdgelungError(f"no engine can run {' or '.join(tried)} here: {reasons}")


def _load(
    bundle: Bundle,
    name: EngineName,
    factory: EngineFactory,
    variant: Variant,
    cores: int,
    latency: bool,
) -> tuple[Engine, float]:
    """Load a variant and check it on the golden tiles.

    Raises:
        EngineUnavailableError: if the engine does not run such a variant here.
        EdgelungError: if it does not load this one, or does not reproduce the golden tiles.
    """
    if reason := UNRELIABLE.get((name, variant.precision)):
        raise EngineUnavailableError(reason)
    try:
        engine = load_variant(factory, variant, cores, latency=latency)
    except (EngineUnavailableError, EdgelungError):  # written for users
        raise
    except Exception as error:  # runtimes raise their own exception types
        raise EdgelungError(f"cannot load {variant.graph.name}: {one_line(error)}") from error
    return _checked(bundle, engine, variant, cores, latency=latency)


def load_variant(
    factory: EngineFactory, variant: Variant, threads: int, *, latency: bool = False
) -> Engine:
    """Load a variant of a bundle. Raises EngineUnavailableError as `load_model` does."""
    entry, second = variant.entry.early_exit, variant.second
    early_exit = early_exit_of(entry, second) if entry and second else None
    return load_model(
        _factory(factory, variant), variant.graph, early_exit, threads, latency=latency
    )


def _factory(factory: EngineFactory, variant: Variant) -> EngineFactory:
    """Let OpenVINO compute in BF16 if the variant passed its gate in BF16."""
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
    """Measure the engines and the permitted variants on the GPU, and open the fastest pair."""
    from edgelung.core.cache import engine_cache
    from edgelung.engines.fastest import batch_of, fastest

    # An early exit runs on a GPU if it is asked for; which is faster has not been measured there.
    passed = [v for v in bundle.variants.values() if v.passed and v.second is None]
    variants = passed if precision is None else [bundle.variant(precision)]

    def load(name: EngineName, variant: Variant) -> tuple[Engine, float]:
        engine = load_variant(factories[name], variant, cores, latency=latency)
        return _checked(bundle, engine, variant, cores, latency=latency)

    candidates = [(name, variant) for name in factories for variant in variants]
    winner = fastest(device, candidates, load, batch_of(_golden(bundle)), engine_cache())
    reason = "; ".join([winner.reason, *_refused(bundle)])
    return Chosen(winner.engine, winner.variant, reason, winner.golden_difference)


def _checked(
    bundle: Bundle, engine: Engine, variant: Variant, cores: int, *, latency: bool
) -> tuple[Engine, float]:
    """Check the engine on the golden tiles, or what it offers in its place (`DeviceEngine.plain`).

    Raises EdgelungError as `check_golden` does; then the engine is closed.
    """
    try:
        return engine, check_golden(bundle, engine, variant.precision)
    except BaseException as error:
        engine.close()
        plain: EngineFactory | None = getattr(engine, "plain", None)
        if plain is None or not isinstance(error, EdgelungError):
            raise
        logger.info("%s; %s runs the graph without fused operators", error, engine.name)
    try:
        engine = load_variant(plain, variant, cores, latency=latency)
    except EngineUnavailableError as error:
        raise EdgelungError(
            f"{engine.name} fails the golden tiles with fused operators, and without them it does "
            f"not load: {error}. Leave --engine out to run on the CPU"
        ) from error
    return _checked(bundle, engine, variant, cores, latency=latency)


def _golden(bundle: Bundle) -> Tiles:
    """The golden tiles, uint8 (G, H, W, 3)."""
    try:
        return np.stack([decode_tile(tile.file.read(), bundle.reader) for tile in bundle.golden])
    except TileError as error:
        raise EdgelungError(f"a golden tile cannot be read here: {error.reason}") from error


def check_golden(bundle: Bundle, engine: Engine, precision: Precision) -> float:
    """Run the golden tiles and return the largest |Δ probability|.

    Raises EdgelungError if it exceeds the tolerance of the precision.
    """
    tiles = _golden(bundle)
    expected = np.array([tile.probabilities[precision] for tile in bundle.golden])  # (G, C)
    # Split so that every stream runs at least one tile.
    parts = np.array_split(tiles, min(engine.concurrency, len(tiles)))
    try:
        with Workers(len(parts)) as pool:
            probabilities, ood, _ = join_outputs(list(pool.map(engine.infer, parts)))
    except Exception as error:  # runtimes raise their own exception types
        raise EdgelungError(
            f"{engine.name} cannot run the golden tiles at {precision}: {one_line(error)}"
        ) from error
    same_shape = probabilities.shape == expected.shape
    difference = float(np.abs(probabilities - expected).max()) if same_shape else float("inf")
    if not difference <= precision.about.golden_tolerance:  # `not <=` also catches NaN
        raise EdgelungError(
            f"{engine.name} does not reproduce the bundle's golden tiles at {precision}: "
            f"probabilities differ by up to {difference:.3g}, allowed "
            f"{precision.about.golden_tolerance:g}"
        )
    _check_scores(bundle, engine, precision, ood)
    return difference


def _check_scores(bundle: Bundle, engine: Engine, precision: Precision, ood: Scores | None) -> None:
    """Compare the scores of the golden tiles; raises EdgelungError if one is far off."""
    expected = np.array([tile.ood[precision] for tile in bundle.golden if tile.ood])
    if not len(expected):
        return
    found = np.full(len(expected), np.nan) if ood is None else ood
    difference = float(np.abs(found / np.maximum(expected, 1e-6) - 1).max())
    if not difference <= SCORE_TOLERANCE:
        raise EdgelungError(
            f"{engine.name} does not reproduce the scores of the bundle's golden tiles at "
            f"{precision}: they differ by up to {100 * difference:.2g} %, allowed "
            f"{100 * SCORE_TOLERANCE:g} %"
        )


def _variants(bundle: Bundle, precision: Precision | None, gpu: bool) -> list[tuple[Variant, str]]:
    """The variants to try, in order and without timing, each with the reason for it."""
    if precision is not None:
        variant = bundle.variant(precision)
        why = f"{precision} asked for"
        return [(variant, why if variant.passed else f"{why}; its gate: {variant.gate.verdict}")]
    refused = list(_refused(bundle))
    preference = GPU_PREFERENCE if gpu else CPU_PREFERENCE
    known = [name for name in preference if name in bundle.variants]
    passed = [variant for name in known if (variant := bundle.variants[name]).passed]
    if not passed:
        raise EdgelungError(f"bundle {bundle.folder} has no {FULL_PRECISION} variant")
    why = f"auto: first of {', '.join(known)} that passed the gate"
    target = bundle.manifest.target
    if not gpu and target is not UNSET and (fast_enough := variant_for_target(bundle)):
        passed = [fast_enough, *(one for one in passed if one is not fast_enough)]
        why = f"auto: export chose {target.variant} for {target.asked}"
    others = f"auto: the next of {', '.join(known)} that passed the gate"
    reasons = [why, *[others] * (len(passed) - 1)]
    return [
        (variant, "; ".join([reason, *refused]))
        for variant, reason in zip(passed, reasons, strict=True)
    ]


def variant_for_target(bundle: Bundle) -> Variant | None:
    """The variant that export chose for a target on CPUs; None if none is there and passed."""
    target = bundle.manifest.target
    if target is UNSET or not target.reached or target.variant not in CPU_PREFERENCE:
        return None
    variant = bundle.variants.get(Precision(target.variant))
    return variant if variant is not None and variant.passed else None


def _refused(bundle: Bundle) -> Iterator[str]:
    """One reason for each variant that did not pass its gate."""
    for name, variant in bundle.variants.items():
        if not variant.passed:
            yield f"{name} not offered (gate: {variant.gate.verdict})"
