"""One memory budget for all decoders of the process.

A small file can ask for gigabytes of pixels. Each decoder states, once it knows the size of the
image and before it allocates, how many bytes it needs at most. It waits until they fit beside those
that other threads use. An image that needs more than the whole budget is refused.

    with DECODING:              # what is reserved within is given back at the end
        pixels = decode(data)   # calls DECODING.reserve
"""

import math
import os
import threading
from collections import deque

from edgelung.core.errors import EdgelungError
from edgelung.core.system import total_memory
from edgelung.tiles.errors import Status, TileError

ENVIRONMENT = "EDGELUNG_DECODE_MIB"
MAX_DEFAULT = 2**30  # bytes
SHARE = 4  # of the machine's memory, one part in so many
FREE = 8 * 2**20  # an image that needs less is not counted: ordinary tiles take no lock
LARGE_FILE = 32 * 2**20  # bytes; a longer file has the whole budget for itself, from its reading on


class _Reservation:
    """Bytes that one thread asks for. `turn` is released when they are granted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = False
        self.turn = threading.Lock()
        self.turn.acquire()


class _Hold(threading.local):
    """What a thread holds: how deep it is within `with DECODING`, and its one reservation."""

    depth = 0
    reservation: _Reservation | None = None


class DecodeBudget:
    """Bytes that all decoders may use together. Threads get them in the order in which they ask.

    A thread has at most one reservation, made before it allocates: so it never waits for others
    while they wait for it.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._used = 0
        self._waiting: deque[_Reservation] = deque()
        self._lock = threading.Lock()
        self._hold = _Hold()

    @property
    def total(self) -> int:
        """The size of the budget in bytes. Raises EdgelungError for a wrong EDGELUNG_DECODE_MIB."""
        if self._total is None:
            self._total = _default_total()
        return self._total

    def __enter__(self) -> "DecodeBudget":
        self._hold.depth += 1
        return self

    def __exit__(self, *exception: object) -> None:
        hold = self._hold
        hold.depth -= 1
        if not hold.depth and hold.reservation is not None:
            self._give_back(hold.reservation)
            hold.reservation = None

    def reserve(self, size: float) -> None:
        """Wait until `size` bytes are free, and reserve them for this thread.

        A second call within the same `with` asks for a part of what is reserved. Outside of a
        `with`, only the limit is checked.

        Raises TileError `too-large` for more than the budget, or than is reserved.
        """
        if size <= FREE:
            return
        hold = self._hold
        limit = self.total if hold.reservation is None else hold.reservation.size
        if size > limit:
            raise TileError(
                Status.TOO_LARGE,
                f"decoding it needs about {math.ceil(size / 2**20)} MiB of memory; the limit is "
                f"{limit / 2**20:.0f} MiB ({ENVIRONMENT})",
            )
        if hold.depth and hold.reservation is None:
            hold.reservation = _Reservation(math.ceil(size))
            self._wait(hold.reservation)

    def reserve_file(self, length: int) -> None:
        """Reserve the whole budget for a file of more than LARGE_FILE bytes."""
        if length > LARGE_FILE:
            self.reserve(max(length, self.total))

    def _wait(self, reservation: _Reservation) -> None:
        with self._lock:
            self._waiting.append(reservation)
            self._grant()
        if not reservation.granted:
            reservation.turn.acquire()  # an interrupt leaves it to `__exit__`

    def _give_back(self, reservation: _Reservation) -> None:
        with self._lock:
            if reservation.granted:
                self._used -= reservation.size
            else:
                self._waiting.remove(reservation)
            self._grant()

    def _grant(self) -> None:
        """Grant those that wait, in order, as long as the next one fits. Needs the lock."""
        while self._waiting and self._used + self._waiting[0].size <= self.total:
            reservation = self._waiting.popleft()
            self._used += reservation.size
            reservation.granted = True
            reservation.turn.release()


def _default_total() -> int:
    text = os.environ.get(ENVIRONMENT)
    if not text:
        return min(MAX_DEFAULT, total_memory() // SHARE)
    if not text.isdecimal() or not 16 <= int(text) <= 2**30:
        raise EdgelungError(f"{ENVIRONMENT} is {text!r}; expected MiB of memory, such as 1024")
    return int(text) * 2**20


DECODING = DecodeBudget()
