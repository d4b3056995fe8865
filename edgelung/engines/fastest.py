"""Which engine and variant is fastest on this GPU: measured once, then remembered in the cache."""

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgelung.artifacts.bundle import Variant
from edgelung.core.cache import Cache, Key
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import sha256_bytes
from edgelung.core.system import GPU_PACKAGES, version
from edgelung.core.typed_json import parse
from edgelung.engines.base import Engine, Tiles
from edgelung.engines.cuda import Device
from edgelung.engines.names import EngineName

BATCH = 32  # `infer`'s default on a GPU (`inference.pipeline.default_batch_size`)
WARM_UP, REPEATS = 5, 20

logger = logging.getLogger(__name__)

Candidate = tuple[EngineName, Variant]
# Opens a candidate and checks it on the golden tiles; returns the largest difference as well.
Opener = Callable[[EngineName, Variant], tuple[Engine, float]]


@dataclass(frozen=True)
class Fastest:
    """The fastest engine, loaded, with the reason for the choice."""

    engine: Engine
    variant: Variant
    golden_difference: float
    reason: str


@dataclass(frozen=True)
class Timing:
    """The median time of one batch of `BATCH` tiles."""

    seconds: float
    engine: EngineName
    variant: Variant


def fastest(
    device: Device,
    candidates: Sequence[Candidate],
    open_engine: Opener,
    tiles: Tiles,
    cache: Cache,
) -> Fastest:
    """Return the fastest candidate: the remembered one, or the winner of a new measurement.

    Candidates that do not open are named in the reason.

    Args:
        device: the GPU that is measured.
        candidates: engines and variants to measure.
        open_engine: loads a candidate.
        tiles: one batch, uint8 (BATCH, size, size, 3).
        cache: remembers the choice.

    Raises:
        EdgelungError: if no candidate opens.
    """
    key = _key(device, candidates)
    cached, stale = cache.get(key)
    if cached is not None and (remembered := _open_remembered(cached, candidates, open_engine)):
        return remembered
    if stale:
        logger.info("the remembered choice of engine %s; measuring again", stale)
    logger.info("timing %d engines on %s, once", len(candidates), device.name)
    timings, failures = _time_all(candidates, open_engine, tiles)
    if not timings:
        raise EdgelungError(f"no GPU engine runs here: {'; '.join(failures)}")
    timings.sort(key=lambda timing: timing.seconds)
    winner = timings[0]
    reason = _reason(timings, failures)
    engine, difference = open_engine(winner.engine, winner.variant)
    choice = {"engine": winner.engine, "precision": winner.variant.precision, "reason": reason}
    cache.try_put(key, json.dumps(choice).encode())
    return Fastest(engine, winner.variant, difference, reason)


def seconds_per_batch(
    engine: Engine, tiles: Tiles, warm_up: int = WARM_UP, repeats: int = REPEATS
) -> float:
    """Measure the median seconds of one batch, after warming up."""
    for _ in range(warm_up):
        engine.infer(tiles)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.infer(tiles)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def batch_of(tiles: Tiles, count: int = BATCH) -> Tiles:
    """Make a batch (count, size, size, 3) by repeating the given tiles (N, size, size, 3)."""
    return np.ascontiguousarray(tiles[np.arange(count) % len(tiles)])


def _time_all(
    candidates: Sequence[Candidate], open_engine: Opener, tiles: Tiles
) -> tuple[list[Timing], list[str]]:
    """Time every candidate, one at a time; also return why candidates failed, as lines."""
    timings: list[Timing] = []
    failures: dict[tuple[str, str], list[str]] = {}  # (engine, reason) → precisions
    for name, variant in candidates:
        try:
            engine, _ = open_engine(name, variant)
            try:
                timings.append(Timing(seconds_per_batch(engine, tiles), name, variant))
            finally:
                engine.close()
        except Exception as error:  # runtimes raise their own exception types
            failures.setdefault((name, one_line(error)), []).append(variant.precision)
    lines = [f"{name} {', '.join(group)}: {why}" for (name, why), group in failures.items()]
    return timings, lines


def _open_remembered(
    cached: bytes, candidates: Sequence[Candidate], open_engine: Opener
) -> Fastest | None:
    """Open the engine of an earlier measurement; None if it is gone or no longer works."""
    try:
        choice = parse(cached)
        selected = (choice["engine"], choice["precision"])
        reason = str(choice["reason"])
    except (ValueError, KeyError, TypeError):
        return None
    for name, variant in candidates:
        if (name, variant.precision) == selected:
            try:
                engine, difference = open_engine(name, variant)
            except Exception as error:  # runtimes raise their own exception types
                logger.info("%s %s no longer runs here: %s", name, variant.precision, error)
                return None
            return Fastest(engine, variant, difference, f"{reason} (remembered)")
    return None


def _reason(timings: Sequence[Timing], failures: Sequence[str]) -> str:
    """Describe the choice; `timings` are sorted, fastest first."""
    measured = ", ".join(
        f"{t.engine} {t.variant.precision} {1e3 * t.seconds:.2f} ms" for t in timings
    )
    parts = [f"auto: fastest on this GPU at batch {BATCH}: {measured}"]
    precisions = [timing.variant.precision for timing in timings]
    if not precisions[0].startswith("int8") and any(p.startswith("int8") for p in precisions):
        parts.append(f"INT8 is slower than {precisions[0].upper()} here")
    return "; ".join([*parts, *failures])


def _key(device: Device, candidates: Sequence[Candidate]) -> Key:
    graphs = sorted({variant.graph.sha256 for _, variant in candidates})
    engines = ",".join(dict.fromkeys(name for name, _ in candidates))
    return Key(
        "choice",
        identity={
            "graph": sha256_bytes("".join(graphs).encode()),
            "gpu": device.name,
            "flavour": engines,
        },
        depends_on={
            "architecture": device.architecture,
            "driver": device.driver,
            # A new version of any of these may change which engine is fastest.
            **{
                f"version of {package}": version(package) or "none"
                for package in ("edgelung", *GPU_PACKAGES)
            },
        },
    )
