"""Tiles of all requests in one bounded queue; engine threads take batches from it.

A request asks for one tile or several. Each engine thread takes its share of what waits, at most a
batch, decodes it and runs the engine, as in a folder run (`edgelung.inference.pipeline`). So a
batch is as large as the load makes it: one tile alone does not wait for others.

Tiles of several requests share a batch. A tile that cannot be decoded is a row with its status, as
in a folder run. If a batch fails as a whole, its tiles run one by one, so that no request fails for
a neighbour.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from edgelung.core.errors import one_line
from edgelung.core.workers import Task, Workers
from edgelung.inference.pipeline import Row, decode_threads_of, predict_batch
from edgelung.inference.reading import Stamp
from edgelung.inference.session import LoadedEngines
from edgelung.serving.refusal import too_large, too_many, unavailable
from edgelung.tiles.budget import DECODING
from edgelung.tiles.reader import ReaderSpec, Tile, TileError, read_encoded, resize
from edgelung.tiles.sizes import Size
from edgelung.tiles.status import Status

Read = Callable[[], tuple[Tile | Image.Image, Size]]
Rows = Sequence[Row["Job"]]

logger = logging.getLogger(__name__)


class Measured(Protocol):
    """Records the sizes of batches."""

    def batch(self, tiles: int) -> None:
        """Record a batch that has run."""
        ...


@dataclass(slots=True)
class Job:
    """One tile of a request: `read` gives its pixels and the size of the image they come from."""

    request: "Request"
    read: Read


class Request:
    """The tiles that one client waits for. Lives in the event loop; `future` gives the rows."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reads: Sequence[Read]) -> None:
        self.loop = loop
        self.jobs = [Job(self, read) for read in reads]
        self.future: asyncio.Future[Rows] = loop.create_future()
        self.ended = False  # nobody waits any more: what has not begun is dropped
        self._rows: dict[int, Row[Job]] = {}

    def add(self, rows: Rows) -> None:
        """Take the rows of some of the tiles. For the event loop."""
        self._rows.update((id(row.item), row) for row in rows)
        if len(self._rows) == len(self.jobs) and not self.future.done():
            self.future.set_result([self._rows[id(job)] for job in self.jobs])

    def end(self) -> None:
        """Drop the tiles that have not begun, and release the images.

        A request and its tiles refer to each other. Without this, the images would stay in memory
        until Python's garbage collector runs, beyond the limit on the bytes of all requests.
        """
        self.ended = True
        for job in self.jobs:
            job.read = _released


class _JobReading:
    """Gives the pixels of a job; see `edgelung.inference.reading.Reading`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def stamp(self, item: Job) -> Stamp | None:
        """A tile that came over the network does not change."""
        return None

    def read(self, item: Job) -> tuple[Tile | Image.Image, Size]:
        """See `Reading.read`."""
        return item.read()


class Batcher:
    """The queue and its engine threads.

    Args:
        engines: the loaded engine and how it is used.
        spec: the reader's specification.
        limit: tiles that may wait or run at once.
        measured: records the size of each batch.
    """

    def __init__(
        self, engines: LoadedEngines, spec: ReaderSpec, limit: int, measured: Measured
    ) -> None:
        self._engine, self._spec = engines.chosen.engine, spec
        self._batch_size, self.limit = engines.batch_size, limit
        self._measured = measured
        self._reading = _JobReading(spec.size)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.tiles = 0  # tiles that wait or run
        ahead = decode_threads_of(self._engine, self._batch_size, engines.threads)
        self._decoders = Workers(ahead) if ahead else None
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{i}", daemon=True)
            for i in range(self._engine.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Tiles that no engine thread has taken yet."""
        return len(self._waiting)

    def check_room(self, tiles: int = 1) -> None:
        """Raise Refusal if a request of so many tiles cannot be taken now, or never."""
        if tiles > self.limit:
            raise too_large(f"{tiles} tiles in one request; expected {self.limit} at most")
        if self.tiles + tiles > self.limit:
            raise too_many(
                f"{self.tiles} tiles wait or run, of {self.limit} that may; send it again later"
            )

    def encoded(self, data: bytes) -> Read:
        """How the pixels of an encoded image are read. On a GPU it is decoded ahead from now on."""
        if self._decoders is None:
            return lambda: read_encoded(data, self._spec)
        task = self._decoders.submit(self._decode, data)
        return lambda: _result(task)

    def submit(self, request: Request) -> None:
        """Queue the tiles of a request. Raises Refusal as `check_room`, and once closed."""
        with self._changed:
            if self._closed:
                raise unavailable("the service is stopping")
            self.check_room(len(request.jobs))
            self.tiles += len(request.jobs)
            self._waiting.extend(request.jobs)
            self._changed.notify(len(request.jobs))

    def close(self) -> None:
        """Run what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._decoders is not None:
            self._decoders.close()

    def _take(self) -> list[Job]:
        """Wait for tiles and take this thread's share of them; none once closed and empty."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            share = -(-len(self._waiting) // len(self._threads))
            count = min(self._batch_size, share)
            return [self._waiting.popleft() for _ in range(count)]

    def _work(self) -> None:
        """One engine thread."""
        while jobs := self._take():
            live = [job for job in jobs if not job.request.ended]
            rows = self._predict(live) if live else []
            with self._changed:
                self.tiles -= len(jobs)  # before the answers: a client may then ask again
            self._deliver(rows)
            del jobs, live, rows  # not kept while the thread waits for the next batch

    def _predict(self, jobs: list[Job]) -> Rows:
        """Predict a batch. If it fails as a whole, its tiles run one by one."""
        try:
            rows = predict_batch(jobs, self._reading, self._engine)
        except Exception as error:  # a bug: its requests fail, the thread goes on
            logger.warning("a batch of %d tiles failed: %s", len(jobs), one_line(error))
            if len(jobs) == 1:
                return [_failed(jobs[0], error)]
            return [row for job in jobs for row in self._predict([job])]
        self._measured.batch(len(jobs))
        return rows

    def _deliver(self, rows: Rows) -> None:
        """Give each request its rows, in the event loop."""
        by_request: dict[Request, list[Row[Job]]] = {}
        for row in rows:
            by_request.setdefault(row.item.request, []).append(row)
        for request, own in by_request.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                request.loop.call_soon_threadsafe(request.add, own)

    def _decode(self, data: bytes) -> tuple[Tile, Size]:
        """Decode and resize on a thread that runs ahead of the engine."""
        with DECODING:
            pixels, size = read_encoded(data, self._spec)
            return resize(pixels, self._spec.size), size


def _result(task: Task[tuple[Tile, Size]]) -> tuple[Tile, Size]:
    try:
        return task.result()
    except TileError as error:  # which is kept: its traceback would grow with each time raised
        raise TileError(error.status, error.reason) from None


def _released() -> tuple[Tile, Size]:
    raise TileError(Status.FAILED, "nobody waits for it")


def _failed(job: Job, error: Exception) -> Row[Job]:
    return Row(job, Status.FAILED, f"the engine failed: {one_line(error)}")
