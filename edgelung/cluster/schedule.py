"""Who predicts what: tasks to workers, rows back in order, each once, whatever ends meanwhile.

A task counts when its rows have arrived here. One whose worker ends before that is given to another
worker; one that a node cannot read, to another node. A task with which two workers have ended is a
suspect: it is predicted alone, and the items that end their worker are found (`hunt.py`).
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic

from edgelung.cluster.crew import Crew, Member
from edgelung.cluster.hunt import Hunt
from edgelung.cluster.pool import Done, Ended, Event, Pool, Refused
from edgelung.cluster.tasks import Item, Task
from edgelung.core.errors import EdgelungError
from edgelung.inference.pipeline import Row

WAIT_SECONDS = 0.5  # between two looks at nodes and workers while nothing happens
QUEUED = 2  # tasks per slot of a worker: one runs, one waits
AHEAD = 8  # tasks per slot whose rows may wait here for those of an earlier task
SUSPECT = 2  # workers that end with a task before it is predicted alone
MOST_REFUSALS = 4  # times that a task is not read before the run ends
MOST_FOUND = 20  # items that end their worker; with more, something else is wrong

logger = logging.getLogger(__name__)

# What is wrong with the rows of a task, given its items; '' if nothing.
Check = Callable[[Sequence[Item], Sequence[Row[int]]], str]


@dataclass(eq=False)
class _State(Generic[Item]):
    """A task that is not done. `items`: as this machine knows them. `refused_by`: nodes."""

    task: Task[object]
    items: Sequence[Item]
    ends: int = 0
    refused_by: list[str] = field(default_factory=list)


class Schedule(Generic[Item]):
    """One pass over the tasks of a run, or of a slide."""

    def __init__(
        self,
        pool: Pool,
        crew: Crew,
        tasks: Iterator[tuple[Task[object], Sequence[Item]]],
        check: Check[Item],
    ) -> None:
        """
        Args:
            pool, crew: the cluster and the workers on it.
            tasks: in order, made as they are needed, each with its items; their numbers follow one
                another.
            check: what is wrong with rows that arrive.
        """
        self._pool, self._crew, self._tasks, self._check = pool, crew, tasks, check
        self._all_made = False
        self._open: dict[int, _State[Item]] = {}  # by the number of the task
        self._waiting: deque[_State[Item]] = deque()
        self._suspects: deque[_State[Item]] = deque()
        self._rows: dict[int, list[Row[Item]]] = {}  # that wait for those of an earlier task
        self._hunt: Hunt | None = None
        self._hunted: _State[Item] | None = None
        self._hunter: Member | None = None
        self._found = 0

    def run(self) -> Generator[list[Row[Item]], None, None]:
        """The rows of each task, in order. Raises EdgelungError if they cannot all be had."""
        following: int | None = None
        try:
            while True:
                self._crew.tend()
                self._give_tasks()
                if following is None and self._open:
                    following = min(self._open)
                if self._all_made and not self._open and not self._rows:
                    return
                for event in self._pool.wait(WAIT_SECONDS):
                    self._handle(event)
                while following is not None and following in self._rows:
                    yield self._rows.pop(following)
                    following += 1
        finally:  # what workers still do is of no use to a later pass
            for member in self._crew.ready:
                member.tasks.clear()

    def _give_tasks(self) -> None:
        self._give_trial()
        ready = [one for one in self._crew.ready if one is not self._hunter]
        limit = AHEAD * sum(member.slots for member in ready)
        while ready:
            member = min(ready, key=lambda one: one.load)
            if member.load >= QUEUED:
                return
            if (state := self._next(member, limit)) is None:
                ready.remove(member)  # another one may do what this one cannot
            else:
                self._send(member, state.task)

    def _send(self, member: Member, task: Task[object]) -> None:
        member.tasks[task.number] = task
        self._pool.predict(member.number, task)

    def _next(self, member: Member, limit: int) -> _State[Item] | None:
        """A task for a worker: one that others could not do, else a new one."""
        ready = {one.node.id for one in self._crew.ready}
        for state in self._waiting:
            if member.node.id not in state.refused_by or ready <= {*state.refused_by}:
                self._waiting.remove(state)
                return state
        if self._all_made or len(self._open) + len(self._rows) >= limit:
            return None
        with suppress(StopIteration):
            state = _State(*next(self._tasks))
            self._open[state.task.number] = state
            return state
        self._all_made = True
        return None

    def _handle(self, event: Event) -> None:
        match event:
            case Done():
                self._done(event)
            case Refused():
                self._refused(event)
            case Ended():
                self._ended(event)
            case _:
                self._crew.handle(event)

    def _done(self, event: Done) -> None:
        member = self._crew.member(event.worker)
        task = member.tasks.pop(event.task, None) if member else None
        if member is None or task is None:  # of an earlier pass
            return
        state = self._open[event.task]
        is_trial = member is self._hunter and state is self._hunted
        if is_trial and self._hunt and not self._hunt.survived():
            return
        if wrong := self._check(state.items, event.rows):
            member.tasks[event.task] = task
            self._refused(Refused(event.worker, event.task, wrong))
            return
        if is_trial:
            self._end_hunt()
        self._crew.done(member, len(event.rows))
        del self._open[event.task]
        self._rows[event.task] = [
            _with_item(row, item) for row, item in zip(event.rows, state.items, strict=True)
        ]

    def _refused(self, event: Refused) -> None:
        """Let another node try what this one cannot read."""
        member = self._crew.member(event.worker)
        if member is not None and event.task is not None:
            if member.tasks.pop(event.task, None) is None:
                return
            state = self._open[event.task]
            state.refused_by.append(member.node.id)
            if len(state.refused_by) >= MOST_REFUSALS:
                raise EdgelungError(
                    f"the nodes of the Ray cluster cannot read what this machine reads: "
                    f"{event.reason}; expected the same files under the same path on all nodes"
                )
            if state is self._hunted:
                self._hunter = None
            else:
                self._waiting.appendleft(state)
        self._take_back(self._crew.handle(event))

    def _ended(self, event: Ended) -> None:
        lost = self._crew.handle(event)
        if self._hunter is not None and self._hunter.number == event.worker:
            self._hunter = None
        for task in lost:
            state = self._open[task.number]
            state.ends += 1
            if state is self._hunted and self._hunt:
                self._hunt.ended(event.reason)
        self._take_back(lost)

    def _take_back(self, tasks: Sequence[Task[object]]) -> None:
        """Tasks of workers that are gone are done again, before new ones."""
        for task in reversed(tasks):
            state = self._open[task.number]
            if state is self._hunted:
                self._hunter = None
            elif state.ends >= SUSPECT:
                self._suspects.append(state)
            else:
                self._waiting.appendleft(state)

    def _give_trial(self) -> None:
        """Give the next trial of a suspect task to a worker, once that has nothing else to do."""
        if self._hunt is None:
            if not self._suspects:
                return
            self._hunted = self._suspects.popleft()
            self._hunt = Hunt(self._hunted.task)
        ready = self._crew.ready
        if self._hunter not in ready:  # none yet, or its node was left out
            self._hunter = min(ready, key=lambda one: one.load, default=None)
        if self._hunter is None:
            return
        if not self._hunter.tasks:
            self._send(self._hunter, self._hunt.trial)

    def _end_hunt(self) -> None:
        assert self._hunt is not None
        assert self._hunted is not None
        found = [self._hunted.items[i] for i in self._hunt.found]
        for item in found:
            logger.warning("%s ends the worker that reads it", _name(item))
        self._found += len(found)
        if self._found > MOST_FOUND:
            raise EdgelungError(
                f"{self._found} tiles end the worker that reads them, {_name(found[0])} for one; "
                "something is wrong with the nodes, or with the files"
            )
        self._hunt = self._hunted = self._hunter = None


def _with_item(row: Row[int], item: Item) -> Row[Item]:
    """The row of a worker, which knows items by their positions, with the item itself."""
    fields = {name: getattr(row, name) for name in row.__dataclass_fields__}
    return Row(**(fields | {"item": item}))


def _name(item: object) -> str:
    return str(getattr(item, "path", f"tile {item}"))
