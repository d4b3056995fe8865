"""A cluster within the test process: workers predict when the schedule waits, one call a step.

Its clock moves only while the schedule waits. What ends, refuses or lies is told by the test.
"""

import pickle
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.bundle_copy import pack
from edgelung.cluster.pool import Done, Ended, Event, Node, Opened, Refused, Started
from edgelung.cluster.tasks import Item, Report, Setup, Task
from edgelung.cluster.worker import Worker
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.core.system import host
from edgelung.engines.names import EngineName
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import Reading
from edgelung.tiles.status import Status

T = TypeVar("T")
NODES = (Node("a", "a", 2, 0), Node("b", "b", 2, 0))
REPORT = Report(
    host=host(),
    engine=EngineName.OPENVINO,
    device="CPU",
    float_type="fp32",
    precision=Precision.INT8,
    reason="stand-in",
    golden_difference=0.0,
    batch_size=4,
    threads=2,
    slots=2,
    batches=2,
)


@dataclass
class StandIn:
    """See `edgelung.cluster.pool.Pool`.

    Attributes:
        up: the nodes.
        answer: what a worker on this node says to a task, in place of its rows; None: the rows.
        opens: what a worker on this node says to `open`: a report, or why it refuses.
        starts: '' or what a node has otherwise; None: no worker starts there.
        now: the time.
        predicted: every (node, item) that was read, in order.
    """

    up: list[Node] = field(default_factory=lambda: [*NODES])
    answer: Callable[[str, Task[object]], Event | None] = lambda node, task: None
    opens: Callable[[str], Report | str] = lambda node: REPORT
    starts: Callable[[str], str | None] = lambda node: ""
    now: float = 0.0
    predicted: list[tuple[str, object]] = field(default_factory=list)
    setups: list[Setup] = field(default_factory=list)
    workers: dict[int, str] = field(default_factory=dict)  # number → node
    began: int = 0
    most_at_once: int = 0
    _events: deque[Event] = field(default_factory=deque)
    tasks: dict[int, deque[Task[object]]] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def nodes(self) -> Sequence[Node]:
        return self.up

    def start(self, node: Node, threads: int, gpu: bool) -> int:
        self.began += 1
        self.workers[self.began], self.tasks[self.began] = node.id, deque()
        difference = self.starts(node.id)
        if difference is None:
            self.end(self.began, "it does not start")
        else:
            self._events.append(Started(self.began, difference))
        return self.began

    def open(self, worker: int, setup: Setup) -> None:
        self.setups.append(setup)
        found = self.opens(self.workers[worker])
        self._events.append(
            Refused(worker, None, found) if isinstance(found, str) else Opened(worker, found)
        )

    def share(self, reading: Reading[Item]) -> None:
        self.reading = reading

    def predict(self, worker: int, task: Task[object]) -> None:
        if worker in self.tasks:  # else it has ended, and that was said
            self.tasks[worker].append(task)
            self.most_at_once = max(self.most_at_once, len(self.tasks[worker]))

    def wait(self, seconds: float) -> Sequence[Event]:
        if not self._events:
            self.now += seconds
            for worker in [*self.tasks]:
                self._step(worker)
        events = [*self._events]
        self._events.clear()
        return events

    def stop(self, worker: int) -> None:
        self.workers.pop(worker, None)
        self.tasks.pop(worker, None)
        self._events = deque(one for one in self._events if one.worker != worker)

    def end(self, worker: int, reason: str = "killed") -> None:
        """A worker ends with all that it has to do."""
        self.workers.pop(worker, None)
        self.tasks.pop(worker, None)
        self._events.append(Ended(worker, reason))

    def _step(self, worker: int) -> None:
        tasks = self.tasks.get(worker)
        if not tasks:
            return
        task, node = tasks[0], self.workers[worker]
        event = self.answer(node, task)
        if isinstance(event, Ended):
            self.end(worker, event.reason)
            return
        tasks.popleft()
        if event is not None:
            self._events.append(event)
        else:
            self.predicted += [(node, item) for item in task.items]
            self._events.append(self._work(worker, task))

    def _work(self, worker: int, task: Task[object]) -> Event:
        return Done(worker, task.number, rows_of(task))


class InProcess(StandIn):
    """Its workers are real ones, with real engines; what goes to them and back is pickled."""

    def __init__(self, bundle: Bundle, **told: Any) -> None:
        super().__init__(**told)
        self._bundle, self._real = pack(bundle), dict[int, Worker]()
        self._source = 0

    def open(self, worker: int, setup: Setup) -> None:
        self._real[worker] = Worker()
        try:
            report = self._real[worker].open(sent(setup), sent(self._bundle))
        except EdgelungError as error:
            self._events.append(Refused(worker, None, str(error)))
        else:
            self._events.append(Opened(worker, sent(report)))

    def share(self, reading: Reading[Item]) -> None:
        self._source += 1
        self._pickled = np.frombuffer(pickle.dumps(reading), np.uint8)

    def _work(self, worker: int, task: Task[object]) -> Event:
        try:
            rows = self._real[worker].predict(sent(task), self._source, self._pickled)
        except EdgelungError as error:
            return Refused(worker, task.number, str(error))
        return Done(worker, task.number, sent(rows))


def sent(value: T) -> T:
    """The value as another process gets it."""
    copy: T = pickle.loads(pickle.dumps(value))
    return copy


def rows_of(task: Task[object]) -> list[Row[int]]:
    """A row for each item: its probability is the item, a number."""
    return [
        Row(i, Status.FAILED, reason)
        if (reason := task.without.get(i))
        else Row(i, Status.OK, probabilities=np.array([item], np.float32))
        for i, item in enumerate(task.items)
    ]
