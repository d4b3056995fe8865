"""The journal of a run: what is done, so that a killed run resumes where it stopped.

A text file beside the output to which lines are only added: first a JSON object with the identity
of the run, then a JSON array of records per batch, and an object for every `--resume`. Only
complete lines count. So a run may be killed at any moment: a batch is either done or not, and the
remaining batches are those of an undisturbed run, to the last bit of every probability.

Lines are chained by checksums (see `edgelung.inference.chain`). What comes before the first damaged
or changed line counts; what comes behind it is dropped, and its files are predicted again.

The output is written from the journal when every row is in it (see `edgelung.inference.sinks`).
"""

import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import msgspec
import numpy as np

from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import JOURNAL_SUFFIX, WriteError
from edgelung.core.folder import Folder
from edgelung.core.locks import locked
from edgelung.core.typed_json import Json
from edgelung.inference.chain import checksum, count_lines, read_lines, write_line
from edgelung.inference.identity import Identity, RunIdentity
from edgelung.inference.reading import Stamp, stamp_of
from edgelung.inference.record import Record, fault_of
from edgelung.tiles.find import FoundFile
from edgelung.tiles.names import printable

VERSION = 2
SYNC_SECONDS = 5.0  # bounds the work lost by a power cut; a kill loses none
MARK = b'{"edgelung_journal":'  # the beginning of every journal
_NO_STAMP = (-1, -1)
_encode = msgspec.json.Encoder().encode
_decode_records = msgspec.json.Decoder(list[Record]).decode


