"""Which engine and variant is fastest on this GPU: measured once, then remembered."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import sha256_bytes, sha256_file
from edgelung.core.system import GPU_PACKAGES, version
from edgelung.core.terminal import note
from edgelung.engines.base import Engine, Tiles
from edgelung.engines.cuda import Device
from edgelung.engines.names import EngineName
from edgelung.engines.tensorrt.cache import EngineCache, Key

BATCH = 32  # `infer`'s default where the engine is no CPU (`folder.pipeline.default_batch_size`)
WARM_UP, REPEATS = 5, 20

Candidate = tuple[EngineName, Variant]
# Opens an engine with a variant, proven on the golden tiles; returns the largest difference too.
Opener = Callable[[EngineName, Variant], tuple[Engine, float]]


@dataclass(frozen=True)
class Fastest:
    """The engine that won, loaded, and why."""

    engine: Engine
    variant: Variant
    golden_difference: float
    reason: str


def fastest(
    bundle: Bundle,
    device: Device,
    candidates: Sequence[Candidate],
    open_engine: Opener,
    tiles: Tiles,
    cache: EngineCache,
) -> Fastest:
    """Time every candidate on `tiles` (BATCH, size, size, 3), or take the remembered winner.

    A candidate that does not open is named in the reason. Raises EdgelungError where none opens.
    """
    key = _key(bundle, device, candidates)
    kept, stale = cache.get(key)
    if kept is not None and (won := _remembered(kept, candidates, open_engine)):
        return won
    if stale:
        note(f"the remembered choice of engine {stale}; timing them again")
    note(f"timing {len(candidates)} engines on {device.name}, once")
    times: list[tuple[float, EngineName, Variant]] = []
    failures: dict[tuple[str, str], list[str]] = {}  # engine and reason: the precisions

    def failed(name: str, variant: Variant, error: Exception) -> None:
        failures.setdefault((name, one_line(error)), []).append(variant.precision)

    for name, variant in candidates:
        try:
            engine, _ = open_engine(name, variant)
        except Exception as error:  # each runtime has types of its own
            failed(name, variant, error)
            continue
        try:
            times.append((seconds_per_batch(engine, tiles), name, variant))
        except Exception as error:
            failed(name, variant, error)
        finally:
            engine.close()
    said = [f"{name} {', '.join(own)}: {why}" for (name, why), own in failures.items()]
    if not times:
        raise EdgelungError(f"no GPU engine runs here: {'; '.join(said)}")
    times.sort(key=lambda timed: timed[0])
    _, name, variant = times[0]
    reason = _reason(times, said)
    engine, difference = open_engine(name, variant)
    choice = {"engine": name, "precision": variant.precision, "reason": reason}
    cache.put_if_possible(key, json.dumps(choice).encode())
    return Fastest(engine, variant, difference, reason)


def seconds_per_batch(
    engine: Engine, tiles: Tiles, warm_up: int = WARM_UP, repeats: int = REPEATS
) -> float:
    """Median seconds of one batch, after warming up."""
    for _ in range(warm_up):
        engine.infer(tiles)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        engine.infer(tiles)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def batch_of(tiles: Tiles, count: int = BATCH) -> Tiles:
    """`count` tiles, repeating those given (G, size, size, 3)."""
    return np.ascontiguousarray(tiles[np.arange(count) % len(tiles)])


def _remembered(
    kept: bytes, candidates: Sequence[Candidate], open_engine: Opener
) -> Fastest | None:
    try:
        choice = json.loads(kept)
        named = (choice["engine"], choice["precision"])
        reason = str(choice["reason"])
    except (ValueError, KeyError, TypeError):
        return None
    for name, variant in candidates:
        if (name, variant.precision) == named:
            try:
                engine, difference = open_engine(name, variant)
            except Exception as error:  # removed, or broken since: choose again
                note(f"{name} {variant.precision} was fastest and no longer runs: {error}")
                return None
            return Fastest(engine, variant, difference, f"{reason} (remembered)")
    return None


def _reason(times: Sequence[tuple[float, EngineName, Variant]], failures: Sequence[str]) -> str:
    """From the times, fastest first."""
    measured = ", ".join(f"{name} {v.precision} {1e3 * taken:.2f} ms" for taken, name, v in times)
    words = [f"auto: fastest on this GPU at batch {BATCH}: {measured}"]
    precisions = [variant.precision for _, _, variant in times]
    if not precisions[0].startswith("int8") and any(p.startswith("int8") for p in precisions):
        words.append(f"INT8 is slower than {precisions[0].upper()} here")
    return "; ".join([*words, *failures])


def _key(bundle: Bundle, device: Device, candidates: Sequence[Candidate]) -> Key:
    graphs = sorted({sha256_file(variant.path) for _, variant in candidates})
    names = ",".join(dict.fromkeys(name for name, _ in candidates))
    return {
        "kind": "choice",
        "graph": sha256_bytes("".join(graphs).encode()),
        "gpu": device.name,
        "architecture": device.architecture,
        "flavour": names,
        "driver": device.driver,
        **{
            f"version of {package}": version(package) or "none"
            for package in ("edgelung", *GPU_PACKAGES)
        },
    }
