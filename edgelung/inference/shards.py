"""A part of a run: which files it predicts, and what shows later that all parts saw the same.

Every part lists all files, in the same order, and takes every N-th batch. So parts need not talk to
each other, and their batches are those of the undivided run: an engine may give other last digits
in a batch of another size.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from edgelung.artifacts.summary import Listing
from edgelung.core.errors import EdgelungError
from edgelung.tiles.find import FoundFile
from edgelung.tiles.names import printable

MOST = 100_000  # parts; more are a mistake
_MODULUS = 1 << 256


@dataclass(frozen=True)
class Shard:
    """One of `count` parts; `number` begins at 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read '3/8'. Raises EdgelungError for anything else."""
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found:
            number, count = map(int, found.groups())
            if 1 <= number <= count <= MOST:
                return cls(number, count)
        raise EdgelungError(
            f"--shard {text!r}: expected K/N, part K of N, such as 3/8; K from 1 to N, N at most "
            f"{MOST}"
        )

    def owns(self, batch: int) -> bool:
        """Whether the batch with this number, from 0, is in the part."""
        return batch % self.count == self.number - 1

    def size(self, files: int, batch_size: int) -> int:
        """How many of so many files are in the part."""
        rounds, rest = divmod(files, self.count * batch_size)
        own_rest = min(max(rest - (self.number - 1) * batch_size, 0), batch_size)
        return rounds * batch_size + own_rest

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class PathSum:
    """Number of paths and a sum of their hashes, in any order."""

    def __init__(self) -> None:
        self._files = self._sum = 0

    def add(self, path: str) -> None:
        """Count a printable path."""
        self._files += 1
        number = int.from_bytes(blake2b(path.encode(), digest_size=32).digest())
        self._sum = (self._sum + number) % _MODULUS

    @property
    def listing(self) -> Listing:
        """What was counted so far."""
        return Listing(files=self._files, paths=f"{self._sum:064x}")


class ShardFiles:
    """The files of a part, taken from all files of the run; `seen` counts all of them."""

    def __init__(self, files: Iterable[FoundFile], shard: Shard, batch_size: int) -> None:
        self._files, self._shard, self._batch_size = files, shard, batch_size
        self.seen = PathSum()

    def __iter__(self) -> Iterator[FoundFile]:
        for index, file in enumerate(self._files):
            self.seen.add(printable(file.path))
            if self._shard.owns(index // self._batch_size):
                yield file
