"""The engines of a run on a cluster, in the place of those on this machine."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.artifacts.summary import NodeRecord
from edgelung.cluster.crew import Crew
from edgelung.cluster.pool import Done, Pool
from edgelung.cluster.schedule import WAIT_SECONDS, Schedule
from edgelung.cluster.tasks import Item, Report, Setup, Task
from edgelung.inference.engines import as_before, reason_to_resume
from edgelung.inference.identity import RunIdentity
from edgelung.inference.options import Options
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import Reading
from edgelung.tiles.errors import TileError
from edgelung.tiles.find import FoundFile
from edgelung.tiles.status import Status


@dataclass(frozen=True)
class RemoteFacts:
    """See `engines.choose.EngineFacts`."""

    name: str
    device: str
    float_type: str


@dataclass(frozen=True)
class RemoteChoice:
    """See `engines.choose.Choice`."""

    engine: RemoteFacts
    variant: Variant
    reason: str
    golden_difference: float


class ClusterEngines:
    """See `inference.engines.Engines`. Made by `open_on`."""

    def __init__(self, pool: Pool, crew: Crew, choice: RemoteChoice, report: Report) -> None:
        self._pool, self._crew = pool, crew
        self._batches = report.batches
        self._next_task = 0
        self.chosen = choice
        self.batch_size = report.batch_size

    @property
    def threads(self) -> int:
        """CPU threads of all workers that are ready."""
        return sum(member.threads for member in self._crew.ready)

    @property
    def nodes(self) -> Sequence[NodeRecord]:
        """See `Engines`."""
        return self._crew.records

    def predict(
        self, items: Iterable[Item], reading: Reading[Item], *, first: int
    ) -> Generator[list[Row[Item]], None, None]:
        """See `Engines`."""
        self._crew.begin_records()
        self._pool.share(reading)

        def check(own: Sequence[Item], rows: Sequence[Row[int]]) -> str:
            return seen_otherwise(reading, own, rows)

        schedule = Schedule(self._pool, self._crew, self._tasks(items, first), check)
        with closing(schedule.run()) as done:
            for rows in done:
                for begin in range(0, len(rows), self.batch_size):
                    yield rows[begin : begin + self.batch_size]

    def _tasks(
        self, items: Iterable[Item], first: int
    ) -> Iterator[tuple[Task[object], Sequence[Item]]]:
        iterator = iter(items)
        while own := list(islice(iterator, self.batch_size * self._batches)):
            yield Task(self._next_task, first, [_portable(item) for item in own]), own
            self._next_task += 1
            first += self._batches


@contextmanager
def open_on(
    pool: Pool,
    bundle: Bundle,
    options: Options,
    previous: RunIdentity | None,
    *,
    allow_unsigned: bool,
) -> Iterator[ClusterEngines]:
    """Wait for the first worker, which decides what the options leave open.

    Raises EdgelungError if no node can run the bundle.
    """
    asked = options.precision
    options = as_before(options, previous)
    setup = Setup(
        bundle=bundle.sha256,
        engine=options.engine,
        precision=options.precision,
        batch_size=options.batch_size,
        threads=0,  # each worker has its own
        verify=options.verify,
        verify_every=options.verify_every,
        allow_unsigned=allow_unsigned,
    )
    crew = Crew(pool, setup, options.threads)
    while (report := crew.first) is None:
        crew.tend()
        for event in pool.wait(WAIT_SECONDS):
            assert not isinstance(event, Done), "nothing is predicted yet"
            crew.handle(event)
    facts = RemoteFacts(str(report.engine), report.device, report.float_type)
    choice = RemoteChoice(
        facts, bundle.variant(report.precision), report.reason, report.golden_difference
    )
    if previous is not None and asked is None:  # a worker says that it was asked for
        choice = replace(choice, reason=reason_to_resume(choice))
    yield ClusterEngines(pool, crew, choice, report)


def _portable(item: object) -> object:
    """The item as another machine finds it: this one's working folder is not its own."""
    if isinstance(item, FoundFile):
        return replace(item, location=os.path.join(os.getcwd(), item.location))
    return item


def seen_otherwise(reading: Reading[Item], items: Sequence[Item], rows: Sequence[Row[int]]) -> str:
    """How a node's view of the files differs from this machine's; '' if it does not.

    The stamps of one file of each task are compared, and those of all that could not be opened.
    """
    for position, (item, row) in enumerate(zip(items, rows, strict=True)):
        if position and row.status != Status.UNREADABLE:
            continue
        own = reading.stamp(item)
        name = getattr(item, "location", f"tile {item}")
        if own is not None and row.stamp is None:
            return f"{name} is not there"
        if own is not None and row.stamp != own:
            return f"{name} has another size or time of change there"
        if row.status == Status.UNREADABLE and _opens(reading, item):
            return f"{name} cannot be read there ({row.error})"
    return ""


def _opens(reading: Reading[Item], item: Item) -> bool:
    try:
        reading.read(item)
    except TileError as error:
        return error.status != Status.UNREADABLE
    return True
