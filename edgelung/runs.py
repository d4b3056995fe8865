"""What lies where in a run folder, for whoever reads one."""

from pathlib import Path

CONFIG, SPLIT, METRICS, STATE = "run.json", "split.csv", "metrics.json", "state.pt"

# The models of a run, in the order of training. Each has weights, config.json and predictions.csv
# in a folder of its name; the student's are the run's own.
ROLES = ("teacher", "baseline", "student")


def role_folder(run: Path, role: str) -> Path:
    """Where a run keeps the model of a role."""
    return run if role == "student" else run / role
