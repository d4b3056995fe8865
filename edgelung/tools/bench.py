"""`edgelung bench`: how fast this machine is with a bundle, in MLPerf's scenarios.

MLPerf-style means: its scenarios and percentiles (SingleStream p90, Server p99 under a bound,
Offline tiles per second), in runs shorter than MLPerf demands and without the rules of a
submission. 'Model' is from tiles in memory to probabilities; 'end to end' is from the name of a
file to its row, decoding included.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.bench_result import (
    KIND,
    SCHEMA_VERSION,
    BenchResult,
    Offline,
    Samples,
    Server,
    SingleStream,
)
from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores, host
from edgelung.engines.base import Engine, Tiles
from edgelung.engines.choose import open_engine
from edgelung.engines.fastest import batch_of
from edgelung.engines.names import EngineName
from edgelung.inference.pipeline import default_batch_size, predict_batch, predict_batches
from edgelung.inference.reading import FileReading
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile
from edgelung.tools.scenarios import (
    offline_model_rate,
    offline_rate,
    poisson_latencies,
    server_rate,
    single_stream,
)

MAX_FILES = 512  # used in turn; decoded, they also fill memory for the model's figures
MAX_LISTED = 100_000  # files of a folder among which these are picked
FIXED_LOOP = 250_000  # additions: a few milliseconds, as a tile takes


@dataclass(frozen=True)
class _Workload:
    """The tiles that are measured with, as files and decoded."""

    files: list[FoundFile]
    tiles: Tiles  # (N, H, W, 3)
    origin: str
    reader: ReaderSpec

    def decode(self, number: int) -> object:
        """Query: read one file."""
        return read_tile(self._file(number).location, self.reader)

    def run_model(self, engine: Engine, number: int) -> object:
        """Query: predict one decoded tile."""
        return engine.infer(self.tiles[number % len(self.tiles)][None])

    def run_end_to_end(self, engine: Engine, number: int) -> object:
        """Query: one file to its row."""
        return predict_batch([self._file(number)], FileReading(self.reader), engine)

    def _file(self, number: int) -> FoundFile:
        return self.files[number % len(self.files)]


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
) -> BenchResult:
    """Measure a bundle on this machine.

    Args:
        bundle: the opened bundle.
        folder: tiles to measure with; None takes the bundle's golden tiles.
        engine, precision: None chooses as `edgelung infer` does.
        threads: CPU threads; None: all cores that this process may use.
        seconds: length of each run.
        bound_ms: what the p99 of the Server scenario must stay within.
        on_step: called with the name of each step as it begins.

    Raises:
        EdgelungError: no engine works, or the folder holds no tile that can be read.
    """
    threads = threads or available_cores()
    on_step("reading tiles")
    workload = _read_workload(bundle, folder)

    on_step("SingleStream")
    chosen = open_engine(bundle, engine, precision, threads, latency=True)
    single = _measure_single_stream(workload, chosen.engine, seconds)
    chosen.engine.close()

    on_step("Offline")
    same = EngineName(chosen.engine.name), chosen.variant.precision
    many = open_engine(bundle, *same, threads).engine
    batch_size = default_batch_size(many)
    offline = _measure_offline(workload, many, batch_size, threads, seconds)
    on_step("Server")
    server = _measure_server(workload, many, offline, bound_ms, seconds)
    many.close()
    return BenchResult(
        kind=KIND,
        schema_version=SCHEMA_VERSION,
        style="MLPerf-style scenarios, shorter than MLPerf demands",
        note=RESEARCH_USE_ONLY,
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        engine=many.name,
        device=many.device,
        precision=chosen.variant.precision,
        floating_point=many.float_type,
        choice=chosen.reason,
        threads=threads,
        streams=many.concurrency,
        batch_size=batch_size,
        seconds=seconds,
        samples=Samples(
            files=len(workload.files), origin=workload.origin, size=workload.reader.size
        ),
        single_stream=single,
        server=server,
        offline_tiles_per_second=Offline(
            model=round(offline.model, 1), end_to_end=round(offline.end_to_end, 1)
        ),
        host=host(),
    )


def _read_workload(bundle: Bundle, folder: Path | None) -> _Workload:
    """Tiles that can be read, at most MAX_FILES, spread evenly over the folder."""
    if folder is None:
        candidates = [
            FoundFile(t.file.path.name, str(t.file.path), listed=True) for t in bundle.golden
        ]
        origin = "golden tiles of the bundle"
    else:
        listed = itertools.islice(find_files(folder), MAX_LISTED)
        candidates = [file for file in listed if file.is_image]
        candidates = candidates[:: max(1, len(candidates) // MAX_FILES)][:MAX_FILES]
        origin = "folder"
    files, tiles = [], []
    for file in candidates:
        try:
            tiles.append(read_tile(file.location, bundle.reader))
        except TileError:
            continue
        files.append(file)
    if not files:
        raise EdgelungError(f"{folder} holds no tile that can be read; expected a folder of tiles")
    return _Workload(files, np.stack(tiles), origin, bundle.reader)


def _measure_single_stream(workload: _Workload, engine: Engine, seconds: float) -> SingleStream:
    latency = single_stream(
        {
            "decode": workload.decode,
            "model": partial(workload.run_model, engine),
            "end_to_end": partial(workload.run_end_to_end, engine),
            "fixed_loop": _run_fixed_loop,
        },
        2 * seconds,
    )
    decode, model, end_to_end = latency["decode"], latency["model"], latency["end_to_end"]
    return SingleStream(
        read_and_decode=decode,
        model=model,
        end_to_end=end_to_end,
        fixed_loop=latency["fixed_loop"],
        end_to_end_over_parts=round(end_to_end.p50_ms / (decode.p50_ms + model.p50_ms), 3),
    )


def _run_fixed_loop(number: int) -> object:
    """Query: the same arithmetic every time, on one thread. Its scatter is the machine's."""
    return sum(range(FIXED_LOOP))


def _measure_offline(
    workload: _Workload, engine: Engine, batch_size: int, threads: int, seconds: float
) -> Offline:
    batches = predict_batches(
        itertools.cycle(workload.files),
        FileReading(workload.reader),
        engine,
        batch_size=batch_size,
        threads=threads,
    )
    return Offline(
        model=offline_model_rate(engine, batch_of(workload.tiles, batch_size), seconds),
        end_to_end=offline_rate(batches, seconds, warm_up_batches=engine.concurrency),
    )


def _measure_server(
    workload: _Workload, engine: Engine, offline: Offline, bound_ms: float, seconds: float
) -> Server:
    """`offline`: the highest rates that the search starts from."""

    def latencies_at(query: Callable[[Engine, int], object], rate: float) -> list[float]:
        return poisson_latencies(
            partial(query, engine),
            rate,
            seconds / 2,
            workers=engine.concurrency,
            bound_ms=bound_ms,
        )

    return Server(
        model=server_rate(partial(latencies_at, workload.run_model), offline.model, bound_ms),
        end_to_end=server_rate(
            partial(latencies_at, workload.run_end_to_end), offline.end_to_end, bound_ms
        ),
    )
