"""`edgelung compare`: Table II of runs, with pairs of models tested on the same tiles."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgelung.core.errors import EdgelungError
from edgelung.evaluation.comparison import compare_runs


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """A copy of the run whose student is right on one of the two test groups of each class.

    On the other groups it names the first class, so that it is right on all of that class.
    """
    folder = Path(shutil.copytree(run, tmp_path / "other"))
    predict_test_tiles(folder, lambda label, group, first: label if first else "lung_aca", 2 / 3)
    return folder


def predict_test_tiles(
    folder: Path, predict: Callable[[str, str, bool], str], balanced_accuracy: float
) -> None:
    """Change what the student of a run predicts for its test tiles.

    `predict` gives the label from the class, the group, and whether it is the first of the class.
    """
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first: dict[str, str] = {}
    for row in (row for row in rows if row["subset"] == "test"):
        label, group = row["class"], row["group"]
        predicted = predict(label, group, first.setdefault(label, group) == group)
        for name in ("lung_aca", "lung_n", "lung_scc"):
            row[f"p_{name}"] = "0.9" if name == predicted else "0.05"
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["student"]["test"]["balanced_accuracy"] = balanced_accuracy
    (folder / "metrics.json").write_text(json.dumps(metrics))


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
    assert low < high
    assert last.difference.no_interval == ""
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


def with_one_group_per_class(run: Path, folder: Path) -> Path:
    """A copy of the run in which the test tiles of a class are one group."""
    copy = Path(shutil.copytree(run, folder))
    for path in (copy / "predictions.csv", copy / "teacher" / "predictions.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["group"] = row["class"]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return copy


def test_one_group_per_class_gives_no_interval_and_shows_no_difference(
    run: Path, other: Path, tmp_path: Path, cli
) -> None:
    """Every resample of one group is that group: '+7.41 … +7.41' would look like a proof."""
    first = with_one_group_per_class(run, tmp_path / "first")
    second = with_one_group_per_class(other, tmp_path / "second")
    difference = compare_runs([first, second]).models[3].difference
    assert difference.interval is None
    assert difference.no_interval == "one group"
    printed = cli("compare", first, second, "--out", "page.html").stdout
    page = (tmp_path / "page.html").read_text()
    assert "no interval: one group" in " ".join(printed.split())
    assert "<td>no interval: one group</td>" in page
    for text in (printed, page):
        assert "Without an interval no difference is shown." in text
    listed = json.loads(cli("compare", first, second, "--json").stdout)["models"][3]["difference"]
    assert (listed["interval"], listed["no_interval"]) == (None, "one group")


def test_a_difference_that_is_equal_in_all_groups_has_no_interval(
    run: Path, tmp_path: Path
) -> None:
    """The student of this copy is wrong on every tile, the teacher's copy right on every one."""
    folder = Path(shutil.copytree(run, tmp_path / "wrong"))
    right = Path(shutil.copytree(run, tmp_path / "right"))
    after = {"lung_aca": "lung_n", "lung_n": "lung_scc", "lung_scc": "lung_aca"}
    predict_test_tiles(folder, lambda label, group, first: after[label], 0.0)
    predict_test_tiles(right, lambda label, group, first: label, 1.0)
    difference = compare_runs([folder, right]).models[3].difference
    assert difference.balanced_accuracy == 1.0
    assert (difference.interval, difference.no_interval) == (None, "equal in all groups")


def test_an_interval_with_a_width_is_printed_and_explained(run: Path, other: Path, cli) -> None:
    printed = cli("compare", run, other).stdout
    low, high = compare_runs([run, other]).models[3].difference.interval
    assert f"{100 * low:+.2f} … {100 * high:+.2f}" in printed
    assert "An interval that contains 0 shows no difference." in printed


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
    assert "Balanced accuracy with intervals" in page
    assert page.count('class="track"') >= 1
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