class Journal:
    """An open journal. A lock gives it to one process at a time, where the file system has locks.

    The file is opened as `edgelung.core.locks` says: no link, no FIFO, nobody else's file.

    Attributes:
        path: the file.
        folder: the open folder in which it is.
        sessions: when the run was begun and resumed.
        batches, rows: how many are in it.
        damaged: lines that do not count: the first damaged one, and all behind it.
        dropped: how many of such lines earlier sessions and this one have dropped.
        files_seen: how many files `remaining` has gone through.
    """

    def __init__(self, path: Path, *, classes: int | None = None, restart: bool = False) -> None:
        """Open the journal, or create it; nothing in it is changed yet.

        Args:
            path: the file.
            classes: number of classes; records of another number are damaged. None: any.
            restart: its rows are not wanted, so a journal that cannot be read is no error.

        Raises:
            EdgelungError: another run holds it, it is no journal of this version, or it is not a
                regular file of this user.
        """
        self.path = path
        self.sessions: list[str] = []
        self.batches = self.rows = self.damaged = self.dropped = self.files_seen = 0
        self._classes = classes
        self._identity: dict[str, Json] | None = None
        self._superseded: set[int] = set()  # indices of records that a later record replaces
        self._last_sync = monotonic()
        self._end, self._checksum = 0, b""  # of the last line that counts
        self._lines = 0  # that counted when the journal was opened
        output = path.name.removesuffix(JOURNAL_SUFFIX)
        busy = f"another run is writing {output} right now; wait for it or choose another --out"
        try:
            self.folder = Folder(path.parent)
            self._handle = locked(self.folder, path.name, busy)
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            self._scan(restart)
        except BaseException:
            self.close()
            raise

    @property
    def damaged_line(self) -> int:
        """The number of the first line that does not count."""
        return self._lines + 1

    @property
    def checksum(self) -> str:
        """The checksum of the last line, over all lines, in hexadecimal."""
        return self._checksum.hex()

    @property
    def identity(self) -> RunIdentity | None:
        """What run this is; None for a new journal.

        Raises EdgelungError if it is the identity of a run that this edgelung does not know.
        """
        if self._identity is None:
            return None
        try:
            return typed_json.convert(self._identity, RunIdentity)
        except ValueError as error:
            raise EdgelungError(
                f"cannot resume {self.path}: another edgelung wrote it ({one_line(error)}); "
                "resume with that version, or --restart to begin anew"
            ) from error

    def begin(self, identity: Identity, when: str) -> None:
        """Start a run without rows; what was in the journal is dropped."""
        self._end, self._checksum = 0, b""
        self._cut()
        self._identity, self.sessions = identity.to_json(), [when]
        self.batches = self.rows = self.damaged = self.dropped = 0
        self._superseded = set()
        self._add_object({"edgelung_journal": VERSION, "begun": when, "identity": self._identity})

    def resume(self, identity: Identity, when: str) -> None:
        """Continue with the rows that are there. Raises EdgelungError if this is another run."""
        identity.check_same(self._identity or {})
        self._cut()
        self.dropped += self.damaged
        self.sessions.append(when)
        self._add_object({"resumed": when} | ({"dropped": self.dropped} if self.dropped else {}))

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of a batch. They survive the end of this process from now on."""
        content = _encode(records)
        # Counted first: a signal behind the write must not leave a journal that seems empty, which
        # would be removed.
        self.batches, self.rows = self.batches + 1, self.rows + len(records)
        try:
            self._add(content)
        except OSError as error:
            self.batches, self.rows = self.batches - 1, self.rows - len(records)
            raise self._write_error(error) from error
        if monotonic() - self._last_sync > SYNC_SECONDS:
            try:
                os.fsync(self._handle)
            except OSError as error:  # network shares report a full disk only here
                raise self._write_error(error) from error
            self._last_sync = monotonic()

    def records(self) -> Iterator[Record]:
        """The record of every file, in the order they came; of a repeated file, the last."""
        for index, record in enumerate(self._all_records()):
            if index not in self._superseded:
                yield record

    def remaining(self, files: Iterable[FoundFile]) -> Iterator[FoundFile]:
        """Those of `files` that have no record yet, or have changed since it was made."""
        index = _RecordIndex(self._all_records()) if self.rows else None
        # A folder that could not be listed is tried again: it may be readable now.
        folders = index.folders if index else set()
        self._superseded |= folders
        for file in files:
            self.files_seen += 1
            last = index.find(file.path) if index else None
            if last is None or last.position in folders:
                yield file
            elif last.stamp != (stamp_of(file) or _NO_STAMP):
                self._superseded.add(last.position)
                yield file

    def close(self) -> None:
        """Keep the file and release its lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self.folder.close()

    def remove(self) -> None:
        """Delete the file: nothing is left to resume."""
        self.folder.unlink(self.path.name)
        self.close()

    def _add_object(self, line: dict[str, Json]) -> None:
        try:
            self._add(json.dumps(line, separators=(",", ":")).encode())
        except OSError as error:
            raise self._write_error(error) from error

    def _add(self, content: bytes) -> None:
        own = checksum(self._checksum, content)
        line = write_line(content, own)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError:
            with suppress(OSError):
                self._cut()  # half a line
            raise
        self._end, self._checksum = self._end + len(line), own

    def _cut(self) -> None:
        """Cut off what does not count, and go to the end."""
        os.ftruncate(self._handle, self._end)
        os.lseek(self._handle, self._end, os.SEEK_SET)

    def _write_error(self, error: OSError) -> EdgelungError:
        failed = WriteError(self.path, error)
        if not self.rows:
            return failed
        return EdgelungError(
            f"{failed.fault}; {self.rows} rows are kept. {failed.remedy}, then run the same "
            "command with --resume"
        )

    def _scan(self, restart: bool) -> None:
        """Find what counts: whole lines with the right checksum and records that can be true."""
        for line in read_lines(self._handle):
            try:
                self._accept(line.content)
            except ValueError:
                break
            self._end, self._checksum, self._lines = line.end, line.checksum, self._lines + 1
        if not self._end:
            self._refuse_other_files(restart)
        self.damaged = count_lines(self._handle, self._end)
        if len(self.sessions) > 1:
            self._superseded = _RecordIndex(self._all_records()).superseded

    def _accept(self, content: bytes) -> None:
        """Take up a line. Raises ValueError if it is none that this version writes."""
        if content.startswith(b"["):
            records = _decode_records(content)
            for record in records:
                if fault := fault_of(record, self._classes):
                    raise ValueError(fault)
            if self._identity is None:
                raise ValueError("the first line says no run")
            self.batches += 1
            self.rows += len(records)
            return
        line = typed_json.parse(content)
        if self._identity is None:
            first = typed_json.convert(line, _FirstLine)
            if first.edgelung_journal != VERSION:
                raise ValueError("another version")
            self._identity, self.sessions = first.identity, [first.begun]
        else:
            resumed = typed_json.convert(line, _ResumedLine)
            self.sessions.append(resumed.resumed)
            self.dropped = resumed.dropped

    def _refuse_other_files(self, restart: bool) -> None:
        """Raise EdgelungError if there is content, but not the beginning of a journal."""
        start = os.pread(self._handle, 4096, 0)
        if b"\n" not in start and start[: len(MARK)] == MARK[: len(start)]:
            return  # killed while it wrote the first line
        fault = f"{self.path} is no journal of this edgelung"
        if not start.startswith(MARK):
            raise EdgelungError(f"{fault}; move it away or choose another --out")
        if restart:
            return
        if start.startswith(b"%b%d," % (MARK, VERSION)):
            raise EdgelungError(
                f"{fault}: its first line is damaged, so nothing in it can be trusted; --restart "
                "begins anew"
            )
        raise EdgelungError(
            f"{fault}: another version wrote it; finish the run with that version, or --restart "
            "to begin anew"
        )

    def _all_records(self) -> Iterator[Record]:
        for line in read_lines(self._handle, self._end):
            if line.content.startswith(b"["):
                yield from _decode_records(line.content)


