"""The workers of a run: one for each node or GPU, begun, opened, and replaced when they end.

The first worker that opens the bundle decides engine and precision, where the options leave them
open; all others have to open the same. A node that cannot is left out, and a warning says why.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from edgelung.artifacts.summary import NodeRecord
from edgelung.cluster.pool import Ended, Node, Opened, Pool, Refused, Started
from edgelung.cluster.tasks import Report, Setup, Task
from edgelung.core.errors import EdgelungError
from edgelung.engines.names import GPU_ENGINES

NODES_SECONDS = 5.0  # between two looks for nodes that have joined
PATIENCE_SECONDS = 120.0  # without a worker that is ready, or loads its engine
MOST_FAILED_STARTS = 3  # of a node, in a row
MOST_REFUSALS = 2  # tasks in a row that a node cannot read

logger = logging.getLogger(__name__)


class Stage(Enum):
    """How far a worker is."""

    STARTING = auto()
    STARTED = auto()
    OPENING = auto()
    READY = auto()


@dataclass(eq=False)
class Member:
    """A worker. `tasks`: what it was told to predict and has not answered, oldest first."""

    number: int
    node: Node
    threads: int
    stage: Stage = Stage.STARTING
    report: Report | None = None
    tasks: dict[int, Task[object]] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Tasks that keep it busy; 0 before it has opened."""
        return self.report.slots if self.report else 0

    @property
    def load(self) -> float:
        """Tasks per slot."""
        return len(self.tasks) / self.slots


