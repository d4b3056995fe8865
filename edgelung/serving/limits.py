"""Limits of the service, the deadline of each request, and the bytes that all of them may hold."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from edgelung.serving.refusal import too_many

MIB = 2**20
# Of each body, so many bytes are not counted: the number of connections bounds them. So clients
# that stall in the middle of large bodies do not keep out ordinary tiles.
FREE_BYTES = MIB


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and for how long. The pixels are limited by the reader.

    Attributes:
        tiles: that may wait or run at once, of all requests; beyond them a request is refused.
        body_bytes: of one request, also after decompression.
        seconds: for a request, from its header to its answer.
        json_bytes: of the JSON part of a request; lists of numbers take many times their text.
        header_bytes: of a request's line and headers.
        header_seconds: from the connection, or the first byte of a further request, to the last
            header; before that, as long again for the handshake of TLS.
        linger_seconds: for the rest of a body that is refused, and for answers that wait to be
            read after the connection was closed.
        write_seconds: for a client to read an answer that has filled the buffers.
        connections: open at once, without those that are being refused.
        pipelined: requests that wait behind another one in a connection.
    """

    tiles: int = 256
    body_bytes: int = 64 * MIB
    seconds: float = 30.0
    json_bytes: int = 8 * MIB
    header_bytes: int = 32 * 1024
    header_seconds: float = 10.0
    linger_seconds: float = 5.0
    write_seconds: float = 30.0
    connections: int = 512
    pipelined: int = 16

    @property
    def held_bytes(self) -> int:
        """Of what all bodies that are being read, wait or run have beyond `FREE_BYTES`."""
        return max(4 * self.body_bytes, 256 * MIB)


class HeldBytes:
    """Counts the bytes that all requests hold beyond `FREE_BYTES` each."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0

    @contextmanager
    def of_request(self) -> Iterator["Holding"]:
        """What one request holds; it counts until the context ends."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.bytes -= holding.counted

    def add(self, count: int) -> None:
        """Count more bytes. Raises Refusal if there are too many."""
        if self.bytes + count > self._limit:
            raise too_many(
                f"large requests together hold more than {self._limit // MIB} MiB; send it again "
                "later"
            )
        self.bytes += count


class Holding:
    """The bytes of one request; `counted` of them are beyond `FREE_BYTES`."""

    def __init__(self, held: HeldBytes) -> None:
        self._held = held
        self._bytes = self.counted = 0

    def add(self, count: int) -> None:
        """The request holds more bytes. Raises Refusal if all together hold too many."""
        more = max(0, self._bytes + count - FREE_BYTES) - self.counted
        self._held.add(more)
        self._bytes += count
        self.counted += more


class Deadlines:
    """One deadline for each request; `stop` moves all of them forward."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[asyncio.Timeout] = set()
        self._latest = math.inf

    @asynccontextmanager
    async def of_request(self) -> AsyncIterator[None]:
        """Raise TimeoutError at the deadline of a request that begins now."""
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(min(now + self._seconds, self._latest)) as timeout:
            self._running.add(timeout)
            try:
                yield
            finally:
                self._running.discard(timeout)

    def stop(self, seconds: float) -> None:
        """Every request has an answer, if only a refusal, after so many seconds."""
        self._latest = asyncio.get_running_loop().time() + seconds
        for timeout in self._running:
            before = timeout.when()
            if not timeout.expired() and (before is None or before > self._latest):
                timeout.reschedule(self._latest)
