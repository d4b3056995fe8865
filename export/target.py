"""Choose the variant that reaches a target on this machine's CPU (`export --target-…`).

Of the variants that passed their gate and reach the target, the one that agrees best with full
precision on the gate tiles is chosen (full precision itself agrees on all of them); among equals
the fastest. Its name goes into the bundle, and `--precision auto` then takes it on CPUs.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgelung.artifacts.manifest import Target, VariantSpeed
from edgelung.core.precision import FULL_PRECISION
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import Engine, EngineFactory, GraphBytes, Tiles
from edgelung.engines.choose import CPU_PREFERENCE
from edgelung.engines.early_exit import load_model
from edgelung.engines.names import CPU_ENGINES, EngineName
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.export.evaluate import MeasuredVariant
from edgelung.export.inputs import ExportInputs

LATENCY_TILES = 128  # single tiles, all different: some leave at an early exit, others do not
WARM_UP = 5
PERCENTILE = 90  # of the latencies, as MLPerf's SingleStream

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goal:
    """What a variant has to reach; None is not asked for.

    Attributes:
        latency_ms: most milliseconds for a tile, one at a time, in nine of ten cases.
        tiles_per_second: fewest tiles per second of the network alone, in batches of 16.
    """

    latency_ms: float | None = None
    tiles_per_second: float | None = None

    def reached_by(self, speed: VariantSpeed) -> bool:
        """True if the speed is what is asked for."""
        in_time = self.latency_ms is None or (
            speed.latency_ms is not None and speed.latency_ms <= self.latency_ms
        )
        return in_time and speed.tiles_per_second >= (self.tiles_per_second or 0)


def choose_target(goal: Goal, variants: Sequence[MeasuredVariant], inputs: ExportInputs) -> Target:
    """Measure the variants that passed, and choose; the fastest if none reaches the goal."""
    passed = [v for v in variants if _may_run(v)]
    tiles = inputs.reader.read(inputs.gate.every(LATENCY_TILES)) if goal.latency_ms else None
    measured: dict[str, VariantSpeed] = {}
    with progress("latency", len(passed)) as advance:
        for variant in passed:
            measured[variant.precision] = measure(variant, tiles)
            advance(1)
    return select(goal, measured, {v.precision: _agreement(v) for v in passed})


def select(goal: Goal, measured: dict[str, VariantSpeed], agreement: dict[str, float]) -> Target:
    """The target from the speed of each variant and its agreement with full precision."""

    def slowness(name: str) -> float:
        speed = measured[name]
        return speed.latency_ms if speed.latency_ms is not None else -speed.tiles_per_second

    reaching = [name for name, speed in measured.items() if goal.reached_by(speed)]
    if reaching:
        variant = min(reaching, key=lambda name: (-agreement[name], slowness(name)))
    else:
        variant = min(measured, key=slowness)
    return Target(
        variant=variant,
        reached=bool(reaching),
        latency_ms=goal.latency_ms,
        tiles_per_second=goal.tiles_per_second,
        measured=measured,
    )


def measure(variant: MeasuredVariant, tiles: Tiles | None) -> VariantSpeed:
    """The speed of a variant in the CPU engine that `auto` takes, its latency on single `tiles`."""
    name = next(name for name in CPU_ENGINES if name in variant.entry.tiles_per_second)
    speed = VariantSpeed(engine=name, tiles_per_second=variant.entry.tiles_per_second[name])
    if tiles is None:
        return speed
    candidate, factory = variant.evaluation.candidate, _factory(name, variant)
    graph = GraphBytes(candidate.graph)
    engine = load_model(factory, graph, candidate.early_exit, available_cores(), latency=True)
    with closing(engine):
        return VariantSpeed(
            engine=name,
            tiles_per_second=speed.tiles_per_second,
            latency_ms=round(latency_ms(engine, tiles), 3),
        )


def latency_ms(engine: Engine, tiles: Tiles) -> float:
    """The 90th percentile of the milliseconds for one tile, tile after tile."""
    for tile in tiles[:WARM_UP]:
        engine.infer(tile[None])
    times = []
    for tile in tiles:
        start = time.perf_counter()
        engine.infer(tile[None])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.percentile(times, PERCENTILE))


def _may_run(variant: MeasuredVariant) -> bool:
    """True for a variant that `auto` may take on a CPU."""
    return (
        variant.precision in CPU_PREFERENCE
        and (variant.precision is FULL_PRECISION or variant.entry.gate.verdict == "pass")
        and bool(variant.entry.tiles_per_second)
    )


def _agreement(variant: MeasuredVariant) -> float:
    agreement = variant.entry.gate.agreement
    return 1.0 if variant.precision is FULL_PRECISION or agreement is None else agreement


def _factory(name: EngineName, variant: MeasuredVariant) -> EngineFactory:
    """The engine as `infer` loads it: OpenVINO in BF16 if the variant passed so."""
    if name is EngineName.ONNXRUNTIME:
        return OnnxRuntimeEngine
    check = variant.entry.gate.openvino
    return partial(OpenVinoEngine, bf16=check is not None and check.floating_point == "bf16")
