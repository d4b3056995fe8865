"""A run that is interrupted says how to continue it, with a command that works as it stands."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError

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
    from edgelung.cli.train import _resume_hint

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
