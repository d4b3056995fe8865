"""What the commands print: results on standard output; log lines and progress on standard error.

The rooms report through the standard `logging` module and through `progress`. Both are silent until
the command line calls `show_reports`, so that a notebook that imports edgelung sees neither.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command decide: rich would exit with code 1, whatever the run's result."""
        raise


# Results go to standard output, everything else to standard error. Either may be closed.
# A pipe has no width; 120 columns keep the cells of a table on one line.
out = _Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 120
)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


# Of the processes that torchrun starts for one run, only the first reports.
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
_reports_shown = False


class _ConsoleHandler(logging.Handler):
    """Prints the plain text of a record on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(record.getMessage(), markup=False)


def show_reports() -> None:
    """Show log lines (level INFO and above) and progress bars. Called once, by the command line."""
    global _reports_shown
    if not FIRST_PROCESS or _reports_shown:
        return
    _reports_shown = True
    logger = logging.getLogger("edgelung")
    logger.addHandler(_ConsoleHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def note(text: str) -> None:
    """Print one line for people on standard error."""
    if FIRST_PROCESS:
        err.print(text, markup=False)


@contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a bar with rate and ETA on a terminal, nothing elsewhere.

    Yields `advance(n, note)`, which adds `n` to what is done and shows `note` beside the bar.
    """
    if not (_reports_shown and sys.stderr and sys.stderr.isatty()):
        yield lambda n=1, note="": None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(text, total=total, rate="", note="")

        def advance(n: int = 1, note: str = "") -> None:
            speed = bar.tasks[task].speed
            bar.update(task, advance=n, rate=f"{speed:.1f}/s" if speed else "", note=note)

        yield advance
