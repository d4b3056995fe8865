"""Which variant runs in which engine, and the proof before it is trusted."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgelung.bundle import FULL_PRECISION, PRECISIONS, Bundle, Variant
from edgelung.engines.base import Engine, EngineFactory, EngineUnavailableError
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.errors import EdgelungError, one_line
from edgelung.tiles.reader import TileError, read_tile

# In the order `auto` tries them.
ENGINES: dict[str, EngineFactory] = {"openvino": OpenVinoEngine, "onnxruntime": OnnxRuntimeEngine}
ANNOUNCED = ("tensorrt", "tensorrt-rtx")  # words of the design; their engines come later

# INT8 linears are the cheapest on CPUs; FP16 has no arithmetic of its own there, it saves disk.
CPU_PREFERENCE = ("int8", "fp32", "fp16")

# Largest |Δ probability| on a golden tile that two right engines may show. Runtimes sum in
# different orders; under INT8 a value at the edge of a step falls to either side, and the step
# carries on. A wrong colour order, normalisation or weight moves some tile by far more.
GOLDEN_TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "int8": 1e-1, "int8-fp16": 1e-1}


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
    *,
    latency: bool = False,
) -> Chosen:
    """Load a variant of the bundle and prove it on the golden tiles.

    `auto` takes the first that works; anything asked for by name is what runs, or EdgelungError
    says why it cannot. `latency` as in `EngineFactory`.
    """
    if engine in ANNOUNCED:
        raise EdgelungError(
            f"engine {engine} is not part of this version yet; choose {', '.join(ENGINES)} or auto"
        )
    if engine != "auto" and engine not in ENGINES:
        raise EdgelungError(f"unknown engine {engine!r}; expected auto, {', '.join(ENGINES)}")
    if precision not in ("auto", *PRECISIONS):
        raise EdgelungError(
            f"unknown precision {precision!r}; expected auto, {', '.join(PRECISIONS)}"
        )
    variant, why = _choose_variant(bundle, precision)
    names = list(ENGINES) if engine == "auto" else [engine]
    missing = []
    for name in names:
        try:
            more = {"latency": True} if latency else {}
            loaded = ENGINES[name](variant.path, threads or available_cores(), **more)
        except EngineUnavailableError as error:
            missing.append(f"{name}: {error}")
        except Exception as error:  # runtimes raise types of their own when a graph does not load
            missing.append(f"{name}: cannot load {variant.path.name}: {one_line(error)}")
        else:
            difference = check_golden(bundle, loaded, variant.precision)
            return Chosen(loaded, variant, "; ".join([why, *missing]), difference)
    raise EdgelungError(f"no engine can run {variant.precision} here: {'; '.join(missing)}")


def check_golden(bundle: Bundle, engine: Engine, precision: str) -> float:
    """Largest |Δ probability| over the golden tiles; raises EdgelungError beyond the tolerance."""
    try:
        tiles = np.stack([read_tile(tile.path, bundle.reader) for tile in bundle.golden])
    except TileError as error:
        raise EdgelungError(f"a golden tile cannot be read here: {error.reason}") from error
    expected = np.array([tile.probabilities[precision] for tile in bundle.golden])  # (G, C)
    try:
        found = engine.infer(tiles)
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
            f"{' or '.join(name for name in ENGINES if name != engine.name)}"
        )
    return difference


def available_cores() -> int:
    """Cores that this process may use (containers and `taskset` allow fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose_variant(bundle: Bundle, precision: str) -> tuple[Variant, str]:
    if precision != "auto":
        variant = bundle.variant(precision)
        if variant.passed:
            return variant, f"{precision} asked for"
        verdict = variant.gate.get("verdict", "not run")
        return variant, f"{precision} asked for; its gate: {verdict}"
    refused = list(_refused(bundle))
    for candidate in CPU_PREFERENCE:
        if candidate in bundle.variants and bundle.variants[candidate].passed:
            why = f"auto: first of {', '.join(CPU_PREFERENCE)} that passed the gate"
            return bundle.variants[candidate], "; ".join([why, *refused])
    raise EdgelungError(f"bundle {bundle.folder} has no {FULL_PRECISION} variant")


def _refused(bundle: Bundle) -> Iterator[str]:
    for name, variant in bundle.variants.items():
        if not variant.passed:
            yield f"{name} not offered (gate: {variant.gate.get('verdict', 'not run')})"
