"""Two installed versions of edgelung on the same folder, run in turns: ratios of time.

The machine may be busy: only the ratios within a pair say something. Each version has its own
cache, and one run before the pairs fills it. Compile the byte code of both beforehand
(`python -m compileall`) if the environment keeps Python from writing it.

    python benchmarks/pairs.py BEFORE/bin/edgelung NOW/bin/edgelung FOLDER [FOLDER…] --pairs 8

Prints a table and writes JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Measure each folder, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="the earlier version's `edgelung`")
    parser.add_argument("now", type=Path, help="the later version's `edgelung`")
    parser.add_argument("folders", type=Path, nargs="+", help="folders of tiles")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).parent / "results" / "pairs.json"
    )
    options = parser.parse_args()
    commands = {"before": options.before.absolute(), "now": options.now.absolute()}
    results = [measure(commands, folder, options.pairs) for folder in options.folders]
    versions = {name: version(command) for name, command in commands.items()}
    content = {"versions": versions, "results": results, "machine": machine.describe()}
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    table = Table("tiles", "time", "before", "now", "now / before", "least", "most")
    for result in results:
        for name in ("wall", "cpu"):
            times = result[name]
            ratio = times["ratio"]
            table.add_row(
                str(result["tiles"]),
                f"{name} s",
                *(f"{times[which]:.2f}" for which in commands),
                *(f"{ratio[which]:.3f}" for which in ("median", "least", "most")),
            )
    Console().print(table)


def version(command: Path) -> str:
    """What `edgelung --version` prints."""
    done = subprocess.run([command, "--version"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def measure(commands: dict[str, Path], folder: Path, pairs: int) -> dict[str, Any]:
    """Median seconds of each version, and the ratios within the pairs."""
    with tempfile.TemporaryDirectory() as work:
        for name, command in commands.items():
            once(command, folder, Path(work) / name)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for pair in range(pairs):
            for name in list(commands)[:: 1 if pair % 2 else -1]:
                runs[name].append(once(commands[name], folder, Path(work) / name))
    result: dict[str, Any] = {"tiles": count(folder), "pairs": pairs}
    for column, name in enumerate(("wall", "cpu")):
        before, now = ([run[column] for run in runs[which]] for which in ("before", "now"))
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        result[name] = {
            "before": round(statistics.median(before), 3),
            "now": round(statistics.median(now), 3),
            "ratio": {
                "median": round(statistics.median(ratios), 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            },
        }
    return result


def once(command: Path, folder: Path, work: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one run of `edgelung infer`, start included."""
    work.mkdir(exist_ok=True)
    arguments = ["infer", str(folder), "--out", str(work / "rows.csv"), "--restart"]
    environment = os.environ | {"EDGELUNG_CACHE": str(work / "cache")}
    start = time.perf_counter()
    process = subprocess.Popen(
        [command, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with exit code {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime


def count(folder: Path) -> int:
    """Files in the folder."""
    return sum(path.is_file() for path in folder.rglob("*"))


if __name__ == "__main__":
    main()
