"""The run: its folder, its lock, and what is refused or reported."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from msgspec import UNSET, structs

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.core.folder import Folder
from edgelung.core.locks import locked
from edgelung.evaluation.concerns import run_concerns
from edgelung.train import run as run_module
from edgelung.train.recipe import load_recipe
from edgelung.train.run import train_run


def test_the_run_folder_holds_what_the_design_says(run: Path) -> None:
    expected = {
        "run.json",
        "split.csv",
        "model.safetensors",
        "config.json",
        "metrics.jsonl",
        "metrics.json",
        "predictions.csv",
        "report.html",
        "teacher",
    }
    assert {path.name for path in run.iterdir()} == expected
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"], r["size"]) for r in history] == [
        ("teacher", 1, 64),
        ("student", 1, 32),
        ("student", 2, 64),
    ]
    student = history[1]
    assert student["loss"] == pytest.approx(
        0.5 * student["task_loss"] + 1.0 * student["distill_loss"], rel=1e-4
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["student"]["test"]["tiles"] == metrics["teacher"]["test"]["tiles"] > 0
    page = (run / "report.html").read_text()
    assert "Research use only" in page
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", page)  # self-contained
    assert page.count("<svg") == 4  # ROC, reliability, the student's two curves; teacher: one epoch
    assert (
        page.count("<img") >= 9 + 12
    )  # augmented (Fig. 10), random test tiles (Fig. 15), mistakes
    test = metrics["student"]["test"]
    low, high = test["intervals"]["balanced_accuracy"]
    assert low <= test["balanced_accuracy"] <= high
    assert 0 <= test["expected_calibration_error_at_temperature"] <= 1
    header = (run / "predictions.csv").read_text().splitlines()[0]
    assert header == "path,class,group,subset,p_lung_aca,p_lung_n,p_lung_scc"
    assert (run / "teacher" / "predictions.csv").read_text().startswith(header)


def test_the_concerns_of_a_run_are_recorded_and_head_its_page(run: Path) -> None:
    """Two test groups per class always say little."""
    folder = RunFolder(run)
    recorded = folder.read_metrics().concerns
    unrecorded = structs.replace(folder.read_metrics(), concerns=UNSET)
    assert recorded == run_concerns(unrecorded, folder.read_config().counts)
    assert "few-test-groups" in [concern.kind for concern in recorded]
    page = (run / "report.html").read_text()
    for concern in recorded:
        assert page.index(f">{concern.text}</p>") < page.index("<h2>Result</h2>")


def test_train_says_at_its_end_that_a_student_is_not_to_be_used(
    run: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    """Also for a run of an older edgelung, which recorded no concerns."""
    folder = RunFolder(Path(shutil.copytree(run, tmp_path / "run")))
    metrics = folder.read_metrics()
    confusion = [[0, 1, 5], [0, 6, 0], [0, 0, 6]]
    student = metrics.models["student"]
    test = structs.replace(student.test, confusion=confusion, recall=[0.0, 1.0, 1.0])
    changed = structs.replace(student, test=test)
    folder.write_metrics(structs.replace(metrics, student=changed, concerns=UNSET))
    done = cli("train", tiles, "--out", folder.path, "--resume")
    assert done.returncode == 0
    assert (
        "Do not use the student: it never predicts lung_aca (0 of 18 test tiles, 6 are of this "
        "class).\n"
    ) in done.stderr


def test_a_second_run_never_writes_over_the_first(run: Path, tiles: Path, small: list[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(EdgelungError, match="already exists"):
        train_run(tiles, run, load_recipe("demo", small))
    assert (run / "model.safetensors").read_bytes() == before


def test_resuming_other_tiles_is_refused(run: Path, tmp_path: Path, tiles: Path) -> None:
    other, begun = tmp_path / "tiles", tmp_path / "run"
    shutil.copytree(tiles, other)
    shutil.copytree(run, begun)
    (begun / "metrics.json").unlink()  # as if it had not finished
    next(other.glob("lung_n/*")).unlink()
    with pytest.raises(EdgelungError, match="not those that the run was split on"):
        train_run(other, begun, None, resume=True)
    with pytest.raises(EdgelungError, match="holds no unfinished run"):
        train_run(tiles, tmp_path / "nothing", None, resume=True)


@pytest.mark.timeout(600)
def test_the_papers_protocol_scaled_down(tiles: Path, tmp_path: Path, cli) -> None:
    """Recipe `paper` with tiny models: three models, a random split, Table II's form."""
    cut = [
        "teacher.model=resnet18",
        "baseline.model=test_vit",
        "student.model=deit_tiny_distilled_patch16_224",
        *(f"{role}.{field}" for role in ("teacher", "baseline", "student")
          for field in ("weights=none", "epochs=1", "batch_size=16")),
        "teacher.size=64", "baseline.size=160", "student.size=64",
    ]  # fmt: skip
    words = [w for text in cut for w in ("--set", text)]
    done = cli("train", tiles, "--out", "run", "--recipe", "paper", "--groups",
               tiles / "groups.csv", *words)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"random split: \d+ of 15 test tiles \(\d+\.\d %\) have a group mate", done.stderr
    )
    for line in ("teacher resnet18", "baseline test_vit", "student deit_tiny"):
        assert line in done.stdout
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["test_tiles_with_a_group_mate_in_training"] > 9
    assert "cannot tell recognition from memory" in (tmp_path / "run" / "report.html").read_text()
    table = cli("compare", "run")
    assert table.returncode == 0, table.stderr
    assert "near copies of test tiles were trained on" in table.stdout


def test_one_process_at_a_time_trains_in_a_folder(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: object, modules: object) -> None:
        handles.append(locked(Folder(lock.parent), lock.name, "busy"))

    handles: list[int] = []
    lock = RunFolder(tmp_path / "run").lock_path
    monkeypatch.setattr(run_module, "_finish", stop)
    with pytest.raises(EdgelungError, match="busy"):
        train_run(tiles, tmp_path / "run", load_recipe("demo", small), groups=tiles / "groups.csv")
    monkeypatch.undo()
    handle = locked(Folder(lock.parent), lock.name, "free again")
    with pytest.raises(EdgelungError, match="another process is training in"):
        train_run(tiles, tmp_path / "run", None, resume=True)
    os.close(handle)


def test_a_split_that_is_worth_less_than_it_looks_is_said(
    tiles: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A CSV of groups that group nothing; numbers that begin anew in every class."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(run_module, "_finish", lambda run, modules: None)
    paths = sorted(p.relative_to(tiles).as_posix() for p in tiles.rglob("*.jpeg"))
    for number, (group, message) in enumerate(
        [
            (lambda i, path: str(i), "every tile is a group of its own"),
            (lambda i, path: str(i % 36 // 3), "12 group(s) hold several classes, for example 0"),
        ]
    ):
        text = "".join(f"{path},{group(i, path)}\n" for i, path in enumerate(paths))
        (tmp_path / "g.csv").write_text("path,group\n" + text)
        caplog.clear()
        recipe = load_recipe("demo", small)
        train_run(tiles, tmp_path / str(number), recipe, groups=tmp_path / "g.csv")
        assert any(line.startswith(message) for line in caplog.messages)
