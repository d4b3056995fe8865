"""Workers in a Ray cluster. This module and `ray_join` alone speak to Ray, and import it late.

Ray places one actor for each worker on the node that is named, tells when it ends, and moves bytes.
It repeats nothing: an actor that ends is not begun again by Ray, and a call is made at most once.
"""

import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Literal

import numpy as np

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.bundle_copy import pack
from edgelung.cluster.engines import ClusterEngines, open_on
from edgelung.cluster.pool import Done, Ended, Event, Node, Opened, Refused, Started
from edgelung.cluster.ray_join import check_reachable, connect, joined, parse_address
from edgelung.cluster.tasks import Item, Setup, Task
from edgelung.cluster.worker import Worker
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.extras import load_extra
from edgelung.core.system import RUNTIME_PACKAGES, SLIDE_PACKAGES, versions
from edgelung.inference.engines import OpenEngines
from edgelung.inference.identity import RunIdentity
from edgelung.inference.options import Options
from edgelung.inference.reading import Reading

# That the head may be away. After 60 s Ray ends this process without a word of what is kept.
HEAD_SECONDS = 30.0
Kind = Literal["started", "opened", "done"]
_Untyped = Any  # values of Ray, which has no types here


@contextmanager
def ray_cluster(address: str, *, allow_unsigned: bool) -> Iterator[OpenEngines]:
    """Join a Ray cluster. Yields what opens the engines of a run on it.

    Args:
        address: 'auto', or HOST:PORT of its head.
        allow_unsigned: nodes also open a bundle that is unsigned or signed by another key.

    Raises EdgelungError if Ray is not installed, or there is no such cluster.
    """
    address = parse_address(address)
    ray = load_extra("ray", "--ray", "cluster")
    check_reachable(address)
    with joined(ray, address):
        yield partial(_open, ray, allow_unsigned)


@contextmanager
def _open(
    ray: ModuleType,
    allow_unsigned: bool,
    bundle: Bundle,
    options: Options,
    previous: RunIdentity | None,
) -> Iterator[ClusterEngines]:
    pool = RayPool(ray, bundle)
    try:
        with open_on(pool, bundle, options, previous, allow_unsigned=allow_unsigned) as engines:
            yield engines
    finally:
        pool.close()


@dataclass(frozen=True)
class _Call:
    worker: int
    kind: Kind
    task: int | None = None


class RayPool:
    """See `pool.Pool`."""

    def __init__(self, ray: ModuleType, bundle: Bundle) -> None:
        self._ray = ray
        self._bundle = ray.put(pack(bundle))
        self._actor = ray.remote(Worker)
        self._packages = versions((*RUNTIME_PACKAGES, *SLIDE_PACKAGES))
        self._workers: dict[int, _Untyped] = {}  # handles of actors
        self._calls: dict[_Untyped, _Call] = {}  # by the reference to the answer
        self._next_worker = self._source = 0
        self._reading: _Untyped = None
        self._head: str = ray.get_runtime_context().gcs_address
        self._head_seen = time.monotonic()

    def nodes(self) -> Sequence[Node]:
        """See `Pool`; none while the head does not answer. Raises EdgelungError if it is gone."""
        try:
            connect(self._head)  # without a head, `ray.nodes` would not return
        except OSError as error:
            if time.monotonic() - self._head_seen > HEAD_SECONDS:
                raise EdgelungError(
                    f"the head of the Ray cluster, {self._head}, does not answer any more "
                    f"({error.strerror or one_line(error)}); start the cluster again, or go on "
                    "without --ray"
                ) from error
            return []
        self._head_seen = time.monotonic()
        return [_node(one) for one in self._ray.nodes() if one["Alive"]]

    def start(self, node: Node, threads: int, gpu: bool) -> int:
        """See `Pool`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._next_worker += 1
        actor = self._actor.options(
            num_cpus=threads,
            num_gpus=int(gpu),
            max_concurrency=2 * threads + 2,  # more than the tasks that it is given
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote()
        self._workers[self._next_worker] = actor
        answer = actor.difference.remote(__version__, self._packages)
        self._calls[answer] = _Call(self._next_worker, "started")
        return self._next_worker

    def open(self, worker: int, setup: Setup) -> None:
        """See `Pool`."""
        answer = self._workers[worker].open.remote(setup, self._bundle)
        self._calls[answer] = _Call(worker, "opened")

    def share(self, reading: Reading[Item]) -> None:
        """See `Pool`. Bytes in an array: a node keeps one copy for all calls."""
        self._source += 1
        self._reading = self._ray.put(np.frombuffer(pickle.dumps(reading), np.uint8))

    def predict(self, worker: int, task: Task[object]) -> None:
        """See `Pool`."""
        answer = self._workers[worker].predict.remote(task, self._source, self._reading)
        self._calls[answer] = _Call(worker, "done", task.number)

    def wait(self, seconds: float) -> Sequence[Event]:
        """See `Pool`."""
        if not self._calls:
            time.sleep(seconds)
            return []
        calls = [*self._calls]
        ready, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        events = []
        for answer in ready:
            if call := self._calls.pop(answer, None):  # its worker may have ended just before
                events.append(self._event(call, answer))
        return events

    def stop(self, worker: int) -> None:
        """See `Pool`."""
        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        if (actor := self._workers.pop(worker, None)) is not None:
            with suppress(Exception):  # it may be gone already
                self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """End all workers."""
        for worker in [*self._workers]:
            self.stop(worker)

    def _event(self, call: _Call, answer: _Untyped) -> Event:
        try:
            result = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, EdgelungError) and call.kind != "started":
                return Refused(call.worker, call.task, str(cause))
            self.stop(call.worker)
            return Ended(call.worker, _last_line(cause))
        if call.kind == "started":
            return Started(call.worker, result)
        if call.kind == "opened":
            return Opened(call.worker, result)
        assert call.task is not None, "a call of `predict` has a task"
        return Done(call.worker, call.task, result)


def _node(one: Mapping[str, _Untyped]) -> Node:
    resources = one["Resources"]
    return Node(
        one["NodeID"],
        f"{one['NodeManagerHostname']} ({one['NodeManagerAddress']})",
        int(resources.get("CPU", 0)),
        int(resources.get("GPU", 0)),
    )


def _last_line(error: object) -> str:
    """What Ray says in the end: before it stand ids of actor and process, behind it advice."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[-1].rpartition("Worker exit detail: ")[2] if lines else str(error)
    return one_line(text.partition(" Some common causes")[0])
