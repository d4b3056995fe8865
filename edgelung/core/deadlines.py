"""A deadline for loading: a hostile graph can keep a runtime busy for ever.

Native code cannot be interrupted, so the process is ended. Only the command line asks for that, by
`ending_on_deadlines`; in another program `loading` does nothing.
"""

import faulthandler
import os
import threading
from _thread import start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgelung.core.errors import EdgelungError, ExitCode
from edgelung.core.interrupts import end_process

ENVIRONMENT = "EDGELUNG_LOADING_SECONDS"
CPU_SECONDS = 120.0  # a model of the size that edgelung makes loads in a few seconds
GPU_SECONDS = 3600.0  # building TensorRT engines of several variants takes minutes
GIL_SECONDS = 5.0  # after the deadline: the code that runs holds Python's global lock
_active = False


@contextmanager
def ending_on_deadlines() -> Iterator[None]:
    """Within the context, the deadlines of `loading` end the process."""
    global _active
    _active = True
    try:
        yield
    finally:
        _active = False


@contextmanager
def loading(bundle: Path, *, builds_gpu_engines: bool) -> Iterator[None]:
    """End the process with exit code 2 if the context takes longer than the deadline.

    A Python thread ends it with one line. Where native code holds the global lock, that thread
    cannot run: then faulthandler, which needs no lock, ends it with exit code 1.

    Raises EdgelungError if EDGELUNG_LOADING_SECONDS is not a number of seconds.
    """
    seconds = _deadline(GPU_SECONDS if builds_gpu_engines else CPU_SECONDS)
    if not _active:
        yield
        return
    loaded = threading.Lock()
    loaded.acquire()
    start_new_thread(_watch, (bundle, seconds, loaded))
    faulthandler.dump_traceback_later(seconds + GIL_SECONDS, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        loaded.release()


def _deadline(default: float) -> float:
    text = os.environ.get(ENVIRONMENT)
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise EdgelungError(f"{ENVIRONMENT} is {text!r}; expected seconds, such as 300")
    return seconds


def _watch(bundle: Path, seconds: float, loaded: threading.Lock) -> None:
    if not loaded.acquire(timeout=seconds):
        end_process(
            ExitCode.USAGE,
            f"loading the bundle {bundle} and running its golden tiles took more than "
            f"{seconds:g} s; nothing was predicted. If this machine is slow, set {ENVIRONMENT} to "
            "more seconds; otherwise do not use this bundle",
        )
