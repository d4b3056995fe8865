"""Threads that work beside the main thread, safe against an interrupt at any moment.

In the main thread, a signal handler may raise between any two steps of Python code, those of the
standard library included. `concurrent.futures` and `threading.Thread.start` wait on
`threading.Condition`, which is Python code: an interrupt there can leave its lock taken, and then
the worker waits for it, and whoever joins the worker waits for ever. Here each wait is one call of
C code (a lock or `SimpleQueue`), which an interrupt leaves as it was.
"""

import os
import threading
from _thread import start_new_thread  # `Thread.start` waits on a Condition
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


class CancelledError(Exception):
    """A task that was dropped before it began."""


class Task(Generic[T]):
    """A call that a worker makes."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._values: list[T] = []  # the result, once there is one
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()  # released when the call has ended
        self.done = False

    def run(self) -> None:
        """Make the call."""
        try:
            self._values.append(self._call())
        except BaseException as error:  # raised again where the result is asked for
            self._error = error
        self._end()

    def cancel(self) -> None:
        """End the task without a call: `result` raises CancelledError."""
        self._error = CancelledError()
        self._end()

    def _end(self) -> None:
        self.done = True
        self._running.release()

    def result(self) -> T:
        """Wait for the call and return its result, or raise its error."""
        if not self.done:
            self._running.acquire()
            self._running.release()
        if self._error is not None:
            raise self._error
        return self._values[0]


class Workers:
    """A fixed number of daemon threads that run tasks in the order of `submit`.

    Leaving the context drops the tasks that have not begun and waits for those that run.

    Args:
        threads: how many; None: some more than there are cores, for tasks that wait for files.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._queue: SimpleQueue[Task[Any] | None] = SimpleQueue()
        self._stop = _Stop()
        self._threads: list[Task[None]] = []
        for _ in range(threads or min(32, (os.cpu_count() or 1) + 4)):
            thread = Task(partial(_work, self._queue, self._stop))
            start_new_thread(thread.run, ())
            self._threads.append(thread)

    def submit(self, call: Callable[..., T], *arguments: Any) -> Task[T]:
        """Queue `call(*arguments)`. Raises RuntimeError once the workers are closed."""
        if self._stop.requested:
            raise RuntimeError("the workers are closed")
        task = Task(lambda: call(*arguments))
        self._queue.put(task)
        return task

    def map(self, call: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
        """Queue `call(item)` for all items; yield the results in their order."""
        tasks = deque(self.submit(call, item) for item in items)
        while tasks:
            yield tasks.popleft().result()

    def close(self) -> None:
        """Drop the tasks that have not begun, and wait for those that run."""
        self._stop.requested = True
        self._end_threads()
        for thread in self._threads:
            thread.result()

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._end_threads()


class _Stop:
    """Tells the threads to drop tasks. They hold no reference to `Workers`, which may go away."""

    requested = False


def _work(tasks: "SimpleQueue[Task[Any] | None]", stop: _Stop) -> None:
    while (task := tasks.get()) is not None:
        if stop.requested:
            task.cancel()
        else:
            task.run()
        del task  # its result may be large, and the next task may be long in coming
