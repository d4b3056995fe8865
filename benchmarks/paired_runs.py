"""The students of two runs that test the same tiles, paired over groups.

    python benchmarks/paired_runs.py RUN OTHER --about "what differs" --json FILE

For folds of which only the predictions are kept (results/folds-students.tar.xz); for whole runs
there is `edgelung compare`. Writes JSON: balanced accuracy of both, and OTHER minus RUN.
"""

import argparse
import json
from pathlib import Path

import machine
import numpy as np

from edgelung.artifacts.run import RunFolder
from edgelung.evaluation.intervals import paired_intervals
from edgelung.evaluation.metrics import evaluate


def main() -> None:
    """Read, pair, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--about", required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    runs = [RunFolder(options.run), RunFolder(options.other)]
    both = [run.read_predictions("student").subset("test") for run in runs]
    first, second = both
    rows = dict(zip(second.paths, second.probabilities, strict=True))
    truth = [(one.classes, dict(zip(one.paths, one.labels, strict=True))) for one in both]
    if truth[0] != truth[1]:
        raise SystemExit("the runs test other tiles, or call them by other classes")
    probabilities = [first.probabilities, np.array([rows[path] for path in first.paths])]
    found = [evaluate(part.astype(np.float64), first.labels) for part in probabilities]
    labels = [part.argmax(axis=1) for part in probabilities]
    classes = probabilities[0].shape[1]
    pair = paired_intervals(*labels, first.labels, first.groups, classes)
    result = {
        "about": options.about,
        "tiles": len(first.paths),
        "groups": len(set(first.groups)),
        "balanced_accuracy": [one.balanced_accuracy for one in found],
        "difference": found[1].balanced_accuracy - found[0].balanced_accuracy,
        "difference_interval": pair.balanced_accuracy,
        "models": [tested(run) for run in runs],
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def tested(run: RunFolder) -> dict[str, float]:
    """Balanced accuracy of each model of a run on its test tiles, if its metrics are kept."""
    if not run.metrics_path.is_file():
        return {}
    models = run.read_metrics().all_models
    return {name: model.test.balanced_accuracy for name, model in models.items()}


if __name__ == "__main__":
    main()