class Crew:
    """The workers on all nodes that can predict this run.

    Attributes:
        first: what the first worker has opened; None before that.
    """

    def __init__(
        self,
        pool: Pool,
        setup: Setup,
        threads: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            pool: the cluster.
            setup: how the bundle is opened; its threads are those of no worker.
            threads: most CPU threads of a worker; None: those of its node.
        """
        self._pool, self._setup = pool, setup
        self._threads, self._clock = threads, clock
        self._members: dict[int, Member] = {}
        self._left_out: dict[str, str] = {}  # id of a node → its name and the reason
        self._failed_starts: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._records: dict[tuple[str, str], NodeRecord] = {}
        self._on_gpus: bool | None = None
        self._next_look = self._hopeful = clock()
        self.first: Report | None = None

    @property
    def ready(self) -> list[Member]:
        """The workers that can predict."""
        return [one for one in self._members.values() if one.stage is Stage.READY]

    def member(self, number: int) -> Member | None:
        """A worker by its number; None if it is not one of the crew any more."""
        return self._members.get(number)

    def tend(self) -> None:
        """Begin workers where there are none, and open those that have started.

        Raises EdgelungError if no node can predict this run.
        """
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + NODES_SECONDS
            self._start_missing(self._pool.nodes())
        self._open_started()
        if any(one.stage in (Stage.OPENING, Stage.READY) for one in self._members.values()):
            self._hopeful = now
        elif not self._members and self._left_out:
            reasons = "; ".join(dict.fromkeys(self._left_out.values()))
            raise EdgelungError(f"no node of the Ray cluster can predict this run: {reasons}")
        elif now - self._hopeful > PATIENCE_SECONDS:
            raise EdgelungError(
                f"no worker could start on the Ray cluster in {PATIENCE_SECONDS:g} s; `ray status` "
                "shows whether its CPUs are in use. --threads N takes fewer of each node"
            )

    def handle(self, event: Started | Opened | Refused | Ended) -> list[Task[object]]:
        """Take note of what has happened; returns tasks that have to be given out again."""
        match event:
            case Started():
                self._started(event)
            case Opened():
                self._opened(event)
            case Refused():
                return self._refused(event)
            case Ended():
                return self._ended(event)
        return []

    def _started(self, event: Started) -> None:
        """A worker runs: it is opened by the next `tend`, unless it differs from this machine."""
        if (member := self._members.get(event.worker)) is None:
            return
        member.stage = Stage.STARTED
        if event.difference:
            self.leave_out(
                member.node, f"has {event.difference}; install the same versions on all nodes"
            )

    def _opened(self, event: Opened) -> None:
        """A worker is ready, if it has opened what the others have."""
        if (member := self._members.get(event.worker)) is None:
            return
        report, first = event.report, self.first or event.report
        self.first = first
        if report.float_type != first.float_type:
            self.leave_out(
                member.node,
                f"computes in {report.float_type} instead of {first.float_type}, so its rows would "
                "not be of one run; use nodes with like processors",
            )
            return
        member.stage, member.report = Stage.READY, report
        self._failed_starts.pop(member.node.id, None)
        self._record(report, workers=1)

    def _refused(self, event: Refused) -> list[Task[object]]:
        """A worker cannot open the bundle, or not read a task.

        Returns tasks that others have to do now.
        """
        if (member := self._members.get(event.worker)) is None:
            return []
        if event.task is None:
            return self.leave_out(member.node, event.reason)
        self._refusals[member.node.id] += 1
        if self._refusals[member.node.id] < MOST_REFUSALS:
            return []
        return self.leave_out(member.node, event.reason)

    def _ended(self, event: Ended) -> list[Task[object]]:
        """A worker is gone; returns its tasks. The next `tend` begins another one."""
        if (member := self._members.pop(event.worker, None)) is None:
            return []
        node = member.node
        if member.stage is Stage.READY:
            logger.warning(
                "a worker on %s ended (%s); its tiles are predicted again", node.name, event.reason
            )
            self._next_look = self._clock()
            return [*member.tasks.values()]
        self._failed_starts[node.id] += 1
        if self._failed_starts[node.id] >= MOST_FAILED_STARTS:
            self.leave_out(node, f"no worker starts: {event.reason}")
        return []

    def done(self, member: Member, tiles: int) -> None:
        """Count what a worker has predicted."""
        self._refusals.pop(member.node.id, None)
        assert member.report is not None, "a worker that predicts has opened the bundle"
        self._record(member.report, tiles=tiles)

    def leave_out(self, node: Node, reason: str) -> list[Task[object]]:
        """Use a node no more in this run; returns the tasks of its workers."""
        logger.warning("node %s is left out: %s", node.name, reason)
        self._left_out[node.id] = f"{node.name}: {reason}"
        lost: list[Task[object]] = []
        for member in [one for one in self._members.values() if one.node.id == node.id]:
            del self._members[member.number]
            self._pool.stop(member.number)
            lost += member.tasks.values()
        return lost

    def begin_records(self) -> None:
        """Forget what was predicted so far: the records are of what comes now."""
        self._records.clear()
        for member in self.ready:
            if member.report:
                self._record(member.report, workers=1)

    @property
    def records(self) -> list[NodeRecord]:
        """What each node has predicted, those that predicted nothing left out."""
        found = sorted(self._records.items())
        return [record for _, record in found if record.tiles]

    def _record(self, report: Report, *, workers: int = 0, tiles: int = 0) -> None:
        key = report.host.name, report.device
        before = self._records.get(key)
        self._records[key] = NodeRecord(
            host=report.host,
            engine=str(report.engine),
            device=report.device,
            floating_point=report.float_type,
            golden_difference=max(
                report.golden_difference, before.golden_difference if before else 0.0
            ),
            threads=report.threads,
            workers=workers + (before.workers if before else 0),
            tiles=tiles + (before.tiles if before else 0),
        )

    def _start_missing(self, nodes: Sequence[Node]) -> None:
        if self._on_gpus is None and nodes:
            engine = self._setup.engine
            has_gpus = any(node.gpus for node in nodes)
            self._on_gpus = has_gpus if engine is None else engine in GPU_ENGINES
        there = Counter(member.node.id for member in self._members.values())
        for node in nodes:
            wanted = node.gpus if self._on_gpus else min(node.cpus, 1)
            if node.id in self._left_out or not node.cpus:
                continue
            cpus = max(node.cpus // wanted, 1) if wanted else 0
            threads = min(cpus, self._threads or cpus)
            for _ in range(wanted - there[node.id]):
                number = self._pool.start(node, threads, bool(self._on_gpus))
                self._members[number] = Member(number, node, threads)

    def _open_started(self) -> None:
        """Open workers; only one at a time until the first has decided what all of them open."""
        for member in self._waiting_to_open():
            setup = replace(self._setup, threads=member.threads)
            if self.first is not None:
                setup = replace(setup, engine=self.first.engine, precision=self.first.precision)
            member.stage = Stage.OPENING
            self._pool.open(member.number, setup)

    def _waiting_to_open(self) -> Iterator[Member]:
        stages = [one.stage for one in self._members.values()]
        started = [one for one in self._members.values() if one.stage is Stage.STARTED]
        if self.first is not None:
            yield from started
        elif Stage.OPENING not in stages:
            yield from started[:1]
