"""`edgelung bench`: how fast this machine is with a bundle, in MLPerf's scenarios.

MLPerf-style, that is: its scenarios and percentiles (SingleStream p90, Server p99 under a bound,
Offline samples a second), in runs shorter than it demands and with no submission's rules. 'Model'
is tiles in memory to probabilities; 'end to end' is a file's name to its row, decoding included.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores, host
from edgelung.core.typed_json import plain
from edgelung.engines.base import Engine, Tiles
from edgelung.engines.choose import open_engine
from edgelung.engines.fastest import batch_of
from edgelung.engines.names import EngineName
from edgelung.inference.pipeline import default_batch_size, predict_batch, predict_batches
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile

MOST_FILES = 512  # in turn; decoded they also fill memory for the model-only figures
WARM_UP = 10  # queries before the clock starts
TURN_SECONDS = 1.0
MIN_QUERIES = 100  # fewer make no p99
FIXED_LOOP = 250_000  # additions: a few milliseconds, as a tile takes
SERVER_STEPS = 6  # halvings of the interval that the highest rate lies in
Query = Callable[[int], object]


@dataclass(frozen=True)
class _Samples:
    files: list[FoundFile]
    tiles: Tiles  # (N, H, W, 3)
    origin: str


def bench(
    bundle: Bundle,
    folder: Path | None,
    *,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    threads: int | None = None,
    seconds: float = 10.0,
    bound_ms: float = 100.0,
    on_step: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure; every scenario runs `seconds`. Milliseconds and tiles per second, as JSON."""
    threads = threads or available_cores()
    on_step("reading tiles")
    samples = _samples(bundle, folder)
    files, tiles, count = samples.files, samples.tiles, len(samples.files)

    on_step("SingleStream")
    chosen = open_engine(bundle, engine, precision, threads, latency=True)
    soon = chosen.engine

    def model(i: int) -> object:
        return soon.infer(tiles[i % count][None])

    def whole(i: int) -> object:
        return predict_batch([files[i % count]], bundle.reader, soon)

    single = _single_stream(
        {
            "read and decode": lambda i: read_tile(files[i % count].location, bundle.reader),
            "model": model,
            "end_to_end": whole,
            "fixed_loop": _fixed_loop,
        },
        2 * seconds,
    )
    parts = single["read and decode"]["p50_ms"] + single["model"]["p50_ms"]
    soon.close()

    on_step("Offline")
    many = open_engine(bundle, engine, precision, threads).engine
    batch_size = default_batch_size(many)
    offline = {
        "model": _offline_model(many, tiles, batch_size, seconds),
        "end_to_end": _offline(many, bundle.reader, files, batch_size, threads, seconds),
    }
    on_step("Server")
    server = {
        "model": _server(
            lambda i: many.infer(tiles[i % count][None]), many, offline["model"], bound_ms, seconds
        ),
        "end_to_end": _server(
            lambda i: predict_batch([files[i % count]], bundle.reader, many),
            many,
            offline["end_to_end"],
            bound_ms,
            seconds,
        ),
    }
    many.close()
    return {
        "kind": "edgelung bench",
        "style": "MLPerf-style scenarios, shorter than MLPerf demands",
        "note": RESEARCH_USE_ONLY,
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.sha256,
        "engine": many.name,
        "device": many.device,
        "precision": chosen.variant.precision,
        "floating_point": many.float_type,
        "choice": chosen.reason,
        "threads": threads,
        "streams": many.concurrency,
        "batch_size": batch_size,
        "seconds": seconds,
        "samples": {"files": count, "origin": samples.origin, "size": bundle.reader.size},
        "single_stream": single
        | {"end_to_end_over_parts": round(single["end_to_end"]["p50_ms"] / parts, 3)},
        "server": server,
        "offline_tiles_per_second": {k: round(v, 1) for k, v in offline.items()},
        "host": plain(host()),
    }


