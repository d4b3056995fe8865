"""What the commands print: rich where a person watches, quiet where a script does."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command decide: rich would exit with 1, whatever the run had come to."""
        raise


# Results go to standard output, all the rest to standard error. Either may be closed.
# A pipe has no width: 120 columns keep a table's cells on one line.
out = _Console(
    highlight=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 120
)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


# Of the processes that torchrun starts for one run, one speaks.
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """One line for people, on standard error."""
    if FIRST_PROCESS:
        err.print(text, markup=False)


@contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar with rate and ETA on a terminal, nothing elsewhere; yields `advance(n, note)`."""
    if not (FIRST_PROCESS and sys.stderr and sys.stderr.isatty()):
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
