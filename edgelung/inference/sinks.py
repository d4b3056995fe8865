"""Where the records of a run go: to a stream, to a journal, or to a journal and a live file.

`open_sink` makes the one that the destination needs. The session knows only the interface `Sink`.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Protocol

from edgelung.artifacts.predictions import ByteWriter, PredictionsFormat, VisibleWriter
from edgelung.core.errors import EdgelungError
from edgelung.core.files import writing
from edgelung.inference.destination import Destination
from edgelung.inference.identity import RunIdentity
from edgelung.inference.journal import Journal
from edgelung.inference.output import UnbufferedWriter, temporary_sibling, write_whole
from edgelung.inference.record import Record
from edgelung.inference.tally import NoTilesError, Tally
from edgelung.tiles.find import FoundFile

WRITE_ROWS = 1024  # rows that are formatted at once; bounds the memory of writing the output


class Sink(Protocol):
    """Takes the records of a run.

    Calls come in this order: `start`, `append` for each batch, `finish`, `complete`. `close` is
    always last, whatever happened before.

    Attributes:
        previous: the identity of the stopped run that this one continues; None for a new run.
        sessions: when the run was begun and resumed.
        batches, rows: how many are in it, those of earlier sessions included.
    """

    @property
    def previous(self) -> RunIdentity | None: ...
    @property
    def sessions(self) -> Sequence[str]: ...
    @property
    def batches(self) -> int: ...
    @property
    def rows(self) -> int: ...

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
    destination: Destination, classes: Sequence[str], *, resume: bool | None, live: bool
) -> Sink:
    """The sink for a destination.

    Args:
        destination: where the run writes.
        classes: the classes of the bundle.
        resume: True continues a stopped run, False drops its rows, None refuses to do either.
        live: rows are in the output as soon as they are known, and there may be no tile at all.

    Raises:
        EdgelungError: another run writes there, or a stopped run is there and `resume` is None.
    """
    rows, journal = destination.rows, destination.journal
    if rows is None or journal is None:
        if resume is not None:
            raise EdgelungError("rows on standard output are gone: only a file can be resumed")
        return StreamSink(destination.format, classes, check_tiles=not live)
    kind = LiveSink if live else JournalSink
    return kind(rows, Journal(journal), destination.format, classes, resume)


class StreamSink:
    """Writes rows to standard output at once; nothing is kept."""

    previous = None
    rows = 0

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
        if handle is not None and os.isatty(handle):
            stream = VisibleWriter(stream)
        self._writer = self._kind.writer(stream, self._classes)

    def remaining(self, files: Iterable[FoundFile]) -> Iterable[FoundFile]:
        """See `Sink`."""
        return files

    def earlier_paths(self) -> Iterator[str]:
        """See `Sink`."""
        return iter(())

    def append(self, records: Sequence[Record]) -> None:
        """See `Sink`."""
        self.batches += 1
        self._writer.write(record.prediction(self._classes) for record in records)
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
    ) -> None:
        self._output, self._journal = output, journal
        self._kind, self._classes = kind, classes
        self._started = self._completed = False
        if journal.rows and resume is None:
            journal.close()
            raise EdgelungError(
                f"{journal.path} holds {journal.rows} rows of a run that did not end; add --resume "
                "to continue it, or --restart to begin anew"
            )
        self._resumes = bool(journal.rows and resume)

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
            return self._write_output(check_tiles=True)
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

        write_whole(self._output, write)
        return tally

    def complete(self) -> None:
        """See `Sink`."""
        self._completed = True

    def close(self) -> int:
        """See `Sink`."""
        if self._completed or not self._journal.rows:
            self._journal.remove()
            return 0
        self._journal.close()
        return self._journal.rows if self._started else 0


class LiveSink(JournalSink):
    """Also writes each row to the output at once; the journal stays for the next watch."""

    _file: IO[bytes] | None = None

    def start(self, identity: RunIdentity, when: str) -> None:
        """See `Sink`. Writes the rows so far, then keeps the output open."""
        super().start(identity, when)
        part = temporary_sibling(self._output)
        with writing(self._output, own=part):
            self._file = part.open("wb", buffering=0)
        try:
            live = UnbufferedWriter(self._file.fileno(), self._output.name)
            self._writer = self._kind.writer(live, self._classes)
            records = self._journal.records()
            while chunk := list(islice(records, WRITE_ROWS)):
                self._writer.write(record.prediction(self._classes) for record in chunk)
            with writing(self._output, own=part):
                part.replace(self._output)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

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
        if self._file:
            self._file.close()
