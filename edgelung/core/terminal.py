"""The terminal: results on standard output; log lines and progress on standard error.

The rooms report through the standard `logging` module and through `progress`. Both are silent until
the command line calls `show_reports`, so that a program that imports edgelung sees neither. rich is
imported when something is printed: `edgelung --help` does without it.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from edgelung.core.progress import SILENT, Advance, show_bar

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120  # a pipe has no width; 120 columns keep the cells of a table on one line
# `torchrun` starts several processes for one run. Only the first one reports.
IS_MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
_reports_shown = False


@cache
def out() -> "Console":
    """Return the console for results: standard output, which may be closed."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return _console(stderr=False, width=None if is_terminal else PIPE_WIDTH)


@cache
def err() -> "Console":
    """Return the console for everything else: standard error, which may be closed."""
    return _console(stderr=True, width=None)


def _console(*, stderr: bool, width: int | None) -> "Console":
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            """Raise BrokenPipeError again: rich would exit with code 1, whatever the result is."""
            raise

    return PipeConsole(stderr=stderr, highlight=False, soft_wrap=True, width=width)


class ConsoleHandler(logging.Handler):
    """Prints the text of a log record on standard error, without markup."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        err().print(record.getMessage(), markup=False)


def show_reports() -> None:
    """Show log records (level INFO and above) and progress bars. Called once, by the commands."""
    global _reports_shown
    if not IS_MAIN_PROCESS or _reports_shown:
        return
    _reports_shown = True
    logger = logging.getLogger("edgelung")
    logger.addHandler(ConsoleHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def progress(
    text: str, total: int | None = None, total_work: float | None = None
) -> Iterator[Advance]:
    """Show a bar with speed and remaining time on a terminal, nothing elsewhere.

    It appears with the first call of what is yielded, so that an error at once paints no bar.

    Args:
        text: what is done, shown in front of the bar.
        total: how much there is to do; None: unknown, and only a counter is shown.
        total_work: the same, weighed by what each part costs, if the parts differ: the remaining
            time is computed from it.

    Yields:
        A function that moves the bar.
    """
    is_terminal = _reports_shown and sys.stderr is not None and sys.stderr.isatty()
    if not (is_terminal and err().is_interactive):  # a terminal that can move its cursor
        yield SILENT
        return
    with show_bar(err(), text, total, total_work) as advance:
        yield advance
