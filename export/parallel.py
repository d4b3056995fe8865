"""Run a function over items on several threads, with the results in the order of the items."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from edgelung.core.workers import Task, Workers

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order.

    At most 2 · `threads` items are waiting, in work or finished but not yet yielded, so memory does
    not grow with the number of items. The items are read in the calling thread.
    """
    pending: deque[Task[Result]] = deque()
    with Workers(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) == 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
