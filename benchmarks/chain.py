"""The whole chain as a user runs it: train, export, infer; ends with one table and a JSON.

Without --data it draws a small synthetic set first (not tissue; see train/synthetic.py).
Every step is the `edgelung` command that it prints.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
from edgelung.train.synthetic import write_dataset
from rich.console import Console
from rich.table import Table

EDGELUNG = str(Path(sys.executable).with_name("edgelung"))
RUNS = [  # engine, precision of each `infer` over the test tiles
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
]
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main() -> int:
    """Run the chain; returns the worst exit code of its steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="working folder")
    parser.add_argument("--data", type=Path, help="labelled tiles; synthetic ones by default")
    parser.add_argument("--groups", type=Path, help="CSV with path and group or cluster")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    out = _fresh(options.out)
    data, groups = options.data, options.groups
    if data is None:
        data = write_dataset(out / "tiles", sources=40, tiles_per_source=8)
        groups = data / "groups.csv"
        console.print(f"Drew synthetic tiles in {data}: drawn by a program, not tissue.")
    run, bundle = out / "run", out / "bundle"
    seconds: dict[str, float] = {}
    code = 0
    command = ["train", data, "--out", run, "--recipe", options.recipe]
    code |= step(seconds, "train", [*command, *(["--groups", groups] if groups else [])])
    code |= step(seconds, "export", ["export", run, "--out", bundle, "--fp16", "--int8"], (0, 4))
    results = []
    for engine, precision in RUNS:
        summary = out / f"{engine}-{precision}.json"
        words = ["infer", data, "--files", run / "split.csv", "--subset", "test"]
        words += ["--model", bundle, "--out", out / f"{engine}-{precision}.csv"]
        words += ["--engine", engine, "--precision", precision, "--json"]
        code |= step(seconds, f"infer {engine} {precision}", words, (0,), summary)
        results.append(json.loads(summary.read_text()))

    figures = collect(run, bundle, out, results) | {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "machine": machine.describe(),
    }
    path = options.json or out / "results.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures, bundle, run, path)
    return code


def step(
    seconds: dict[str, float],
    name: str,
    words: list[Any],
    allowed: tuple[int, ...] = (0,),
    stdout: Path | None = None,
) -> int:
    """Run one `edgelung` command; stops the chain at an exit code that is not allowed."""
    command = [str(word) for word in words]
    console.print(f"\n$ edgelung {' '.join(command)}", markup=False, soft_wrap=True)
    start = time.perf_counter()
    if stdout:
        with stdout.open("w") as file:
            code = subprocess.run([EDGELUNG, *command], stdout=file, check=False).returncode
    else:
        code = subprocess.run([EDGELUNG, *command], check=False).returncode
    seconds[name] = time.perf_counter() - start
    if code not in allowed:
        sys.exit(code)
    return code


def collect(run: Path, bundle: Path, out: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the table and the JSON show."""
    metrics = json.loads((run / "metrics.json").read_text())
    manifest = json.loads((bundle / "bundle.json").read_text())
    reference = labels(out / "onnxruntime-fp32.csv")
    int8 = {engine: labels(out / f"{engine}-int8.csv") for engine, _ in RUNS}
    rows = []
    for (engine, precision), summary in zip(RUNS, results, strict=True):
        found = labels(out / f"{engine}-{precision}.csv")
        rows.append(
            {
                "engine": engine,
                "precision": precision,
                "tiles": summary["labelled"]["tiles"],
                "accuracy": summary["labelled"]["accuracy"],
                "balanced_accuracy": summary["labelled"]["balanced_accuracy"],
                "agreement_with_onnxruntime_fp32": same(found, reference),
                "tiles_per_second": summary["tiles_per_second"],
                "golden_difference": summary["golden_difference"],
            }
        )
    return {
        "teacher": {"model": metrics["teacher"]["model"], **short(metrics["teacher"])},
        "student": {"model": metrics["student"]["model"], **short(metrics["student"])},
        "counts": json.loads((run / "run.json").read_text())["counts"],
        "recipe": json.loads((run / "run.json").read_text())["recipe"],
        "temperature": manifest["temperature"],
        "gate": {
            name: {
                key: entry["gate"].get(key)
                for key in ("verdict", "reasons", "tiles", "agreement", "balanced_accuracy")
            }
            for name, entry in manifest["variants"].items()
        },
        "bytes": {name: entry["bytes"] for name, entry in manifest["variants"].items()},
        "test": rows,
        "int8_same_label_in_both_engines": same(int8["onnxruntime"], int8["openvino"]),
    }


def labels(path: Path) -> dict[str, str]:
    """path → label of a predictions CSV."""
    with path.open(newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def same(first: dict[str, str], second: dict[str, str]) -> float:
    """Share of tiles with the same label."""
    return sum(second[path] == label for path, label in first.items()) / len(first)


def short(metrics: dict[str, Any]) -> dict[str, Any]:
    """The headline figures of one model."""
    keys = ("tiles", "accuracy", "balanced_accuracy", "macro_f1", "expected_calibration_error")
    return {subset: {key: metrics[subset][key] for key in keys} for subset in ("val", "test")}


def show(figures: dict[str, Any], bundle: Path, run: Path, path: Path) -> None:
    """The closing table."""
    title = "test tiles, no group of which was seen in training"
    table = Table(
        "model", "accuracy", "balanced", "agreement with FP32", "tiles/s", "MB", title=title
    )

    def percent(value: float) -> str:
        return f"{100 * value:.2f} %"

    teacher = figures["teacher"]["test"]
    table.add_row(
        f"teacher {figures['teacher']['model']}",
        percent(teacher["accuracy"]),
        percent(teacher["balanced_accuracy"]),
        "",
        "",
        "",
    )
    for row in figures["test"]:
        table.add_row(
            f"student {row['precision'].upper()}, {row['engine']}",
            percent(row["accuracy"]),
            percent(row["balanced_accuracy"]),
            percent(row["agreement_with_onnxruntime_fp32"]),
            f"{row['tiles_per_second']:.0f}",
            f"{figures['bytes'][row['precision']] / 1e6:.1f}",
        )
    console.print()
    console.print(table)
    gates = ", ".join(f"{name} {entry['verdict']}" for name, entry in figures["gate"].items())
    console.print(f"gate      {gates}")
    both = percent(figures["int8_same_label_in_both_engines"])
    console.print(f"INT8      same label in both engines on {both}")
    console.print(f"reports   {run / 'report.html'}\n          {bundle / 'report.html'}")
    console.print(f"figures   {path}")
    console.print("Research use only: not a medical device, not for diagnosis.")


def _fresh(folder: Path) -> Path:
    """A folder that does not exist yet: the name asked for, or with a number behind it."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    candidate.mkdir(parents=True)
    return candidate


if __name__ == "__main__":
    sys.exit(main())
