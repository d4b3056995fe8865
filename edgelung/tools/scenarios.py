"""MLPerf's scenarios SingleStream, Server and Offline, as loops over a query.

They know nothing of bundles or files. The clock is a parameter, so that tests need not wait.
"""

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from edgelung.artifacts.bench_result import Percentiles, ServerRate
from edgelung.engines.base import Engine, Tiles

WARM_UP = 10  # queries before the clock starts
TURN_SECONDS = 1.0  # of one kind of query before the next has its turn
MIN_QUERIES = 100  # fewer make no p99
SERVER_STEPS = 6  # halvings of the interval that contains the highest rate
LOST_FACTOR = 20  # a latency of so many bounds: the queue grows without end

Query = Callable[[int], object]  # called with the number of the query


@dataclass(frozen=True)
class Clock:
    """Seconds of a monotonic clock, and how to wait."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


REAL_CLOCK = Clock()


def percentiles(seconds: Sequence[float]) -> Percentiles:
    """Percentiles of durations in seconds, in milliseconds."""
    p50, p90, p99 = np.percentile(np.array(seconds) * 1000, [50, 90, 99])
    return Percentiles(
        queries=len(seconds),
        p50_ms=round(float(p50), 3),
        p90_ms=round(float(p90), 3),
        p99_ms=round(float(p99), 3),
    )


def single_stream(
    queries: Mapping[str, Query], seconds: float, clock: Clock = REAL_CLOCK
) -> dict[str, Percentiles]:
    """Latency of one query at a time, by kind of query.

    The kinds take turns of a second until `seconds` have passed and each kind has MIN_QUERIES. A
    shared machine's speed drifts, so what is compared is measured side by side. The turns are not
    single queries, because then each kind would find the caches as another kind left them.
    """
    latencies: dict[str, list[float]] = {name: [] for name in queries}
    end = clock.now() + seconds
    while clock.now() < end or min(map(len, latencies.values())) < MIN_QUERIES:
        for name, query in queries.items():
            measured = latencies[name]
            for _ in range(WARM_UP):
                query(len(measured))
            turn_end = clock.now() + TURN_SECONDS
            while (start := clock.now()) < turn_end:
                query(len(measured))
                measured.append(clock.now() - start)
    return {name: percentiles(measured) for name, measured in latencies.items()}


def offline_rate(
    batches: Generator[Sequence[object], None, None],
    seconds: float,
    *,
    warm_up_batches: int,
    clock: Clock = REAL_CLOCK,
) -> float:
    """Items per second that come out of `batches`, which must not end. Closes it."""
    for _ in range(warm_up_batches):
        next(batches)
    start, done = clock.now(), 0
    for batch in batches:
        done += len(batch)
        if (passed := clock.now() - start) > seconds:
            batches.close()
            return done / passed
    raise AssertionError("the batches ended")


def offline_model_rate(
    engine: Engine, batch: Tiles, seconds: float, clock: Clock = REAL_CLOCK
) -> float:
    """Tiles per second of the engine alone, with `engine.concurrency` batches in flight.

    batch: uint8 (N, H, W, 3), predicted again and again.
    """
    rates = [0.0] * engine.concurrency
    errors: list[Exception] = []

    def run_stream(index: int) -> None:
        try:
            engine.infer(batch)
            start, done = clock.now(), 0
            while (passed := clock.now() - start) < seconds:
                engine.infer(batch)
                done += len(batch)
            rates[index] = done / passed
        except Exception as error:  # raised below, in the calling thread
            errors.append(error)

    _run_threads(run_stream, engine.concurrency)
    if errors:
        raise errors[0]
    return sum(rates)


def server_rate(
    latencies_at: Callable[[float], Sequence[float]], highest: float, bound_ms: float
) -> ServerRate:
    """The highest rate at which 99 % of the queries are answered within the bound.

    Args:
        latencies_at: runs queries at a rate (per second) and returns their latencies in seconds;
            empty if the queue grew without end.
        highest: a rate that is too high; the search starts at 90 % of it and halves the interval.
        bound_ms: the bound on p99.
    """
    low, high = 0.0, highest
    best = ServerRate(queries_per_second=0.0, bound_ms=bound_ms, queries=0)
    for step in range(SERVER_STEPS):
        rate = (low + high) / 2 if step else 0.9 * highest
        latencies = latencies_at(rate)
        measured = percentiles(latencies) if latencies else None
        if measured is not None and measured.p99_ms <= bound_ms:
            low = rate
            best = ServerRate(
                queries_per_second=round(rate, 1),
                bound_ms=bound_ms,
                queries=measured.queries,
                p50_ms=measured.p50_ms,
                p90_ms=measured.p90_ms,
                p99_ms=measured.p99_ms,
            )
        else:
            high = rate
    return best


def poisson_latencies(
    query: Query,
    rate: float,
    seconds: float,
    *,
    workers: int,
    bound_ms: float,
    clock: Clock = REAL_CLOCK,
) -> list[float]:
    """Seconds from each query's arrival to its answer; empty if the queue grew without end.

    Queries arrive at `rate` per second, at intervals drawn from an exponential distribution (the
    same in every run), for about `seconds`, and wait for one of `workers` threads. Raises the
    first error of a query.
    """
    count = max(MIN_QUERIES, round(rate * seconds))
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count)).tolist()
    waiting: SimpleQueue[int | None] = SimpleQueue()
    latencies: list[float] = []
    errors: list[Exception] = []
    begin = clock.now() + 0.01

    def work(_: int) -> None:
        while (number := waiting.get()) is not None:
            try:
                query(number)
            except Exception as error:
                errors.append(error)
                return
            latencies.append(clock.now() - begin - due[number])

    def arrive() -> bool:
        """Send every query when it is due; False if the queue grows without end."""
        for number in range(count):
            if (pause := begin + due[number] - clock.now()) > 0:
                clock.sleep(pause)
            if errors or (latencies and latencies[-1] > LOST_FACTOR * bound_ms / 1000):
                return False
            waiting.put(number)
        return True

    threads = _start_threads(work, workers)
    try:
        all_sent = arrive()
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return latencies if all_sent else []


def _run_threads(work: Callable[[int], None], count: int) -> None:
    for thread in _start_threads(work, count):
        thread.join()


def _start_threads(work: Callable[[int], None], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    return threads
