"""Which items of a task end the worker that reads them: found by halving.

A worker that has a suspect task has nothing else to do, so that its end says something about this
task. The trials only find the items. At last the task is predicted once more without them, in its
own batches, as on one machine the items that cannot be decoded are taken out of a batch.
"""

from dataclasses import replace

from edgelung.cluster.tasks import Task
from edgelung.core.errors import EdgelungError

REASON = "reading or predicting it ended the worker process each time"
ALONE = 3  # ends of a worker that had one item alone: workers end for other reasons too
_SKIPPED = "left out of this trial"
MOST_FRUITLESS = 2  # searches of one task that find no item


class Hunt:
    """Give `trial` to a worker, then say what came of it, until `survived` returns True."""

    def __init__(self, task: Task[object]) -> None:
        self._task = task
        self.found: dict[int, str] = {}  # positions of items that end their worker → the reason
        self._parts: list[list[int]] = []  # to try; empty: the whole task is tried
        self._ends = 0  # of workers that had the item alone that is tried now
        self._fruitless = 0
        self._before = 0  # how many were found when the last search began

    @property
    def trial(self) -> Task[object]:
        """What to predict now."""
        without = dict(self.found)
        if self._parts:
            part = set(self._parts[-1])
            others = (i for i in range(len(self._task.items)) if i not in part)
            without = dict.fromkeys(others, _SKIPPED) | without
        return replace(self._task, without=without)

    def survived(self) -> bool:
        """The worker did not end. True: the rows are those of the task."""
        if not self._parts:
            return True
        self._parts.pop()
        self._ends = 0
        return False

    def ended(self, reason: str) -> None:
        """The worker ended. Raises EdgelungError if no item is to blame."""
        if not self._parts:
            self._begin_search(reason)
            return
        part = self._parts[-1]
        if len(part) > 1:
            half = len(part) // 2
            self._parts[-1:] = [part[half:], part[:half]]
            return
        self._ends += 1
        if self._ends == ALONE:
            self.found[part[0]] = REASON
            self._parts.pop()
            self._ends = 0

    def _begin_search(self, reason: str) -> None:
        self._fruitless = 0 if len(self.found) > self._before else self._fruitless + 1
        left = [i for i in range(len(self._task.items)) if i not in self.found]
        if self._fruitless > MOST_FRUITLESS or not left:
            raise EdgelungError(
                f"workers end again and again, and no single tile is to blame ({reason}); is there "
                "enough memory on the nodes? `ray status` and Ray's logs say more"
            )
        self._before = len(self.found)
        self._parts = [left]
        if len(left) > 1:
            self.ended(reason)  # the whole has just been tried
