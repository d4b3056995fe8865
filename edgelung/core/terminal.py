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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelung.core.errors import visible
from edgelung.core.progress import SILENT, Advance, show_bar

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

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
    from rich.segment import Segment

    class SafeConsole(Console):
        """Shows control characters in names, and takes no brackets in them for markup."""

        def render_str(self, text: str, **options: Any) -> "Text":
            """Convert text, before its width is measured."""
            return super().render_str(visible(text, "\n"), **options)

        def render(
            self, renderable: "RenderableType", options: "ConsoleOptions | None" = None
        ) -> "Iterator[Segment]":
            """Convert what did not come as a string, such as the note of a progress bar."""
            for segment in super().render(renderable, options):
                safe = segment.control or segment.text.isprintable()
                yield segment if safe else Segment(visible(segment.text, "\n"), segment.style)

        def on_broken_pipe(self) -> None:
            """Raise BrokenPipeError again: rich would exit with code 1, whatever the result is."""
            raise

    return SafeConsole(
        stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width
    )


class ConsoleHandler(logging.Handler):
    """Prints the text of a log record on standard error, without markup."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record. Only its format may break lines, not the names that fill it."""
        if isinstance(record.args, tuple):
            shown = (visible(str(a)) if isinstance(a, str | Path) else a for a in record.args)
            record = logging.makeLogRecord(vars(record) | {"args": tuple(shown)})
        err().print(record.getMessage())


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
