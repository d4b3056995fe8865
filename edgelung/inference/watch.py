"""`edgelung infer --watch`: tiles as a scanner or camera drops them, each once, when whole.

The folder is listed again and again: shares do not tell of changes, and a list misses nothing. A
file counts as whole when its size and time have stood still for a while, nobody on this machine has
it open for writing, and it decodes; one that does not decode is given more time first, since the
writer may only have paused.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.files import TEMPORARY_SUFFIX
from edgelung.inference.journal import Journal
from edgelung.inference.listing import gather
from edgelung.inference.pipeline import Row, Stamp, stamp_of
from edgelung.inference.record import printable
from edgelung.inference.session import Options, Session, Unbuffered
from edgelung.inference.summary import summary_path
from edgelung.inference.writer import ParquetRows, format_of
from edgelung.tiles.find import FoundFile

POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.5  # unchanged for so long: a writer that is at work changes a file more often
PATIENCE_SECONDS = 30.0  # unchanged for so long and still no image: it will not become one
UNFINISHED = ("truncated", "corrupt", "unsupported", "unreadable")


@dataclass(slots=True)
class _Pending:
    stamp: Stamp
    since: float


class Watcher:
    """Tells which files are there, whole and not done yet."""

    def __init__(
        self,
        folders: Sequence[Path],
        out: Path,
        also_written: Sequence[Path | None],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._inputs = (folders, None, None, out, also_written)
        self._say = say
        self._away: set[Path] = set()
        self._done: set[bytes] = set()
        self._pending: dict[str, _Pending] = {}

    def done(self, path: str) -> None:
        """The file with this printable path has its row."""
        self._done.add(_key(path))

    def ready(self, now: float) -> list[FoundFile]:
        """Those to predict; `now` in seconds of any steady clock."""
        pending: dict[str, _Pending] = {}
        ready = []
        self._look_for_folders()
        with contextlib.suppress(EdgelungError, OSError):  # a share that went away may come back
            for file in gather(*self._inputs, missing_ok=True):
                # By its name alone: what is not finished often bears another one.
                if not file.is_image or file.reason or _key(printable(file.path)) in self._done:
                    continue
                stamp = stamp_of(file)
                if stamp is None:
                    continue
                before = self._pending.get(file.path)
                if before is None or before.stamp != stamp:
                    before = _Pending(stamp, now)
                elif now - before.since >= SETTLE_SECONDS and not being_written(file.location):
                    ready.append(file)
                pending[file.path] = before
        self._pending = pending
        return ready

    def _look_for_folders(self) -> None:
        away = {folder for folder in self._inputs[0] if not os.path.exists(folder)}
        for folder in sorted(away - self._away):
            self._say(f"{folder} is not there now; waiting for it")
        for folder in sorted(self._away - away):
            self._say(f"{folder} is there again")
        self._away = away

    def final(self, row: Row, now: float) -> bool:
        """Whether the row may stand: the file is what it was, and a tile or never will be one."""
        before = self._pending.get(row.file.path)
        if before is None or row.stamp != before.stamp or stamp_of(row.file) != before.stamp:
            return False
        if row.status == "empty":  # a name that is held for what will come, however late
            return False
        return row.status not in UNFINISHED or now - before.since >= PATIENCE_SECONDS

    @property
    def waiting(self) -> int:
        """How many files are there that have no row yet."""
        return sum(_key(printable(path)) not in self._done for path in self._pending)


def watch_folder(
    folders: Sequence[Path],
    bundle: Bundle,
    out: Path,
    options: Options,
    *,
    resume: bool | None = None,
    summary: Path | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_kept: Callable[[int], None] = lambda rows: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Predict files as they appear, until interrupted; returns the summary.

    Rows are in `out` as soon as they are known. The journal stays, so that the next watch, with
    `resume`, knows which files have had their row.
    """
    if format_of(out) is ParquetRows:
        raise EdgelungError(f"{out.name} cannot be added to; with --watch choose .csv or .jsonl")
    options = replace(options, source={**options.source, "--watch": True})
    watcher = Watcher(folders, out, [summary_path(out, summary)], say)
    gather(folders, None, None, out)  # a wrong FOLDER is a mistake now and an outage later
    if hasattr(signal, "SIGIO"):  # a writer that meets a lease; see being_written
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    with Session(bundle, out, options, resume=resume, summary=summary, on_kept=on_kept) as session:
        with contextlib.ExitStack() as stack:
            if session.journal:
                stack.callback(_go_live(session, session.journal, watcher).close)
                on_rows(session.journal.rows)
            with contextlib.suppress(KeyboardInterrupt, SystemExit):
                _watch(session, watcher, on_rows)
        return session.finish(check=False) | {"waiting": watcher.waiting}


def _watch(session: Session, watcher: Watcher, on_rows: Callable[[int], None]) -> None:
    while True:
        begun = time.monotonic()
        kept = 0
        ready = watcher.ready(begun)
        for records in session.batches(ready, keep=partial(watcher.final, now=begun)):
            for record in records:
                watcher.done(record.path)
            kept += len(records)
            on_rows(len(records))
        if not kept:  # listing a huge folder must not be all that the machine does
            time.sleep(max(POLL_SECONDS, 5 * (time.monotonic() - begun)))


def _go_live(session: Session, journal: Journal, watcher: Watcher) -> IO[bytes]:
    """Write the rows so far under their name and go on adding to that very file."""
    part = session.out.with_name(f".{session.out.name}{TEMPORARY_SUFFIX}")
    file = part.open("wb", buffering=0)
    try:
        session.writer = session.format(
            Unbuffered(file.fileno(), session.out.name), session.bundle.classes
        )
        for record in journal.records():
            watcher.done(record.path)
            session.writer.write([record])
        part.replace(session.out)
    except BaseException:
        file.close()
        part.unlink(missing_ok=True)
        raise
    return file


def being_written(location: str) -> bool:
    """Whether a process of this machine has the file open for writing, where the system tells.

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
    except (AttributeError, OSError):  # another system; somebody else's file; a share
        return False
    finally:
        os.close(handle)
    return False


def _key(path: str) -> bytes:
    return blake2b(path.encode(), digest_size=16).digest()
