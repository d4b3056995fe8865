"""`edgelung infer --watch`: predict tiles as a scanner or camera drops them, each once, when whole.

The folder is listed again and again: network shares do not report changes, and a list misses
nothing. A file counts as whole when its size and time have not changed for a while, no process of
this machine has it open for writing, and it decodes. A file that does not decode gets more time
first, since the writer may only have paused.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.summary import Summary
from edgelung.core.errors import EdgelungError
from edgelung.inference.destination import Destination
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import Stamp, stamp_of
from edgelung.inference.record import Record
from edgelung.inference.session import (
    DEFAULTS,
    OnRows,
    OnStopped,
    Options,
    Session,
    open_session,
)
from edgelung.inference.source import Source
from edgelung.tiles.find import FoundFile
from edgelung.tiles.names import printable
from edgelung.tiles.status import Status

POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.5  # unchanged for so long: a process that writes changes a file more often
PATIENCE_SECONDS = 30.0  # unchanged for so long and still no image: it will not become one
SLEEP_FACTOR = 5  # sleep so many times as long as listing took: a huge folder costs no core
MAYBE_UNFINISHED = (
    Status.TRUNCATED,
    Status.CORRUPT,
    Status.UNSUPPORTED,
    Status.UNREADABLE,
)

OnRecords = Callable[[Sequence[Record]], None]  # the rows that are done since the last call

logger = logging.getLogger(__name__)


def watch_folder(
    source: Source,
    bundle: Bundle,
    destination: Destination,
    options: Options = DEFAULTS,
    *,
    resume: bool | None = None,
    on_rows: OnRows = lambda count: None,
    on_stopped: OnStopped = lambda count, journal: None,
    on_records: OnRecords = lambda records: None,
) -> Summary:
    """Predict files as they appear, until interrupted.

    Rows are in the output as soon as they are known. The journal stays, so that the next watch,
    with `resume`, knows which files have their row. Folders that disappear are waited for.

    Takes, returns and raises what `infer_folder` does. The output must be a format that rows can be
    added to, and the source must not be a list. `on_records` gets the rows that are done since the
    last call.
    """
    if not destination.format.appendable:
        raise EdgelungError(
            f"rows cannot be added to {destination.name}; with --watch choose .csv or .jsonl"
        )
    if source.listing:
        raise EdgelungError("--watch finds its files itself; leave --files out")
    source.files(destination)  # raises now if a folder is wrong; later that is an outage
    if hasattr(signal, "SIGIO"):  # sent when a writer meets the lease of `being_written`
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    watcher = Watcher(source, destination)
    with open_session(
        bundle, destination, source, options, resume=resume, on_stopped=on_stopped, watch=True
    ) as session:
        for path in session.earlier_paths():
            watcher.mark_done(path)
        on_rows(session.earlier_rows)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            _watch(session, watcher, on_rows, on_records)
        return session.finish(waiting=watcher.waiting)


def _watch(session: Session, watcher: "Watcher", on_rows: OnRows, on_records: OnRecords) -> None:
    while True:
        start = time.monotonic()
        new_rows = 0
        ready = watcher.ready(start)
        for records in session.predict(ready, accept=partial(watcher.is_final, now=start)):
            for record in records:
                watcher.mark_done(record.path)
            new_rows += len(records)
            on_rows(len(records))
            on_records(records)
        if not new_rows:
            time.sleep(max(POLL_SECONDS, SLEEP_FACTOR * (time.monotonic() - start)))


@dataclass(slots=True)
class _Pending:
    """A file without a row: its stamp, and since when it has had it (monotonic seconds)."""

    stamp: Stamp
    since: float


class Watcher:
    """Tells which files are there, whole, and not done yet."""

    def __init__(self, source: Source, destination: Destination) -> None:
        self._source, self._destination = source, destination
        self._missing_folders: set[Path] = set()
        self._done: set[bytes] = set()  # hashes of printable paths
        self._pending: dict[str, _Pending] = {}

    @property
    def waiting(self) -> int:
        """How many files are there that have no row yet."""
        return sum(_key(printable(path)) not in self._done for path in self._pending)

    def mark_done(self, path: str) -> None:
        """The file with this printable path has its row."""
        self._done.add(_key(path))

    def ready(self, now: float) -> list[FoundFile]:
        """The files to predict. `now`: seconds of any monotonic clock."""
        pending: dict[str, _Pending] = {}
        ready = []
        self._report_folders()
        # A network share may be temporarily unavailable.
        with contextlib.suppress(EdgelungError, OSError):
            for file in self._source.files(self._destination, missing_ok=True):
                # Only image names: an unfinished file often has another name.
                if (
                    not (file.is_image or file.leads_out)
                    or file.leftover_of
                    or file.reason
                    or _key(printable(file.path)) in self._done
                ):
                    continue
                stamp = stamp_of(file)
                if stamp is None:
                    continue
                before = self._pending.get(file.path)
                if before is None or before.stamp != stamp:
                    before = _Pending(stamp, now)
                elif now - before.since >= SETTLE_SECONDS and (
                    file.leads_out or not being_written(file.location)
                ):
                    ready.append(file)
                pending[file.path] = before
        self._pending = pending
        return ready

    def _report_folders(self) -> None:
        missing = {folder for folder in self._source.folders if not os.path.exists(folder)}
        for folder in sorted(missing - self._missing_folders):
            logger.info("%s is not there now; waiting for it", folder)
        for folder in sorted(self._missing_folders - missing):
            logger.info("%s is there again", folder)
        self._missing_folders = missing

    def is_final(self, row: Row[FoundFile], now: float) -> bool:
        """True if the row may count: the file is unchanged, and it is a tile or never will be."""
        before = self._pending.get(row.item.path)
        if before is None or row.stamp != before.stamp or stamp_of(row.item) != before.stamp:
            return False
        if row.status == Status.EMPTY:  # the writer reserved the name and will fill it later
            return False
        return row.status not in MAYBE_UNFINISHED or now - before.since >= PATIENCE_SECONDS


def being_written(location: str) -> bool:
    """True if a process of this machine has the file open for writing, where the system tells.

    Linux grants a read lease only on a file that nobody writes to.
    """
    try:
        import fcntl

        handle = os.open(location, os.O_RDONLY | os.O_NONBLOCK)
    except (ImportError, OSError):
        return False
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except (AttributeError, OSError):  # not Linux; the file of another user; a network share
        return False
    finally:
        os.close(handle)
    return False


def _key(path: str) -> bytes:
    return blake2b(path.encode(), digest_size=16).digest()
