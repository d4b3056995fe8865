"""What the schedule needs of a cluster: nodes, worker processes on them, and what these answer.

`ray_pool.RayPool` is the real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edgelung.cluster.tasks import Item, Report, Setup, Task
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import Reading


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is up. `name`: for messages."""

    id: str
    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Started:
    """A worker process runs. `difference`: what is installed otherwise there; '' if nothing."""

    worker: int
    difference: str


@dataclass(frozen=True)
class Opened:
    """A worker has opened the bundle."""

    worker: int
    report: Report


@dataclass(frozen=True)
class Done:
    """The rows of a task, in the order of its items."""

    worker: int
    task: int
    rows: Sequence[Row[int]]


@dataclass(frozen=True)
class Refused:
    """A worker cannot do what it was told, and says why; it goes on. `task`: None: `open`."""

    worker: int
    task: int | None
    reason: str


@dataclass(frozen=True)
class Ended:
    """A worker is gone, with all that it was told to do."""

    worker: int
    reason: str


Event = Started | Opened | Done | Refused | Ended


class Pool(Protocol):
    """Workers are told what to do and answer in any order, each call with one event."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are up now."""
        ...

    def start(self, node: Node, threads: int, gpu: bool) -> int:
        """Begin a worker process on a node; returns its number. Answer: `Started`."""
        ...

    def open(self, worker: int, setup: Setup) -> None:
        """Answer: `Opened` or `Refused`."""
        ...

    def share(self, reading: Reading[Item]) -> None:
        """Send a reading to the nodes, in place of the one before."""
        ...

    def predict(self, worker: int, task: Task[object]) -> None:
        """Predict with the reading that was shared last. Answer: `Done` or `Refused`."""
        ...

    def wait(self, seconds: float) -> Sequence[Event]:
        """What has happened; waits so long if nothing has. A worker's last event is `Ended`."""
        ...

    def stop(self, worker: int) -> None:
        """End a worker; nothing more is heard of it."""
        ...
