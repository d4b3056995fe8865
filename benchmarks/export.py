"""Seconds, processor use and decoding of one `edgelung export`; optionally paired with older code.

    python benchmarks/export.py RUN [--rounds 3] [--before PYTHON] [--data TILES] [--options …]

Each export runs in a process of its own with an empty cache. `--before` names the Python of an
environment with an older edgelung: both codes then export in turn, and the ratio of each pair is
written too. The figures of both codes are counted in the same way, by functions that wrap ONNX
Runtime's `InferenceSession.run` and the tile decoder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table

DEFAULT_OPTIONS = ("--fp16", "--int8")
RESULT = Path(__file__).parent / "results" / "export.json"

# Runs in the measured environment, which may hold an older edgelung: it imports nothing of ours.
# Arguments: the folder of the figures, then the words after `edgelung`.
COUNTED_EXPORT = """
import json, os, sys, threading, time
from pathlib import Path
start, used = time.perf_counter(), os.times()
import onnxruntime
from edgelung.cli import main
from edgelung.tiles import reader
lock, figures = threading.Lock(), {"decodes": 0, "onnxruntime_seconds": 0.0}
run, decode = onnxruntime.InferenceSession.run, reader.decode_tile

def timed_run(self, *words, **more):
    begin = time.perf_counter()
    result = run(self, *words, **more)
    with lock:
        figures["onnxruntime_seconds"] += time.perf_counter() - begin
    return result

def counted_decode(*words, **more):
    with lock:
        figures["decodes"] += 1
    return decode(*words, **more)

onnxruntime.InferenceSession.run = timed_run
reader.decode_tile = counted_decode
sys.argv[1:], out = sys.argv[2:], Path(sys.argv[1])
try:
    main()
except SystemExit as stop:
    code = stop.code
end = os.times()
figures["seconds"] = time.perf_counter() - start
figures["processor_seconds"] = end.user + end.system - used.user - used.system
(out / "figures.json").write_text(json.dumps(figures | {"exit_code": code}))
"""


def main() -> None:
    """Export in turn, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="Python of an environment with older code")
    parser.add_argument("--before-commit", default="unknown")
    parser.add_argument("--data", type=Path, help="the training tiles, if the folder has moved")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=list(DEFAULT_OPTIONS))
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    words = [*options.options, *(["--data", str(options.data.resolve())] if options.data else [])]
    codes = {"before": options.before} if options.before else {}
    codes["now"] = Path(sys.executable)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in codes}
    for _ in range(options.rounds):
        for name, python in codes.items():
            rounds[name].append(export(python.absolute(), options.run.resolve(), words))
            print(name, rounds[name][-1], flush=True)
    result = summary(rounds) | {
        "options": words,
        "commit_before": options.before_commit if options.before else None,
        "machine": machine.describe(),
    }
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def export(python: Path, run: Path, words: list[str]) -> dict[str, Any]:
    """Export once; returns the figures, the sets of the bundle and the hashes of its graphs."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        command = [python, "-c", COUNTED_EXPORT, folder, "export", run, "--out", bundle, *words]
        done = subprocess.run(
            [*map(str, command)],
            cwd=folder,  # Python finds modules in the working folder first
            env=os.environ | {"EDGELUNG_CACHE": str(Path(folder) / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        manifest_path = bundle / "bundle.json"
        if not manifest_path.is_file():
            last_line = done.stderr.strip().splitlines()[-1:]
            raise SystemExit(f"the export ended with code {done.returncode}: {last_line}")
        figures = json.loads((Path(folder) / "figures.json").read_text())
        manifest = json.loads(manifest_path.read_text())
    used = figures["processor_seconds"] / figures["seconds"]
    return {
        "seconds": round(figures["seconds"], 1),
        "processor_seconds": round(figures["processor_seconds"], 1),
        "cores_busy": round(used, 2),
        # Summed over threads, so it can exceed the seconds.
        "onnxruntime_seconds": round(figures["onnxruntime_seconds"], 1),
        "decodes": figures["decodes"],
        "exit_code": figures["exit_code"],
        "sets": manifest["provenance"]["sets"],
        "graphs": {n: f["sha256"] for n, f in manifest["files"].items() if n.endswith(".onnx")},
    }


def summary(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ranges per code, the ratio of each pair, and whether the graphs are the same."""
    result: dict[str, Any] = {}
    for name, figures in rounds.items():
        last = figures[-1]
        keys = ("seconds", "processor_seconds", "cores_busy", "onnxruntime_seconds")
        result[name] = {
            key: {
                "median": statistics.median(f[key] for f in figures),
                "all": [f[key] for f in figures],
            }
            for key in keys
        } | {"decodes": last["decodes"]}
        result["sets"] = last["sets"]
    if "before" in rounds:
        pairs = list(zip(rounds["before"], rounds["now"], strict=True))
        for key in ("seconds", "processor_seconds"):
            ratios = [round(before[key] / now[key], 2) for before, now in pairs]
            result[f"{key}_before_over_now"] = {
                "median": statistics.median(ratios),
                "all": ratios,
            }
        result["same_graphs"] = all(before["graphs"] == now["graphs"] for before, now in pairs)
    return result


def show(result: dict[str, Any]) -> None:
    """Print the medians."""
    table = Table("code", "seconds", "cores busy", "ONNX Runtime s", "decodes")
    for name in ("before", "now"):
        if name in result:
            row = result[name]
            keys = ("seconds", "cores_busy", "onnxruntime_seconds")
            table.add_row(name, *(str(row[key]["median"]) for key in keys), str(row["decodes"]))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if "seconds_before_over_now" in result:
        console.print(f"before / now: {result['seconds_before_over_now']}")


if __name__ == "__main__":
    main()
