"""The result of `edgelung bench`, a JSON file. Latencies are in milliseconds."""

from pathlib import Path

from msgspec import Struct, field

from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.files import check_output_file
from edgelung.core.system import Host

SCHEMA_VERSION = 1  # results without a version are read as version 1
KIND = "edgelung bench"  # marks the file: only a file with this mark is overwritten
REMEDY = "expected a file that `edgelung bench --out` wrote"


class Percentiles(Struct, frozen=True, kw_only=True):
    """Latency percentiles over `queries` queries."""

    queries: int
    p50_ms: float
    p90_ms: float
    p99_ms: float


class SingleStream(Struct, frozen=True, kw_only=True):
    """One query at a time.

    `end_to_end_over_parts`: p50 from a file to its row, divided by the sum of the p50 of reading
    and of the model. `fixed_loop`: a constant computation; its spread is the noise of the machine.
    """

    read_and_decode: Percentiles = field(name="read and decode")
    model: Percentiles
    end_to_end: Percentiles
    fixed_loop: Percentiles
    end_to_end_over_parts: float


class ServerRate(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The highest rate of Poisson arrivals whose p99 stays within the bound, and its latencies.

    If no rate stays within the bound, the rate and the queries are 0 and the percentiles are None.
    """

    queries_per_second: float
    bound_ms: float
    queries: int
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None


class Server(Struct, frozen=True, kw_only=True):
    """The Server scenario, from tiles in memory and from files."""

    model: ServerRate
    end_to_end: ServerRate


class Offline(Struct, frozen=True, kw_only=True):
    """Tiles per second with all tiles available at once, from memory and from files."""

    model: float
    end_to_end: float


class Samples(Struct, frozen=True, kw_only=True):
    """The tiles: their number, their origin, and the side they are resized to, in pixels."""

    files: int
    origin: str
    size: int


class BenchResult(Struct, frozen=True, kw_only=True):
    """The result of `edgelung bench`. `seconds`: duration of each measurement."""

    kind: str
    schema_version: int = 1
    style: str
    note: str
    bundle: str
    bundle_sha256: str
    engine: str
    device: str
    precision: str
    floating_point: str
    choice: str
    threads: int
    streams: int
    batch_size: int
    seconds: float
    samples: Samples
    single_stream: SingleStream
    server: Server
    offline_tiles_per_second: Offline
    host: Host


def check_bench_path(path: Path) -> None:
    """Raise EdgelungError if `path` is not writable, or is a file other than a result."""
    check_output_file(path)
    if path.exists() and path.stat().st_size and not _is_bench_result(path):
        raise EdgelungError(
            f"--out {path} exists and is no result of `edgelung bench`; it was left alone: choose "
            "another name"
        )


def write_bench(path: Path, result: BenchResult) -> None:
    """Write the result as JSON, atomically. Raises as `check_bench_path` does."""
    check_bench_path(path)
    typed_json.write(path, result)


def read_bench(path: Path) -> BenchResult:
    """Read a result. Raises EdgelungError that names the file and what is wrong with it."""
    result = typed_json.read(path, BenchResult, REMEDY, SCHEMA_VERSION)
    if result.kind != KIND:
        raise EdgelungError(f"{path} is no result of `edgelung bench`; {REMEDY}")
    return result


def _is_bench_result(path: Path) -> bool:
    try:
        content = typed_json.parse(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND
