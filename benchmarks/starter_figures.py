r"""A starter of 160 px: its training, its variants, foreign tissue, and the shipped one.

    edgelung train TILES --recipe starter --out FIRST
    edgelung train TILES --recipe starter-160 --weights FIRST/model.safetensors \
        --teacher-weights TEACHER/model.safetensors --groups FIRST/split.csv --out RUN
    edgelung export RUN --out BUNDLE --int8 --early-exit --cross-validation FOLDS
    python benchmarks/starter_figures.py TILES RUN BUNDLE COLON --before BUNDLE

TEACHER: a run folder's teacher of 224 px, such as of recipe starter with teacher.size=224.
COLON: a folder of tiles of other tissue. --before: the shipped starter, whose student went on. Both
predict the test tiles of RUN, so they must have the same split. Writes results/starter-160.json.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.typed_json import plain
from edgelung.evaluation.intervals import paired_intervals

RESULT = Path(__file__).parent / "results" / "starter-160.json"
CONFIDENT = 0.9
SUMMARY = ("statuses", "verify", "stages")
Rows = dict[str, dict[str, str]]


def main() -> None:
    """Read, predict, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tiles", "run", "bundle", "colon"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--before", type=Path, required=True)
    options = parser.parse_args()
    run, bundle = RunFolder(options.run), open_bundle(options.bundle, OWN_WORK)
    before = open_bundle(options.before, OWN_WORK)
    splits = {one.manifest.provenance.split_sha256 for one in (bundle, before)}
    if splits != {run.read_config().split_sha256}:
        raise SystemExit("run, bundle and the starter before have other splits")
    if bundle.manifest.cross_validation is None:
        raise SystemExit("the bundle has no cross-validation")
    test = [str(options.tiles), "--files", str(run.split_path), "--subset", "test"]
    predicted, openvino = {}, {}
    for precision in ("fp32", "int8", "int8-early-exit"):
        rows, summary = infer(bundle, precision, [*test, "--verify"])
        predicted[precision], openvino[precision] = rows, summary | accuracy(rows, run)
    result = {
        "about": "Not shipped: the student of the starter (starter.json) went on for an epoch at "
        "160 px, taught by an EfficientNet-lite2 that was fine-tuned anew at 224 px.",
        "commands": __doc__.split("\n\n")[1],
        "recipe": run.read_config().recipe,
        "epochs": [plain(record) for record in run.read_history()],
        "metrics": plain(run.read_metrics()),
        "variants": plain(bundle.manifest.variants),
        "cross_validation": plain(bundle.manifest.cross_validation),
        "infer_openvino_on_test": openvino,
        "outside": outside(bundle, options.colon, predicted["int8"]),
        "against_the_starter": against(before, run, test, predicted["fp32"]),
        "machine": machine.describe(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def infer(bundle: Bundle, precision: str, words: list[str]) -> tuple[Rows, dict[str, Any]]:
    """Rows by path, and what the summary says, of `edgelung infer` in OpenVINO."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.csv"
        script = Path(sys.executable).with_name("edgelung")
        command = [str(script), "infer", *words, "--json", "--out", str(out)]
        command += ["--model", str(bundle.folder), "--precision", precision, "--allow-unsigned"]
        command += ["--engine", "openvino", "--unknown", "keep"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        with out.open(encoding="utf-8", newline="") as file:
            rows = {row["path"]: row for row in csv.DictReader(file)}
    summary = json.loads(done.stdout)
    return rows, {key: summary[key] for key in SUMMARY if key in summary}


def outside(bundle: Bundle, colon: Path, test: Rows) -> dict[str, float]:
    """How sure INT8 is of foreign tissue, and of the test tiles."""
    rows, _ = infer(bundle, "int8", [str(colon)])
    limit = bundle.variants["int8"].entry.known.threshold
    found: dict[str, float] = {"tiles": len(rows)}
    for name, of in (("", rows), ("_on_test", test)):
        sure = [float(row["confidence"]) for row in of.values()]
        found[f"unknown{name}"] = sum(float(row["ood"]) > limit for row in of.values())
        found[f"median_confidence{name}"] = statistics.median(sure)
        found[f"share_above_{CONFIDENT}{name}"] = statistics.fmean(c > CONFIDENT for c in sure)
    return found


def against(before: Bundle, run: RunFolder, test: list[str], present: Rows) -> dict[str, Any]:
    """Both starters' full precision on the test tiles, paired over groups."""
    earlier, _ = infer(before, "fp32", test)
    tested = [row for row in run.read_split() if row.subset == "test"]
    classes = before.classes
    truth, *labels = (
        np.array([classes.index(label) for label in found], np.int64)
        for found in (
            [row.label for row in tested],
            [earlier[row.path]["label"] for row in tested],
            [present[row.path]["label"] for row in tested],
        )
    )
    groups = [row.group for row in tested]
    pair = paired_intervals(*labels, truth, groups, len(classes))
    return {
        "tiles": len(tested),
        "groups": len(set(groups)),
        "earlier": accuracy(earlier, run)["balanced_accuracy"],
        "present": accuracy(present, run)["balanced_accuracy"],
        "difference_interval": pair.balanced_accuracy,
    }


def accuracy(rows: Rows, run: RunFolder) -> dict[str, float]:
    """Accuracy and balanced accuracy of the labels of the test tiles."""
    by_class: dict[str, list[bool]] = {}
    for row in run.read_split():
        if row.subset == "test":
            by_class.setdefault(row.label, []).append(rows[row.path]["label"] == row.label)
    return {
        "accuracy": statistics.fmean(right for found in by_class.values() for right in found),
        "balanced_accuracy": statistics.fmean(map(statistics.fmean, by_class.values())),
    }


if __name__ == "__main__":
    main()
