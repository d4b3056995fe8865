"""`edgelung compare`: Table II of runs, with pairs of models tested on the same tiles."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgelung.core.errors import EdgelungError
from edgelung.evaluation.comparison import compare_runs


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """A copy of the run whose student names the first class for every test tile."""
    folder = Path(shutil.copytree(run, tmp_path / "other"))
    lines = (folder / "predictions.csv").read_text().splitlines()
    changed = [
        ",".join([*line.split(",")[:4], "0.9", "0.05", "0.05"]) if ",test," in line else line
        for line in lines
    ]
    (folder / "predictions.csv").write_text("\n".join(changed) + "\n")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["student"]["test"]["balanced_accuracy"] = 1 / 3
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_models_are_paired_with_the_first_student(run: Path, other: Path) -> None:
    models = compare_runs([run, other]).models
    assert [(m.run, m.role) for m in models] == [
        (run.name, "teacher"),
        (run.name, "student"),
        ("other", "teacher"),
        ("other", "student"),
    ]
    assert models[1].difference is None
    name = f"{run.name}: student deit_tiny_distilled_patch16_224"
    assert [m.difference.against for m in models if m.difference] == [name] * 3
    last = models[3]
    low, high = last.difference.interval
    assert low <= last.difference.balanced_accuracy <= high
    assert models[2].difference == models[0].difference


def test_other_tiles_are_not_paired(run: Path, other: Path) -> None:
    for path in (other / "predictions.csv", other / "teacher" / "predictions.csv"):
        lines = path.read_text().splitlines()
        last = max(i for i, line in enumerate(lines) if ",test," in line)
        path.write_text("\n".join(lines[:last] + lines[last + 1 :]) + "\n")
    models = compare_runs([run, other]).models
    assert models[2].difference is None  # the first model tested on these tiles
    assert models[3].difference.against == "other: teacher tf_efficientnet_lite0"


def test_other_files_of_the_same_names_are_not_paired(run: Path, other: Path) -> None:
    with (other / "split.csv").open(newline="") as file:
        rows = [[*row[:-1], row[-1][::-1]] for row in csv.reader(file)]
    rows[0][-1] = "sha256"
    with (other / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    models = compare_runs([run, other]).models
    assert models[2].difference is None
    assert models[3].difference.against == "other: teacher tf_efficientnet_lite0"


def test_runs_with_equal_folder_names_are_named_by_path(run: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(run, tmp_path / "again" / run.name))
    models = compare_runs([run, same]).models
    assert [m.run for m in models] == [str(run), str(run), str(same), str(same)]


def test_the_command_prints_writes_and_explains(run: Path, other: Path, cli, tmp_path) -> None:
    done = cli("compare", run, other, "--out", "page.html")
    assert done.returncode == 0
    for word in ("accuracy", "precision", "recall", "F1", "difference", "are too narrow"):
        assert word in done.stdout
    bracketed = tmp_path / "r[lr=1e-3]"
    shutil.copytree(run, bracketed)
    assert "r[lr=1e-3]:" in cli("compare", bracketed).stdout.replace("\n", "")
    page = (tmp_path / "page.html").read_text()
    assert "Research use only" in page
    assert page.count("<svg") == 1
    listed = json.loads(cli("compare", run, "--json").stdout)["models"]
    assert np.isfinite([m["test"]["accuracy"] for m in listed]).all()
    again = cli("compare", run, "--out", "page.html")
    assert again.returncode == 2
    assert "expected the name of a new .html file" in again.stderr
    no_run = cli("compare", tmp_path)
    assert no_run.returncode == 2
    assert "expected a run folder" in no_run.stderr
    metrics = json.loads((other / "metrics.json").read_text())
    del metrics["teacher"]["test"]["intervals"]
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(EdgelungError, match=r"field `intervals`.*teacher.*train it again"):
        compare_runs([old])
    (old / "metrics.json").write_text('{"classes": []}')
    with pytest.raises(EdgelungError, match="names no student"):
        compare_runs([old])
    (other / "predictions.csv").write_text("nonsense\n1\n")
    with pytest.raises(EdgelungError, match="cannot read the predictions"):
        compare_runs([run, other])