class _FirstLine(msgspec.Struct):
    edgelung_journal: int
    begun: str
    identity: dict[str, Json]


class _ResumedLine(msgspec.Struct):
    resumed: str
    dropped: int = 0


class _LastRecord(NamedTuple):
    """The position of a record in the journal, and the stamp in it."""

    position: int
    stamp: Stamp


class _RecordIndex:
    """Path → index of its last record and stamp, in 40 bytes per record.

    Keys are 128-bit hashes of the paths, so that a million long names need not be in memory.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        high, low, sizes, times = array("Q"), array("Q"), array("q"), array("q")
        self.folders: set[int] = set()  # records of folders that could not be listed
        for index, record in enumerate(records):
            if record.path == "." or record.path.endswith("/"):
                self.folders.add(index)
            first, second = _key(record.path)
            size, modified = record.stamp or _NO_STAMP
            high.append(first)
            low.append(second)
            sizes.append(size)
            times.append(modified)
        order = np.lexsort((np.asarray(low), np.asarray(high)))  # stable: the last stays last
        self._high = array("Q", np.asarray(high)[order].tobytes())
        self._low = array("Q", np.asarray(low)[order].tobytes())
        self._order, self._sizes, self._times = order, sizes, times

    @property
    def superseded(self) -> set[int]:
        """Indices of the records that a later one of the same path replaces."""
        high, low = np.asarray(self._high), np.asarray(self._low)
        same_as_next = (high[:-1] == high[1:]) & (low[:-1] == low[1:])
        return {int(index) for index in self._order[:-1][same_as_next]}

    def find(self, path: str) -> _LastRecord | None:
        """The last record of this path; None without one."""
        first, second = _key(printable(path))
        i, last = bisect_left(self._high, first), None
        while i < len(self._high) and self._high[i] == first:
            if self._low[i] == second:
                last = int(self._order[i])
            i += 1
        if last is None:
            return None
        return _LastRecord(last, (self._sizes[last], self._times[last]))


def _key(path: str) -> tuple[int, int]:
    digest = blake2b(path.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
