"""Where the records of a run go: to a stream, to a journal, or to a journal and a live file.

`open_sink` makes the one that the destination needs. The session knows only the interface `Sink`.
"""

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from edgelung.artifacts.predictions import (
    ByteWriter,
    PredictionsFormat,
    VisibleWriter,
    visible_prediction,
)
from edgelung.core.errors import EdgelungError, visible
from edgelung.core.files import replacing
from edgelung.inference.destination import Destination, check_rows
from edgelung.inference.identity import RunIdentity
from edgelung.inference.journal import Journal
from edgelung.inference.output import UnbufferedWriter, write_whole
from edgelung.inference.record import Record
from edgelung.inference.tally import NoTilesError, Tally
from edgelung.tiles.find import FoundFile

WRITE_ROWS = 1024  # rows that are formatted at once; bounds the memory of writing the output

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """What shows that rows or journal were changed.

    Attributes:
        out_sha256: of the output, taken as it was written; None for standard output.
        journal_checksum: of the journal's last line, over all of its lines; None without one.
        journal_dropped: lines of the journal that were damaged and dropped.
    """

    out_sha256: str | None = None
    journal_checksum: str | None = None
    journal_dropped: int = 0


class Sink(Protocol):
    """Takes the records of a run.

    Calls come in this order: `start`, `append` for each batch, `finish`, `complete`. `close` is
    always last, whatever happened before.

    Attributes:
        previous: the identity of the stopped run that this one continues; None for a new run.
        sessions: when the run was begun and resumed.
        batches, rows: how many are in it, those of earlier sessions included.
        evidence: what the summary says of the rows and the journal; of use after `finish`.
    """

    @property
    def previous(self) -> RunIdentity | None: ...
    @property
    def sessions(self) -> Sequence[str]: ...
    @property
    def batches(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def evidence(self) -> "Evidence": ...

    def start(self, identity: RunIdentity, when: str) -> None:
        """Accept records of this run. Raises EdgelungError if another run is in the sink."""
        ...

    def remaining(self, files: Iterable[FoundFile]) -> Iterable[FoundFile]:
        """Those of `files` that have no record from an earlier session."""
        ...

    def earlier_paths(self) -> Iterator[str]:
        """Printable paths of the files that have a record from an earlier session."""
        ...

    def append(self, records: Sequence[Record]) -> None:
        """Take the records of a batch."""
        ...

    def finish(self) -> Tally:
        """Write all rows and count them. Raises NoTilesError if a folder had no tile."""
        ...

    def complete(self) -> None:
        """The summary is written too: drop what only a resume would need."""
        ...

    def close(self) -> int:
        """Release everything; returns how many rows are kept for a resume."""
        ...


def open_sink(
    destination: Destination,
    classes: Sequence[str],
    *,
    resume: bool | None,
    live: bool,
    may_be_empty: bool = False,
) -> Sink:
    """The sink for a destination.

    Args:
        destination: where the run writes.
        classes: the classes of the bundle.
        resume: True continues a stopped run, False drops its rows, None refuses to do either.
        live: rows are in the output as soon as they are known, and there may be no tile at all.
        may_be_empty: a run without a tile is no mistake.

    Raises:
        EdgelungError: another run writes there, or a stopped run is there and `resume` is None.
    """
    rows, journal = destination.rows, destination.journal
    if rows is None or journal is None:
        if resume is not None:
            raise EdgelungError("rows on standard output are gone: only a file can be resumed")
        return StreamSink(destination.format, classes, check_tiles=not live)
    opened = Journal(journal, classes=len(classes), restart=resume is False)
    if live:
        return LiveSink(rows, opened, destination.format, classes, resume)
    return JournalSink(
        rows, opened, destination.format, classes, resume, check_tiles=not may_be_empty
    )


class StreamSink:
    """Writes rows to standard output at once; nothing is kept."""

    previous = None
    rows = 0
    evidence = Evidence()

    def __init__(
        self, kind: PredictionsFormat, classes: Sequence[str], *, check_tiles: bool
    ) -> None:
        self._kind, self._classes, self._check_tiles = kind, classes, check_tiles
        self._tally = Tally(classes)
        self.sessions: list[str] = []
        self.batches = 0

    def start(self, identity: RunIdentity, when: str) -> None:
        """See `Sink`."""
        self.sessions.append(when)
        handle = sys.stdout.fileno() if sys.stdout else None
        stream: ByteWriter = UnbufferedWriter(handle, "standard output")
        classes = self._classes
        self._is_terminal = handle is not None and os.isatty(handle)
        if self._is_terminal:
            stream = VisibleWriter(stream)
            classes = [visible(name) for name in classes]
        self._writer = self._kind.writer(stream, classes)

    def remaining(self, files: Iterable[FoundFile]) -> Iterable[FoundFile]:
        """See `Sink`."""
        return files

    def earlier_paths(self) -> Iterator[str]:
        """See `Sink`."""
        return iter(())

    def append(self, records: Sequence[Record]) -> None:
        """See `Sink`."""
        self.batches += 1
        rows = (record.prediction(self._classes) for record in records)
        self._writer.write(map(visible_prediction, rows) if self._is_terminal else rows)
        for record in records:
            self._tally.add(record)

    def finish(self) -> Tally:
        """See `Sink`."""
        self._writer.close()
        if self._check_tiles:
            self._tally.check_tiles()
        return self._tally

    def complete(self) -> None:
        """See `Sink`."""

    def close(self) -> int:
        """See `Sink`."""
        return 0


class JournalSink:
    """Keeps records in the journal; at the end the output is written from it in one step."""

    def __init__(
        self,
        output: Path,
        journal: Journal,
        kind: PredictionsFormat,
        classes: Sequence[str],
        resume: bool | None,
        *,
        check_tiles: bool = True,
    ) -> None:
        self._output, self._journal = output, journal
        self._check_tiles = check_tiles
        self._kind, self._classes = kind, classes
        self._started = self._completed = False
        self._out_sha256: str | None = None
        self._resumes = bool(journal.rows and resume)
        try:
            self._check(resume)
        except BaseException:
            journal.close()
            raise

    def _check(self, resume: bool | None) -> None:
        """Raise EdgelungError if the journal or the output is not to be overwritten."""
        journal = self._journal
        # Once more, in the folder that stays open: the name may lead elsewhere by now.
        check_rows(journal.folder, self._output.name, self._kind)
        damage = f"; line {journal.damaged_line} of it is damaged" if journal.damaged else ""
        if (journal.rows or journal.damaged) and resume is None:
            raise EdgelungError(
                f"{journal.path} holds {journal.rows} rows of a run that did not end{damage}; add "
                "--resume to continue it, or --restart to begin anew"
            )
        if journal.damaged and resume:
            logger.warning(
                "%s was changed or damaged from line %d on: the %d rows before it are kept, %d "
                "line(s) are dropped and their files predicted again",
                *(journal.path, journal.damaged_line, journal.rows, journal.damaged),
            )

    @property
    def previous(self) -> RunIdentity | None:
        """See `Sink`."""
        return self._journal.identity if self._resumes else None

    @property
    def sessions(self) -> Sequence[str]:
        """See `Sink`."""
        return self._journal.sessions

    @property
    def batches(self) -> int:
        """See `Sink`."""
        return self._journal.batches

    @property
    def rows(self) -> int:
        """See `Sink`."""
        return self._journal.rows

    @property
    def evidence(self) -> Evidence:
        """See `Sink`."""
        return Evidence(self._out_sha256, self._journal.checksum, self._journal.dropped)

    def start(self, identity: RunIdentity, when: str) -> None:
        """See `Sink`."""
        if self._resumes:
            self._journal.resume(identity, when)
        else:
            self._journal.begin(identity, when)
        self._started = True

    def remaining(self, files: Iterable[FoundFile]) -> Iterable[FoundFile]:
        """See `Sink`."""
        return self._journal.remaining(files)

    def earlier_paths(self) -> Iterator[str]:
        """See `Sink`."""
        return (record.path for record in self._journal.records())

    def append(self, records: Sequence[Record]) -> None:
        """See `Sink`."""
        self._journal.append(records)

    def finish(self) -> Tally:
        """See `Sink`. Also raises EdgelungError if the files of the stopped run are gone."""
        if self._resumes and not self._journal.files_seen:
            raise EdgelungError(
                "found no file at all, but the stopped run had found some; check that the share is "
                "still there, then --resume"
            )
        try:
            return self._write_output(check_tiles=self._check_tiles)
        except NoTilesError:
            self._completed = True  # nothing worth a resume
            raise

    def _write_output(self, *, check_tiles: bool) -> Tally:
        tally = Tally(self._classes)

        def write(file: ByteWriter) -> None:
            writer = self._kind.writer(file, self._classes)
            records = self._journal.records()
            while chunk := list(islice(records, WRITE_ROWS)):
                for record in chunk:
                    tally.add(record)
                writer.write(record.prediction(self._classes) for record in chunk)
            writer.close()
            if check_tiles:  # before the output takes its name
                tally.check_tiles()

        self._out_sha256 = write_whole(self._journal.folder, self._output.name, write)
        return tally

    def complete(self) -> None:
        """See `Sink`."""
        self._completed = True

    def close(self) -> int:
        """See `Sink`."""
        if self._completed or not (self._journal.rows or self._journal.damaged):
            self._journal.remove()
            return 0
        self._journal.close()
        return self._journal.rows if self._started else 0


class LiveSink(JournalSink):
    """Also writes each row to the output at once; the journal stays for the next watch."""

    _live = -1  # descriptor of the output

    def start(self, identity: RunIdentity, when: str) -> None:
        """See `Sink`. Writes the rows so far, then keeps the output open."""
        super().start(identity, when)
        folder = self._journal.folder
        folder.remove_leftovers(self._output.name)
        with replacing(folder, self._output.name) as descriptor:
            self._live = os.dup(descriptor)
            live = UnbufferedWriter(self._live, self._output.name)
            self._writer = self._kind.writer(live, self._classes)
            records = self._journal.records()
            while chunk := list(islice(records, WRITE_ROWS)):
                self._writer.write(record.prediction(self._classes) for record in chunk)

    def append(self, records: Sequence[Record]) -> None:
        """See `Sink`."""
        super().append(records)
        self._writer.write(record.prediction(self._classes) for record in records)

    def finish(self) -> Tally:
        """See `Sink`."""
        self._close_file()
        return self._write_output(check_tiles=False)

    def complete(self) -> None:
        """See `Sink`. The next watch needs the journal."""

    def close(self) -> int:
        """See `Sink`."""
        self._close_file()
        return super().close()

    def _close_file(self) -> None:
        if self._live >= 0:
            os.close(self._live)
            self._live = -1
