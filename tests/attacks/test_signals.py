"""No work, native code included, keeps a command from ending after a signal or a deadline."""

import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edgelung.core.interrupts import ONE_SIGNAL_SECONDS

# Native code that never returns: a mutex that is locked twice. `PyDLL` keeps Python's global lock.
NATIVE = """
import ctypes, pathlib, sys, time
from edgelung.core import deadlines, interrupts
def hang(library):
    mutex = ctypes.create_string_buffer(256)
    library(None).pthread_mutex_lock(mutex)
    print("ready", flush=True)
    library(None).pthread_mutex_lock(mutex)
def unwind():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("unwound", flush=True)
def refuse():
    try:
        unwind()
    finally:
        time.sleep(60)
"""
LIMIT = 2.0  # seconds from the signal to the end


def start(code: str, **variables: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", NATIVE + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables or None,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_native_code_that_never_returns_is_ended_two_seconds_after_a_signal(number: int) -> None:
    process = start("with interrupts.ending_on_signals(): hang(ctypes.CDLL)")
    time.sleep(0.3)  # from the line that it printed into the native call
    process.send_signal(number)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors.count("\n") == 1
    assert signal.Signals(number).name in errors
    assert time.monotonic() - begin < LIMIT + 1  # the machine may be busy


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unwinds_the_main_thread(number: int) -> None:
    process = start("with interrupts.ending_on_signals(): unwind()")
    process.send_signal(number)
    printed, errors = process.communicate(timeout=30)
    assert printed == "unwound\n"
    assert "in the middle" not in errors


def test_the_same_signal_twice_at_once_is_one_signal() -> None:
    """`timeout` sends it to the process and to its group."""
    process = start("with interrupts.ending_on_signals(): unwind()")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=30)
    assert (printed, errors, process.returncode) == ("unwound\n", "", 143)


def test_a_second_signal_ends_a_command_that_does_not_unwind() -> None:
    process = start("interrupts.GRACE_SECONDS = 60\nwith interrupts.ending_on_signals(): refuse()")
    process.send_signal(signal.SIGINT)
    time.sleep(2 * ONE_SIGNAL_SECONDS)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "second signal" in errors


def test_signals_after_the_command_have_their_usual_meaning() -> None:
    process = start("with interrupts.ending_on_signals(): pass\nunwind()")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


DEADLINE = """
deadlines.GIL_SECONDS = 0.2
with deadlines.ending_on_deadlines():
    with deadlines.loading(pathlib.Path("my bundle"), builds_gpu_engines=False):
        hang({})
"""


def test_a_bundle_that_never_loads_ends_the_process_with_its_name() -> None:
    process = start(DEADLINE.format("ctypes.CDLL"), EDGELUNG_LOADING_SECONDS="0.2")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "my bundle" in errors
    assert "EDGELUNG_LOADING_SECONDS" in errors


def test_the_deadline_holds_while_native_code_has_pythons_lock() -> None:
    process = start(DEADLINE.format("ctypes.PyDLL"), EDGELUNG_LOADING_SECONDS="0.2")
    process.communicate(timeout=30)
    assert process.returncode == 1


@pytest.mark.parametrize("tries", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_signal_at_any_moment_of_a_run_ends_it(
    bundle_folder: Path, tiles: Path, tmp_path: Path, tries: int
) -> None:
    """With `concurrent.futures`, some of these runs never ended."""
    rng = random.Random(tries)
    program = str(Path(sys.executable).with_name("edgelung"))
    out = tmp_path / "rows.csv"
    words = [program, "infer", tiles, "--model", bundle_folder, "--batch-size", "1", "--out", out]
    undisturbed = time.monotonic()
    subprocess.run([*words, "--restart"], capture_output=True, timeout=120, check=True)
    undisturbed = time.monotonic() - undisturbed
    for number in rng.choices([signal.SIGINT, signal.SIGTERM], k=tries):
        with subprocess.Popen(
            [*words, "--restart"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                process.wait(rng.uniform(0.2, 1.0) * undisturbed)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            begin = time.monotonic()
            process.communicate(timeout=30)
            # A negative code: the signal came before the command began, or after its end.
            assert process.returncode in (0, 128 + number, -number)
            # The undisturbed run says how busy the machine is.
            assert time.monotonic() - begin < LIMIT + 2 + undisturbed
    resumed = subprocess.run([*words, "--resume"], capture_output=True, timeout=120, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert len(out.read_text().splitlines()) == 111


def test_a_signal_while_the_commands_are_imported_ends_the_process_silently() -> None:
    code = """
        import os, signal, sys

        class Signals:
            def find_spec(self, name, path, target=None):
                if name == "edgelung.cli.app":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Signals())
        from edgelung.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