def _samples(bundle: Bundle, folder: Path | None) -> _Samples:
    """Tiles that can be read, at most MOST_FILES; the bundle's golden tiles without a folder."""
    if folder is None:
        found = [FoundFile(t.path.name, str(t.path), listed=True) for t in bundle.golden]
        origin = "golden tiles of the bundle"
    else:
        found = [f for f in itertools.islice(find_files(folder), 100_000) if f.is_image]
        found = found[:: max(1, len(found) // MOST_FILES)][:MOST_FILES]
        origin = "folder"
    files, tiles = [], []
    for file in found:
        try:
            tiles.append(read_tile(file.location, bundle.reader))
        except TileError:
            continue
        files.append(file)
    if not files:
        raise EdgelungError(f"{folder} holds no tile that can be read; expected a folder of tiles")
    return _Samples(files, np.stack(tiles), origin)


def _fixed_loop(i: int) -> object:
    """The same arithmetic every time, one thread: how much the machine itself scatters."""
    return sum(range(FIXED_LOOP))


def _single_stream(queries: dict[str, Query], seconds: float) -> dict[str, Any]:
    """One query at a time, the next as soon as the last is answered; each kind for a while, in
    turn, because a shared machine's speed drifts: what is compared is measured side by side.

    Not query by query: a kind would find the caches as another left them.
    """
    latencies: dict[str, list[float]] = {name: [] for name in queries}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, latencies.values())) < MIN_QUERIES:
        for name, query in queries.items():
            found = latencies[name]
            for _ in range(WARM_UP):
                query(len(found))
            turn = time.perf_counter() + TURN_SECONDS
            while (start := time.perf_counter()) < turn:
                query(len(found))
                found.append(time.perf_counter() - start)
    return {name: _percentiles(found) for name, found in latencies.items()}


def _offline(
    engine: Engine,
    reader: ReaderSpec,
    files: Sequence[FoundFile],
    batch_size: int,
    threads: int,
    seconds: float,
) -> float:
    """Tiles a second through the folder pipeline, once every stream has given a batch."""
    batches = predict_batches(
        itertools.cycle(files), reader, engine, batch_size=batch_size, threads=threads
    )
    for _ in range(engine.concurrency):
        next(batches)
    start, done = time.perf_counter(), 0
    for rows in batches:
        done += len(rows)
        if (passed := time.perf_counter() - start) > seconds:
            batches.close()
            return done / passed
    raise AssertionError("a cycle does not end")


def _offline_model(engine: Engine, tiles: Tiles, batch_size: int, seconds: float) -> float:
    """Tiles a second of the engine alone, with as many batches in flight as it takes."""
    batch = batch_of(tiles, batch_size)
    done = [0] * engine.concurrency
    passed = [0.0] * engine.concurrency

    def work(k: int) -> None:
        engine.infer(batch)
        start = time.perf_counter()
        while passed[k] < seconds:
            engine.infer(batch)
            done[k] += len(batch)
            passed[k] = time.perf_counter() - start

    _together(work, engine.concurrency)
    return sum(n / s for n, s in zip(done, passed, strict=True))


def _server(
    query: Query, engine: Engine, highest: float, bound_ms: float, seconds: float
) -> dict[str, Any]:
    """The highest rate of Poisson arrivals at which 99 % are answered within the bound."""
    low, high = 0.0, highest
    best: dict[str, Any] = {"queries_per_second": 0.0, "bound_ms": bound_ms, "queries": 0}
    for step in range(SERVER_STEPS):
        rate = (low + high) / 2 if step else 0.9 * highest
        latencies = _arrivals(query, engine.concurrency, rate, seconds / 2, bound_ms)
        found = _percentiles(latencies) if latencies else None
        if found and found["p99_ms"] <= bound_ms:
            low = rate
            best = {"queries_per_second": round(rate, 1), "bound_ms": bound_ms, **found}
        else:
            high = rate
    return best


def _arrivals(
    query: Query, workers: int, rate: float, seconds: float, bound_ms: float
) -> list[float]:
    """Seconds from each query's arrival to its answer; empty where the queue ran away."""
    rng = np.random.default_rng(0)
    count = max(MIN_QUERIES, round(rate * seconds))
    due = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    waiting: SimpleQueue[int | None] = SimpleQueue()
    latencies: list[float] = []
    errors: list[Exception] = []
    begin = time.perf_counter() + 0.01

    def work(_: int) -> None:
        while (i := waiting.get()) is not None:
            try:
                query(i)
            except Exception as error:
                errors.append(error)
                return
            latencies.append(time.perf_counter() - begin - due[i])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(workers)]
    for thread in threads:
        thread.start()
    lost = False
    for i in range(count):
        if (pause := begin + due[i] - time.perf_counter()) > 0:
            time.sleep(pause)
        lost = bool(errors) or (bool(latencies) and latencies[-1] > 20 * bound_ms / 1000)
        if lost:
            break
        waiting.put(i)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [] if lost else latencies


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _percentiles(seconds: Sequence[float]) -> dict[str, Any]:
    p50, p90, p99 = np.percentile(np.array(seconds) * 1000, [50, 90, 99])
    return {
        "queries": len(seconds),
        "p50_ms": round(float(p50), 3),
        "p90_ms": round(float(p90), 3),
        "p99_ms": round(float(p99), 3),
    }
