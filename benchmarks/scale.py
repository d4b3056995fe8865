"""What a Ray cluster costs and brings: `infer --ray` against one process, and a model for many
machines.

    python benchmarks/scale.py TILES [--tiles N] [--repeats R] [--json FILE]

Starts a cluster on this machine: a head without CPUs, and nodes of one CPU each. Each way to run is
timed with few tiles and with many, in turn. A straight line through both gives its start-up cost
and its time per tile; the same line through the CPU time of the process that keeps the run gives
what that one process costs per tile, which no number of machines makes less.

The model, for n machines of c cores and N tiles:

    one machine     T1 = s1 + N t / c
    the cluster     Tn = sn + N max(t / (n c), d)

t: seconds of a core per tile (one process, one thread). s1, sn: start-up of the plain run and of
the cluster's. d: CPU seconds per tile of the process that keeps the run (lists, journal, rows).
It leaves out: network and storage, which all nodes share; a slow last task; nodes that end. Where d
is lost in the noise of the measurement (0 or less), it is given as None: then the cluster's times
are those of machines that wait for nothing, and the limit is not known. Take more --tiles.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
from rich.console import Console
from rich.table import Table

EDGELUNG = [sys.executable, "-m", "edgelung"]
MACHINES = (8, 64, 1000)
CORES = 8  # of a machine in the model
TILES = (10_000, 100_000, 1_000_000, 10_000_000)  # in the model


@dataclass(frozen=True)
class Line:
    """Seconds of a run: `start` + tiles × `per_tile`."""

    start: float
    per_tile: float

    @classmethod
    def through(cls, few: int, seconds: float, many: int, more_seconds: float) -> "Line":
        """The line through two runs."""
        per_tile = (more_seconds - seconds) / (many - few)
        return cls(seconds - few * per_tile, per_tile)


@dataclass(frozen=True)
class Way:
    """A way to run: its wall time, and the CPU time of the process that keeps the run."""

    name: str
    wall: Line
    cpu: Line
    seconds: dict[int, list[float]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of tiles")
    parser.add_argument("--tiles", type=int, default=4000, help="tiles of the longer runs")
    parser.add_argument("--few", type=int, default=64, help="tiles of the shorter runs")
    parser.add_argument("--repeats", type=int, default=3)
    default = Path(__file__).parent / "results" / "scale.json"
    parser.add_argument("--json", type=Path, default=default)
    args = parser.parse_args()
    if not 0 < args.few < args.tiles:
        parser.error("--few is less than --tiles")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, cluster(2) as address, cluster(1) as small:
        work = Path(name)
        sizes = (args.few, args.tiles)
        folders = {size: copy_tiles(args.folder, work / str(size), size) for size in sizes}
        words = {
            "one process, 1 thread": ["--threads", "1"],
            "one process, 2 threads": ["--threads", "2"],
            "Ray, 1 node of 1 core": ["--ray", small],
            "Ray, 2 nodes of 1 core": ["--ray", address],
        }
        ways = measure(words, folders, args.repeats)
    result = {
        "tiles": args.tiles,
        "few": args.few,
        "repeats": args.repeats,
        "ways": [asdict(way) for way in ways],
        "model": model(ways),
        "machine": machine.describe(),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    show(ways, result["model"])
    print(f"took {result['seconds']:.0f} s")


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """A cluster of so many nodes of one core; its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            started.add_node(num_cpus=1)
        started.wait_for_nodes()
        yield str(started.address)
    finally:
        started.shutdown()


def copy_tiles(source: Path, folder: Path, count: int) -> Path:
    """A folder with exactly so many tiles; those of the source repeat if there are fewer."""
    suffixes = (".jpeg", ".jpg", ".png", ".tif")
    tiles = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    if not tiles:
        raise SystemExit(f"no tiles in {source}")
    folder.mkdir()
    for number in range(count):
        tile = tiles[number % len(tiles)]
        shutil.copy(tile, folder / f"{number:07}{tile.suffix}")
    return folder


def measure(words: dict[str, list[str]], folders: dict[int, Path], repeats: int) -> list[Way]:
    """Time all ways in turn, so that a change of the machine's speed meets them alike."""
    wall: dict[tuple[str, int], list[float]] = {}
    cpu: dict[tuple[str, int], list[float]] = {}
    for repeat in range(-1, repeats):  # the first fills the caches and does not count
        for name, more in words.items():
            for size, folder in folders.items():
                seconds, own = run(folder, more)
                if repeat >= 0:
                    wall.setdefault((name, size), []).append(seconds)
                    cpu.setdefault((name, size), []).append(own)
    few, many = folders
    ways = []
    for name in words:
        lines = [
            Line.through(
                few, statistics.median(of[name, few]), many, statistics.median(of[name, many])
            )
            for of in (wall, cpu)
        ]
        ways.append(Way(name, *lines, {size: wall[name, size] for size in folders}))
    return ways


def run(folder: Path, more: list[str]) -> tuple[float, float]:
    """Wall seconds of a run, and the CPU seconds of its own process: Ray's are no children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    out = folder.with_suffix(".csv")
    command = [*EDGELUNG, "infer", folder, "--out", out, "--restart", "--engine", "openvino", *more]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def model(ways: list[Way]) -> dict[str, object]:
    """What the formula of the module's text gives for these measurements."""
    one, ray = ways[0], ways[3]
    t = one.wall.per_tile
    d = ray.cpu.per_tile if ray.cpu.per_tile > 0 else None
    rows = []
    for machines in MACHINES:
        for tiles in TILES:
            alone = one.wall.start + tiles * t / CORES
            share = t / (machines * CORES)
            together = ray.wall.start + tiles * max(share, d or 0.0)
            rows.append(
                {
                    "machines": machines,
                    "tiles": tiles,
                    "one_machine_seconds": round(alone, 1),
                    "cluster_seconds": round(together, 1),
                    "speed_up": round(alone / together, 2),
                    "limit": "not known"
                    if d is None
                    else "machines"
                    if share > d
                    else "the one process",
                }
            )
    return {
        "formula": "T1 = s1 + N t / c;  Tn = sn + N max(t / (n c), d)",
        "t_core_seconds_per_tile": t,
        "d_cpu_seconds_per_tile": d,
        "s1_seconds": one.wall.start,
        "sn_seconds": ray.wall.start,
        "cores_per_machine": CORES,
        "machines_that_the_one_process_can_feed": round(t / (CORES * d), 1) if d else None,
        "rows": rows,
    }


def show(ways: list[Way], found: dict[str, object]) -> None:
    """Print both tables."""
    table = Table("way", "start-up s", "ms per tile", "own CPU, ms per tile")
    for way in ways:
        own = f"{1e3 * way.cpu.per_tile:.2f}"
        table.add_row(way.name, f"{way.wall.start:.1f}", f"{1e3 * way.wall.per_tile:.2f}", own)
    Console().print(table)
    table = Table("machines", "tiles", "one machine s", "cluster s", "speed-up", "limited by")
    rows = found["rows"]
    assert isinstance(rows, list)
    for row in rows:
        table.add_row(
            *(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        )
    Console().print(table)


if __name__ == "__main__":
    main()
