"""SIGINT and SIGTERM end a command within two seconds, whatever it is doing.

The first signal raises in the main thread, so that files are closed and the command says how to go
on. A watchdog thread, woken by the signal itself and not by the main thread, ends the process if
that takes too long: the main thread may be in native code that does not return. A second signal
ends the process at once. Native code that holds Python's global lock stops the watchdog too: the
process then ends when it gives up the lock.
"""

import os
import signal
import sys
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from select import select
from types import FrameType

from edgelung.core.errors import visible

GRACE_SECONDS = 1.8  # from the first signal to the end, with a reserve below two seconds
ONE_SIGNAL_SECONDS = 0.25  # `timeout` and some shells send the same signal twice
RESUME_NOTE = (
    "in the middle of its work; what was written is kept. If the command has --resume, it goes on "
    "from there"
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_first: int | None = None  # the signal that was received


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Within the context, SIGINT raises KeyboardInterrupt and SIGTERM SystemExit, both once.

    After a signal, the watchdog stays until the process has ended. For the main thread.
    """
    with _handling(_raise, GRACE_SECONDS, RESUME_NOTE):
        try:
            yield
        finally:
            if _first is not None:
                # The end of Python would restore the default, which ends it without an exit code.
                for number in _SIGNALS:
                    signal.signal(number, signal.SIG_IGN)


@contextmanager
def stopping_on_signals(stop: Callable[[], None], seconds: float) -> Iterator[None]:
    """Within the context, SIGINT and SIGTERM call `stop` in the main thread: a service ends itself.

    The watchdog ends the process `seconds` after the first signal, or at the second one. Leaving
    the context restores what was there before. For the main thread.
    """
    with _handling(lambda number, frame: stop(), seconds, "with requests that have no answer"):
        yield


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], None], seconds: float, note: str
) -> Iterator[None]:
    """Handle signals by `handler`, and let a watchdog end the process `seconds` after the first."""
    earlier = {number: signal.signal(number, handler) for number in _SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    earlier_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    start_new_thread(_watch, (reader, seconds, note))
    try:
        yield
    finally:
        if _first is None:  # after a signal that raised, the watchdog stays
            for number, before in earlier.items():
                signal.signal(number, before)
            signal.set_wakeup_fd(earlier_writer)
            os.close(writer)  # ends the watchdog


def _raise(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is not None:  # unwinding already; the watchdog ends the process
        return
    _first = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _watch(reader: int, seconds: float, note: str) -> None:
    """Wait for the first signal; end the process at the second, or `seconds` after the first."""
    number = _read_signal(reader)
    if number is None:  # the context was left without a signal
        os.close(reader)
        return
    begin = time.monotonic()
    while (left := begin + seconds - time.monotonic()) > 0:
        if not select([reader], [], [], left)[0]:
            break
        if (again := _read_signal(reader)) is None:
            os.close(reader)
            return
        if time.monotonic() - begin > ONE_SIGNAL_SECONDS:
            end_process(128 + again, "ended at the second signal; what was written is kept")
    name = signal.Signals(number).name
    end_process(
        128 + number,
        f"ended {seconds:g} s after {name}, {note}",
    )


def _read_signal(reader: int) -> int | None:
    """The next SIGINT or SIGTERM of those that the pipe tells of; None at its end."""
    while byte := os.read(reader, 1):
        if byte[0] in _SIGNALS:
            return byte[0]
    return None


def end_process(code: int, message: str) -> None:
    """End the process now, from any thread, with one line on standard error.

    `message` may hold names: control characters are shown.
    """
    cursor = _SHOW_CURSOR if os.isatty(2) else ""
    try:
        os.write(2, f"{cursor}edgelung: {visible(message)}.\n".encode(errors="replace"))
    finally:  # standard error may be closed
        os._exit(code)
