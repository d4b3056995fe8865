"""What lies where in a run folder, for whoever reads one."""

from pathlib import Path
from typing import Any

CONFIG, SPLIT, METRICS, STATE = "run.json", "split.csv", "metrics.json", "state.pt"

# The models of a run, in the order of training. Each has weights, config.json and predictions.csv
# in a folder of its name; the student's are the run's own.
ROLES = ("teacher", "baseline", "student")


def role_folder(run: Path, role: str) -> Path:
    """Where a run keeps the model of a role."""
    return run if role == "student" else run / role


def fewest_test_groups(config: dict[str, Any]) -> int:
    """Of a run's run.json: the number of test groups of the class that has the fewest."""
    counts: list[int] = [entry["groups"] for entry in config["counts"]["test"].values()]
    return min(counts)
