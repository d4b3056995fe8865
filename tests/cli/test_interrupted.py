"""A run that is interrupted says how to continue it, with a command that works as it stands."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgelung.artifacts.run import RunFolder
from edgelung.cli.train import _resume_command, _resume_hint, _what_is_kept
from edgelung.core.errors import EdgelungError
from edgelung.core.files import WriteError

EDGELUNG = Path(sys.executable).with_name("edgelung")

INTERRUPTED = """
import sys
from edgelung.train import run
def interrupt(*arguments):
    raise KeyboardInterrupt
run._finish = interrupt
from edgelung.cli import main
main()
"""


def test_an_interrupted_training_prints_a_command_that_continues_it(
    tiles: Path, small: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "my tiles"
    data.symlink_to(tiles)
    words = ["train", "my tiles", "--groups", "my tiles/groups.csv", "--out", "r 1"]
    words += ["--recipe", "demo", *(word for text in small for word in ("--set", text))]
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert stopped.returncode == 130, stopped.stderr
    message, command = stopped.stderr.splitlines()[-2:]
    assert message == ("interrupted; the split is kept, no training was done yet. To continue:")
    assert shlex.split(command) == ["edgelung", "train", "my tiles", "--out", "r 1", "--resume"]
    assert RunFolder(tmp_path / "r 1").config_path.is_file()
    again = subprocess.run(  # goes as far as the first run, which is where this test stops it
        [sys.executable, "-c", INTERRUPTED, *shlex.split(command)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert again.stderr.splitlines()[-1] == command, again.stderr


def test_before_there_is_a_run_nothing_can_be_continued(tmp_path: Path, capfd) -> None:
    with pytest.raises(KeyboardInterrupt), _resume_hint(tmp_path, tmp_path / "run"):
        raise KeyboardInterrupt
    with pytest.raises(EdgelungError), _resume_hint(tmp_path, tmp_path / "run"):
        raise EdgelungError("no tiles")
    assert capfd.readouterr().err == ""


def test_a_stopped_infer_prints_a_command_that_continues_it(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    words = ["infer", str(tiles), "--model", str(bundle_folder), "--batch-size", "1"]
    command = [str(EDGELUNG), *words, "--out", "my rows.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        journal = tmp_path / "my rows.csv.edgelung-journal"
        while running.poll() is None:
            if journal.is_file() and len(journal.read_bytes().splitlines()) > 3:
                running.send_signal(signal.SIGINT)
                break
        _, errors = running.communicate(timeout=120)
    printed = errors.splitlines()[-1]
    assert shlex.split(printed)[-1] == "--resume", errors
    done = subprocess.run(
        [EDGELUNG, *shlex.split(printed)[1:]],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "my rows.csv").read_text().splitlines()) == 111


def begin(folder: Path, *, checkpoint_age: float | None) -> RunFolder:
    """A run folder as a run leaves it that ends before it is finished."""
    run = RunFolder(folder)
    folder.mkdir()
    run.config_path.write_text("{}")
    if checkpoint_age is not None:
        run.checkpoint_path.touch()
        written = time.time() - checkpoint_age
        os.utime(run.checkpoint_path, (written, written))
    return run


@pytest.mark.parametrize(
    ("age", "begun_before", "words"),
    [
        (None, 0, "the split is kept, no training was done yet"),
        (42, 1000, "the last checkpoint is kept, the work of the 42 s since then is lost"),
        (300, 1000, "the last checkpoint is kept, the work of the 5 min since then is lost"),
        (9000, 3, "the last checkpoint is kept, the work of the 3 s since then is lost"),
    ],
)
def test_how_much_is_lost_is_measured_from_the_checkpoint_or_this_start(
    tmp_path: Path, age: float | None, begun_before: float, words: str
) -> None:
    begin(tmp_path / "run", checkpoint_age=age)
    assert _what_is_kept(tmp_path / "run", time.time() - begun_before) == words


def test_a_run_that_is_finished_has_nothing_to_continue(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", checkpoint_age=1)
    run.metrics_path.touch()
    assert _what_is_kept(tmp_path / "run", 0) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_training_that_cannot_write_names_the_path_and_the_command(
    tmp_path: Path, number: int
) -> None:
    run = begin(tmp_path / "run", checkpoint_age=1)
    with pytest.raises(EdgelungError) as caught, _resume_hint(Path("my tiles"), run.path):
        raise WriteError(run.checkpoint_path, OSError(number, os.strerror(number)))
    message = str(caught.value)
    assert message.startswith(f"cannot write {run.checkpoint_path}: ")
    assert "the last checkpoint is kept" in message
    command = shlex.join(["edgelung", "train", "my tiles", "--out", str(run.path), "--resume"])
    assert message.endswith(f", then run: {command}")
    assert "Errno" not in message


def test_several_processes_are_resumed_by_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert _resume_command(Path("tiles"), Path("run")) == (
        "torchrun --nproc-per-node 4 -m edgelung train tiles --out run --resume"
    )
