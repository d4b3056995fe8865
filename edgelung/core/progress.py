"""The progress bar on a terminal: how much is done, how fast, and how long the rest takes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

HALF_LIFE = 20.0  # seconds after which work counts half: the speed follows what happens now
BAR_WIDTH = 12  # so that counts, speed, time left and a note fit on 80 columns


class Advance(Protocol):
    """Moves a progress bar. May be called from several threads."""

    def __call__(self, n: int = 1, note: str = "", work: float | None = None) -> None:
        """Add `n` to what is done and show `note` beside the bar.

        `work`: what these `n` cost, in the unit of the bar's `total_work`; None: `n`.
        """

    def set_total(self, total: int) -> None:
        """Set how much there is to do, once it is known."""


class Silent:
    """An `Advance` that shows nothing."""

    def __call__(self, n: int = 1, note: str = "", work: float | None = None) -> None:
        """Do nothing."""

    def set_total(self, total: int) -> None:
        """Do nothing."""


SILENT = Silent()


class Speed:
    """Work per second, averaged with weights that halve every `HALF_LIFE` seconds.

    The first `add` only starts the clock: its work was done before, by a run that is resumed or
    while an engine was loaded.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._work = self._seconds = self._calls = 0.0  # weighted sums

    def add(self, work: float) -> None:
        """Count work that is done now."""
        now = self._clock()
        if self._last is not None:
            seconds = now - self._last
            weight = 0.5 ** (seconds / HALF_LIFE)
            self._work = self._work * weight + work
            self._seconds = self._seconds * weight + seconds
            self._calls = self._calls * weight + 1
        self._last = now

    def per_second(self) -> float | None:
        """The speed; falls while work stands still. None before it is known."""
        if self._last is None or not self._work or not self._seconds:
            return None
        idle = self._clock() - self._last
        usual = self._seconds / self._calls  # between two calls
        return self._work / (self._seconds + (idle if idle > 2 * usual else 0))


class Meter:
    """What a bar shows: counts, speed and time left, as text. Thread-safe."""

    def __init__(
        self,
        total: int | None = None,
        total_work: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done, self.total = 0, total
        self.note = ""
        self._done_work, self._total_work = 0.0, total_work
        self._count, self._effort = Speed(clock), Speed(clock)
        self._lock = threading.Lock()

    def add(self, n: int, note: str, work: float | None) -> None:
        """Count what is done now."""
        with self._lock:
            cost = n if work is None else work
            self.done += n
            self._done_work += cost
            self.note = note
            self._count.add(n)
            self._effort.add(cost)

    @property
    def seconds_left(self) -> float | None:
        """Time that the rest takes at the present speed; None if it is not known."""
        with self._lock:
            total = self.total if self._total_work is None else self._total_work
            speed = self._effort.per_second()
            return None if total is None or not speed else max(total - self._done_work, 0) / speed

    def text(self) -> str:
        """The figures, such as `640/5,000  91.2/s  0:00:48 left`; without a total the count."""
        parts = []
        if self.done or self.total:
            parts.append(f"{self.done:,}")
        if self.total is not None:
            parts[0] += f"/{max(self.total, self.done):,}"
        if speed := self._count.per_second():
            parts.append(f"{speed:.1f}/s" if speed < 1000 else f"{speed:,.0f}/s")
        if (left := self.seconds_left) is not None:
            parts.append(f"{_clock(left)} left")
        return "  ".join(parts)


class _Bar:
    """An `Advance` that starts to paint when something is done: an early error paints no bar."""

    def __init__(self, meter: Meter, display: "Progress") -> None:
        self._meter, self._display = meter, display
        self._lock = threading.Lock()
        self._started = False

    def __call__(self, n: int = 1, note: str = "", work: float | None = None) -> None:
        self._meter.add(n, note, work)
        if n or note:
            with self._lock:
                if not self._started:
                    self._started = True
                    self._display.start()

    def set_total(self, total: int) -> None:
        self._meter.total = total

    def stop(self) -> None:
        """Erase the bar."""
        if self._started:
            self._display.stop()


@contextmanager
def show_bar(
    console: "Console", text: str, total: int | None, total_work: float | None
) -> Iterator[Advance]:
    """Show a bar from the first call of the yielded function on; it is erased at the end."""
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    meter = Meter(total, total_work)

    class BarOfTotal(ProgressColumn):
        def render(self, task: Task) -> ProgressBar | Text:
            """Draw the bar, if there is a total."""
            if not meter.total:
                return Text()
            return ProgressBar(meter.total, min(meter.done, meter.total), width=BAR_WIDTH)

    class Figures(ProgressColumn):
        def render(self, task: Task) -> Text:
            """Write the figures and the note; where the time left is unknown, the time passed."""
            passed = "" if meter.seconds_left is not None else _clock(task.elapsed or 0)
            parts = filter(None, (meter.text(), passed, meter.note))
            return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarOfTotal())
    display = Progress(*columns, Figures(), console=console, transient=True)
    display.add_task(text, total=None)
    bar = _Bar(meter, display)
    try:
        yield bar
    finally:
        bar.stop()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
