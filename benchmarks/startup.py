"""How long the command line takes to answer: wall time of `edgelung --help`, ten times.

Prints a table and writes JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine
from rich.console import Console
from rich.table import Table

REPEATS = 10


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parent / "results" / "startup.json"
    parser.add_argument("json", type=Path, nargs="?", default=default)
    path = parser.parse_args().json
    command = [str(Path(sys.executable).with_name("edgelung")), "--help"]
    subprocess.run(command, check=True, capture_output=True)  # byte-compiles
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    result = {
        "command": "edgelung --help",
        "repeats": REPEATS,
        "median_seconds": round(statistics.median(seconds), 4),
        "min_seconds": round(min(seconds), 4),
        "max_seconds": round(max(seconds), 4),
        "machine": machine.describe(),
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("command", "median s", "min", "max")
    figures = [str(result[key]) for key in ("median_seconds", "min_seconds", "max_seconds")]
    table.add_row("edgelung --help", *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
