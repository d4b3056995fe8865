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
import numpy as np
from rich.console import Console
from rich.table import Table

from edgelung.artifacts.run import SPLIT, fewest_test_groups
from edgelung.evaluation.intervals import caution, intervals, written
from edgelung.train.synthetic import write_dataset

EDGELUNG = str(Path(sys.executable).with_name("edgelung"))
RUNS = [  # engine, precision of each `infer` over the test tiles
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
]
ALSO = ("files", "statuses", "engine", "precision", "tiles_per_second", "labelled", "verify")
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main() -> int:
    """Run the chain; a variant whose gate says no is shown in the table, not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="working folder")
    parser.add_argument("--data", type=Path, help="labelled tiles; synthetic ones by default")
    parser.add_argument("--groups", type=Path, help="CSV with path and group or cluster")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--also", type=Path, nargs="*", help="further labelled folders to infer")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    out = _fresh(options.out)
    data, groups, few = options.data, options.groups, []
    if data is None:
        data = write_dataset(out / "tiles", sources=64, tiles_per_source=10)
        groups = data / "groups.csv"
        few = ["--calibration-tiles", 240]  # the gate needs the others, 200 a class
        console.print(f"Drew synthetic tiles in {data}: drawn by a program, not tissue.")
    run, bundle = out / "run", out / "bundle"
    seconds: dict[str, float] = {}
    command = ["train", data, "--out", run, "--recipe", options.recipe]
    step(seconds, "train", [*command, *(["--groups", groups] if groups else [])])
    step(seconds, "export", ["export", run, "--out", bundle, "--fp16", "--int8", *few], (0, 4))

    def infer(name: str, words: list[Any], allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
        words = ["infer", *words, "--model", bundle, "--out", out / f"{name}.csv", "--json"]
        step(seconds, f"infer {name}", words, allowed, out / f"{name}.json")
        summary: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
        return summary

    results = []
    for engine, precision in RUNS:
        words = [data, "--files", run / "split.csv", "--subset", "test"]
        words += ["--engine", engine, "--precision", precision]
        results.append(infer(f"{engine}-{precision}", words))
    also = infer("also", [*options.also, "--verify"], (0, 4)) if options.also else None

    figures = collect(run, bundle, out, results) | {
        "also": also and {key: also[key] for key in ALSO},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "machine": machine.describe(),
    }
    path = options.json or out / "results.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures, groups is not None, bundle, run, path)
    return 0


def step(
    seconds: dict[str, float],
    name: str,
    words: list[Any],
    allowed: tuple[int, ...] = (0,),
    stdout: Path | None = None,
) -> None:
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


def collect(run: Path, bundle: Path, out: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures that the table and the JSON show."""
    metrics = json.loads((run / "metrics.json").read_text())
    manifest = json.loads((bundle / "bundle.json").read_text())
    reference = labels(out / "onnxruntime-fp32.csv")
    int8 = {engine: labels(out / f"{engine}-int8.csv") for engine, _ in RUNS}
    with (run / SPLIT).open(encoding="utf-8", newline="") as file:
        tested = [row for row in csv.DictReader(file) if row["subset"] == "test"]
    truth = np.array([metrics["classes"].index(row["class"]) for row in tested])
    groups = [row["group"] for row in tested]
    rows = []
    for (engine, precision), summary in zip(RUNS, results, strict=True):
        found = labels(out / f"{engine}-{precision}.csv")
        predicted = np.array([metrics["classes"].index(found[row["path"]]) for row in tested])
        spans = intervals(predicted, truth, groups, len(metrics["classes"]))
        rows.append(
            {
                "engine": engine,
                "precision": precision,
                "tiles": summary["labelled"]["tiles"],
                "accuracy": summary["labelled"]["accuracy"],
                "balanced_accuracy": summary["labelled"]["balanced_accuracy"],
                "balanced_accuracy_interval": spans["balanced_accuracy"],
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
    found = {subset: {key: metrics[subset][key] for key in keys} for subset in ("val", "test")}
    interval = metrics["test"]["intervals"]["balanced_accuracy"]
    return {**found, "test": found["test"] | {"balanced_accuracy_interval": interval}}


def show(figures: dict[str, Any], grouped: bool, bundle: Path, run: Path, path: Path) -> None:
    """The closing table."""
    title = "test tiles" + (
        ", no group of which was seen in training"
        if grouped
        else ", of groups as `edgelung audit` finds them; none was seen in training"
    )
    table = Table(
        "model", "accuracy", "balanced (95 %)", "FP32's label", "tiles/s", "MB", title=title
    )

    def percent(value: float) -> str:
        return f"{100 * value:.2f} %"

    def balanced(row: dict[str, Any]) -> str:
        """With its interval over groups."""
        span = written(row["balanced_accuracy_interval"])
        return f"{percent(row['balanced_accuracy'])} ({span.removesuffix(' %')})"

    teacher = figures["teacher"]["test"]
    table.add_row(
        f"teacher {figures['teacher']['model']}",
        percent(teacher["accuracy"]),
        balanced(teacher),
        "",
        "",
        "",
    )
    for row in figures["test"]:
        table.add_row(
            f"student {row['precision'].upper()}, {row['engine']}",
            percent(row["accuracy"]),
            balanced(row),
            percent(row["agreement_with_onnxruntime_fp32"]),
            f"{row['tiles_per_second']:.0f}",
            f"{figures['bytes'][row['precision']] / 1e6:.1f}",
        )
    console.print()
    console.print(table)
    if few := caution(fewest_test_groups(figures)):
        console.print(few)
    gates = ", ".join(f"{name} {entry['verdict']}" for name, entry in figures["gate"].items())
    console.print(f"gate      {gates}")
    both = percent(figures["int8_same_label_in_both_engines"])
    console.print(f"INT8      same label in both engines on {both}")
    if also := figures["also"]:
        labelled = also["labelled"]
        console.print(
            f"also      {percent(labelled['accuracy'])} of {labelled['tiles']} tiles right in "
            f"{also['engine']} {also['precision']}, agreement with FP32 "
            f"{percent(also['verify']['agreement'])}"
        )
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
