"""What the terminal shows: nothing without one, a bar with totals on one, log lines as they are."""

import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgelung.core import terminal

SHOW_PROGRESS = """
import logging, time
from edgelung.core import terminal
terminal.show_reports()
with terminal.progress("decode", total=40) as advance:
    for _ in range(4):
        advance(10, "val [a]")
        time.sleep(0.15)  # rich draws ten times a second
logging.getLogger("edgelung.room").info("done with [bold]this[/bold] in %d s", 3)
"""


@pytest.fixture
def reports() -> Iterator[logging.Logger]:
    """Reports as the command line shows them, and no trace of them afterwards."""
    logger = logging.getLogger("edgelung")
    state = (list(logger.handlers), logger.level, logger.propagate)
    terminal.err.cache_clear()
    terminal.show_reports()
    yield logger
    logger.handlers, logger.level, logger.propagate = state
    terminal._reports_shown = False
    terminal.err.cache_clear()


def on_a_terminal(program: str) -> str:
    """Run a program whose standard error is a pseudo terminal; return what it shows there."""
    reader, writer = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", program], stderr=writer, env=environment) as run:
        os.close(writer)
        shown = b""
        try:
            while block := os.read(reader, 4096):
                shown += block
        except OSError:  # Linux: the other end was closed
            pass
    os.close(reader)
    assert run.returncode == 0
    return shown.decode()


def test_a_bar_on_a_terminal_shows_totals_and_notes() -> None:
    shown = on_a_terminal(SHOW_PROGRESS)
    assert "decode" in shown
    assert "20/40" in shown
    assert "val [a]" in shown


def test_an_error_at_once_paints_no_bar() -> None:
    program = """
from edgelung.core import terminal
terminal.show_reports()
try:
    with terminal.progress("infer", total=40):
        raise ValueError
except ValueError:
    pass
"""
    assert on_a_terminal(program) == ""


def test_without_a_terminal_there_is_no_bar() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_PROGRESS], capture_output=True, text=True, check=True
    )
    assert done.stderr == "done with [bold]this[/bold] in 3 s\n"
    assert done.stdout == ""


def test_a_log_record_is_printed_without_markup(
    reports: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    reports.getChild("room").info("%s is [bold]not[/bold] markup", "this")
    assert capsys.readouterr().err == "this is [bold]not[/bold] markup\n"


def test_reports_are_shown_once(
    reports: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.show_reports()
    reports.info("one line")
    assert capsys.readouterr().err == "one line\n"


def test_a_program_that_imports_edgelung_sees_no_reports() -> None:
    program = "from edgelung.core import terminal\n" + SHOW_PROGRESS.replace(
        "terminal.show_reports()\n", ""
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("rank", ["1", "7"])
def test_only_the_first_of_several_processes_reports(rank: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW_PROGRESS],
        env=os.environ | {"RANK": rank},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_a_pipe_is_wide_enough_for_a_table() -> None:
    program = "from edgelung.core.terminal import out; print(out().width)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == terminal.PIPE_WIDTH


def test_a_closed_pipe_is_left_to_the_command() -> None:
    """rich would end the process with code 1."""
    program = """
import os, sys
from edgelung.core.terminal import out
reader, writer = os.pipe()
os.close(reader)
sys.stdout = os.fdopen(writer, "w")
try:
    out().print("a row")
    sys.stdout.flush()
except BrokenPipeError:
    os._exit(42)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 42


def test_standard_error_may_be_closed() -> None:
    done = subprocess.run(
        f"exec {sys.executable} -c '{SHOW_PROGRESS.replace(chr(39), chr(34))}' 2>&-",
        shell=True,
        check=False,
    )
    assert done.returncode == 0
