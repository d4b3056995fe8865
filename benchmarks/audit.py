"""How long grouping takes, in what memory, how right it is, and how the cost grows.

    python benchmarks/audit.py tiles/ --groups tiles/clusters.csv --out audit/

The whole set goes through `edgelung audit`. Smaller sets of whole known groups, drawn at random,
are linked into folders of their own and audited too; the exponent is the slope of log seconds over
log tiles. Prints a table and writes JSON.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from rich.console import Console
from rich.table import Table

from edgelung.train.index import index_tiles, read_groups

SHARES = (0.116, 0.233, 0.465, 1.0)  # 1.5k, 3k, 6k, 12.9k of the shared tiles
EDGELUNG = Path(sys.executable).with_name("edgelung")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--groups", type=Path, required=True, help="known groups, CSV")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the audits")
    default = Path(__file__).parent / "results" / "audit.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    options.out.mkdir(parents=True)

    tiles = index_tiles(options.data)
    groups = read_groups(options.groups, tiles)
    order = np.random.default_rng(0).permutation(sorted(set(groups)))
    rows = []
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        for number, share in enumerate(SHARES):
            chosen = set(order[: math.ceil(share * len(order))])
            folder = Path(scratch) / str(number)
            for tile, group in zip(tiles, groups, strict=True):
                if group in chosen:
                    place = folder / tile.path
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to((options.data / tile.path).absolute())
            rows.append(measure(folder, options.groups, options.out / f"audit-{number}"))
            shutil.rmtree(folder)
    slope = np.polyfit(*np.log([[r["tiles"] for r in rows], [r["seconds"] for r in rows]]), 1)[0]
    steps = [
        math.log(b["seconds"] / a["seconds"]) / math.log(b["tiles"] / a["tiles"])
        for a, b in itertools.pairwise(rows)
    ]
    result = {
        "sets": rows,
        "exponent": round(float(slope), 3),
        "exponents_step_by_step": [round(step, 3) for step in steps],
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")

    table = Table(
        "tiles", "seconds", "GB", "groups", "known", "recall", "precision", "raw", "links"
    )
    for row in rows:
        table.add_row(
            str(row["tiles"]),
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            str(row["groups"]),
            str(row["known_groups"]),
            *(f"{100 * row[k]:.3f}" for k in ("recall", "precision", "precision_as_published")),
            str(row["known_pairs_joined"]),
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"seconds ~ tiles^{slope:.2f}")


def measure(folder: Path, groups: Path, out: Path) -> dict[str, Any]:
    """One audit in a process of its own: wall seconds, peak resident memory, figures."""
    words = [EDGELUNG, "audit", folder, "--groups", groups, "--out", out, "--json"]
    start = time.perf_counter()
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(process.returncode)
    known = found["known"]
    return {
        "tiles": found["tiles"],
        "seconds": round(seconds, 1),
        "peak_bytes": used.ru_maxrss * 1024,
        "groups": found["groups"],
        "known_groups": known["groups"],
        "corrected_groups": known["corrected_groups"],
        "recall": known["recall"],
        "precision": known["precision"],
        "precision_as_published": known["precision_as_published"],
        "known_pairs_joined": len(known["links"]),
        "known_pairs": known["links"],
        "weakest_link": found["weakest_link"],
        "weakest_link_between_known": min((k["inliers"] for k in known["links"]), default=None),
        "strongest_refused": found["strongest_refused"],
    }


if __name__ == "__main__":
    main()
