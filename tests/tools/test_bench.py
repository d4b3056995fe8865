"""The benchmark: what each scenario counts, by a clock that the test moves."""

import json
import threading
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from edgelung.artifacts.bench_result import (
    Percentiles,
    check_bench_path,
    read_bench,
    write_bench,
)
from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.engines.base import Output, Tiles
from edgelung.tools.bench import bench
from edgelung.tools.scenarios import (
    MIN_QUERIES,
    SERVER_STEPS,
    TURN_SECONDS,
    WARM_UP,
    Clock,
    offline_model_rate,
    offline_rate,
    percentiles,
    poisson_latencies,
    server_rate,
    single_stream,
)

ROOT = Path(__file__).parents[2]
BATCH = np.zeros((4, 8, 8, 3), np.uint8)


class FakeTime:
    """A clock that moves only when it is told to; safe for threads."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self._lock = threading.Lock()

    def pass_by(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, sleep=self.pass_by)


class FakeEngine:
    """Takes `seconds` of fake time for a batch."""

    name, device, float_type = "fake", "CPU", "fp32"

    def __init__(self, fake: FakeTime, seconds: float, concurrency: int = 1) -> None:
        self._fake, self._seconds = fake, seconds
        self.concurrency = concurrency

    def infer(self, tiles: Tiles) -> Output:
        self._fake.pass_by(self._seconds)
        return Output(np.full((len(tiles), 2), 0.5, np.float32))

    def close(self) -> None:
        """Nothing to release."""


def test_percentiles_are_in_milliseconds() -> None:
    durations = [i / 1000 for i in range(101)]
    assert percentiles(durations) == Percentiles(queries=101, p50_ms=50, p90_ms=90, p99_ms=99)


def test_single_stream_times_each_kind_of_query_by_itself() -> None:
    fake = FakeTime()
    numbers: list[int] = []

    def quick(number: int) -> None:
        numbers.append(number)
        fake.pass_by(1 / 64)

    def slow(number: int) -> None:
        fake.pass_by(1 / 16)

    measured = single_stream({"quick": quick, "slow": slow}, 0.5, fake.clock)
    assert (measured["quick"].p50_ms, measured["quick"].p99_ms) == (15.625, 15.625)
    assert (measured["slow"].p50_ms, measured["slow"].p99_ms) == (62.5, 62.5)
    # A turn of a second holds 64 quick queries and 16 slow ones: seven turns reach MIN_QUERIES.
    assert measured["slow"].queries == 7 * 16 * TURN_SECONDS >= MIN_QUERIES
    assert measured["quick"].queries == 7 * 64 * TURN_SECONDS
    assert len(numbers) == measured["quick"].queries + 7 * WARM_UP


def test_single_stream_goes_on_for_the_time_that_was_asked_for() -> None:
    fake = FakeTime()
    start = fake.seconds
    measured = single_stream({"only": lambda number: fake.pass_by(1 / 64)}, 10, fake.clock)
    assert fake.seconds - start >= 10
    assert measured["only"].queries >= 8 * 64


def test_offline_leaves_the_first_batches_out_and_closes_the_rest() -> None:
    fake = FakeTime()
    closed = []

    def batches() -> Generator[list[int], None, None]:
        try:
            fake.pass_by(50)  # the start is slow
            while True:
                fake.pass_by(0.5)
                yield [0] * 16
        finally:
            closed.append(True)

    assert offline_rate(batches(), 10, warm_up_batches=2, clock=fake.clock) == 32
    assert closed


def test_offline_of_the_model_counts_tiles_per_second() -> None:
    fake = FakeTime()
    assert offline_model_rate(FakeEngine(fake, 0.25), BATCH, 2, fake.clock) == 16


def test_offline_of_the_model_keeps_every_stream_busy() -> None:
    fake = FakeTime()
    together = threading.Barrier(2)
    warm = threading.local()

    class TwoStreams(FakeEngine):
        def infer(self, tiles: Tiles) -> Output:
            if not hasattr(warm, "up"):
                warm.up = together.wait(timeout=30)  # fails if one stream runs after the other
            return super().infer(tiles)

    assert offline_model_rate(TwoStreams(fake, 0.25, 2), BATCH, 2, fake.clock) > 0


def test_an_error_of_the_engine_ends_the_benchmark() -> None:
    class Broken(FakeEngine):
        def infer(self, tiles: Tiles) -> Output:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        offline_model_rate(Broken(FakeTime(), 1), BATCH, 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        poisson_latencies(
            lambda number: Broken(FakeTime(), 1).infer(BATCH), 1e4, 0.1, workers=2, bound_ms=100
        )


@pytest.mark.parametrize("capacity", [40.0, 73.0, 88.0])
def test_the_server_search_comes_close_to_the_highest_rate(capacity: float) -> None:
    tried: list[float] = []

    def latencies_at(rate: float) -> list[float]:
        tried.append(rate)
        return [0.05] * 200 if rate <= capacity else [0.05] * 100 + [0.2] * 100

    found = server_rate(latencies_at, highest=100.0, bound_ms=100.0)
    assert len(tried) == SERVER_STEPS
    assert tried[0] == 90
    assert capacity - 100 / 2 ** (SERVER_STEPS - 1) <= found.queries_per_second <= capacity
    assert (found.queries, found.p99_ms) == (200, 50.0)


def test_a_server_that_never_keeps_the_bound_has_no_rate_and_no_percentiles() -> None:
    found = server_rate(lambda rate: [], highest=100.0, bound_ms=5.0)
    assert (found.queries_per_second, found.queries, found.p99_ms) == (0.0, 0, None)
    assert found.bound_ms == 5.0


def test_every_query_that_arrives_is_answered_once() -> None:
    fake = FakeTime()
    answered: list[int] = []
    latencies = poisson_latencies(
        answered.append, rate=50, seconds=4, workers=2, bound_ms=1e6, clock=fake.clock
    )
    assert sorted(answered) == list(range(200))
    assert len(latencies) == 200


def test_a_queue_that_grows_without_end_is_given_up() -> None:
    fake = FakeTime()
    sender = threading.current_thread()

    def now() -> float:  # answers come a thousand seconds late
        late = 0 if threading.current_thread() is sender else 1000
        return fake.seconds + late

    def sleep(seconds: float) -> None:
        fake.pass_by(seconds)
        time.sleep(0.001)  # lets the worker answer

    clock = Clock(now, sleep)
    assert poisson_latencies(print, 10, 1, workers=1, bound_ms=1, clock=clock) == []


def test_bench_measures_every_scenario_and_its_result_makes_the_round_trip(
    bundle: Bundle, tiles: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    result = bench(bundle, tiles, threads=2, seconds=0.1, on_step=steps.append)
    assert steps == ["reading tiles", "SingleStream", "Offline", "Server"]
    assert result.samples.files == 108
    assert result.threads == result.streams == 2
    single, offline = result.single_stream, result.offline_tiles_per_second
    for latency in (single.read_and_decode, single.model, single.end_to_end, single.fixed_loop):
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms
        assert latency.queries >= MIN_QUERIES
    assert min(offline.model, offline.end_to_end) > 0
    assert result.server.model.bound_ms == result.server.end_to_end.bound_ms == 100
    write_bench(tmp_path / "bench.json", result)
    assert read_bench(tmp_path / "bench.json") == result


def test_a_result_of_edgelung_0_1_is_read_and_may_be_overwritten(tmp_path: Path) -> None:
    old = ROOT / "benchmarks" / "results" / "bench.json"
    result = read_bench(old)
    assert result.schema_version == 1
    path = tmp_path / "bench.json"
    path.write_bytes(old.read_bytes())
    write_bench(path, result)
    assert json.loads(path.read_text()) == json.loads(old.read_text()) | {"schema_version": 1}


@pytest.mark.parametrize("text", ["precious", "[1]", '{"kind": "mine"}'])
def test_only_a_result_is_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(EdgelungError, match="was left alone"):
        check_bench_path(path)
    with pytest.raises(EdgelungError):
        read_bench(path)
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone" / "bench.json"):
        with pytest.raises(EdgelungError, match=r"--out .*folder"):
            check_bench_path(path)


def test_a_newer_result_is_refused(tmp_path: Path) -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "bench.json").read_text())
    (tmp_path / "bench.json").write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(EdgelungError, match="update edgelung"):
        read_bench(tmp_path / "bench.json")


def test_a_folder_without_a_tile_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no tile")
    with pytest.raises(EdgelungError, match="no tile that can be read"):
        bench(bundle, tmp_path)


def test_the_command_prints_what_it_writes(bundle_folder: Path, tmp_path: Path, cli) -> None:
    words = ["bench", bundle_folder, "--seconds", "0.1", "--threads", "2", "--json"]
    done = cli(*words, "--out", "bench.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "bench.json").read_text())
    assert json.loads(done.stdout) == written
    assert "asked" not in written["choice"], "neither engine nor precision was named"
    (tmp_path / "mine.txt").write_text("precious")
    refused = cli(*words, "--out", "mine.txt")
    assert refused.returncode == 2
    assert "was left alone" in refused.stderr
