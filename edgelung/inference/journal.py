"""The journal of a run: what is done, so that a killed run resumes where it stopped.

A text file beside the output to which lines are only added: first a JSON object with the identity
of the run, then a JSON array of records per batch, and an object for every `--resume`. Only
complete lines count. So a run may be killed at any moment: a batch is either done or not, and the
remaining batches are those of an undisturbed run, to the last bit of every probability.

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
from typing import Any, NamedTuple

import numpy as np

from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import JOURNAL_SUFFIX, WriteError, locked
from edgelung.core.typed_json import Json
from edgelung.inference.identity import RunIdentity
from edgelung.inference.pipeline import Stamp, stamp_of
from edgelung.inference.record import Record, printable
from edgelung.tiles.find import FoundFile

VERSION = 1
SYNC_SECONDS = 5.0  # bounds the work lost by a power cut; a kill loses none
_NO_STAMP = (-1, -1)


class Journal:
    """An open journal. A lock gives it to one process at a time, where the file system has locks.

    Attributes:
        path: the file.
        sessions: when the run was begun and resumed.
        batches, rows: how many are in it.
        files_seen: how many files `remaining` has gone through.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions: list[str] = []
        self.batches = self.rows = self.files_seen = 0
        self._identity: dict[str, Json] | None = None
        self._superseded: set[int] = set()  # indices of records that a later record replaces
        self._last_sync = monotonic()
        output = path.name.removesuffix(JOURNAL_SUFFIX)
        try:
            self._handle = locked(
                path,
                f"another run is writing {output} right now; wait for it or choose another --out",
            )
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            self._scan()
        except BaseException:
            os.close(self._handle)
            raise

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

    def begin(self, identity: RunIdentity, when: str) -> None:
        """Start a run without rows; what was in the journal is dropped."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self._identity, self.sessions = identity.to_json(), [when]
        self.batches = self.rows = 0
        self._superseded = set()
        self._add({"edgelung_journal": VERSION, "begun": when, "identity": self._identity})

    def resume(self, identity: RunIdentity, when: str) -> None:
        """Continue with the rows that are there. Raises EdgelungError if this is another run."""
        identity.check_same(self._identity or {})
        self.sessions.append(when)
        self._add({"resumed": when})

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of a batch. They survive the end of this process from now on."""
        self._add(records)
        self.batches += 1
        self.rows += len(records)
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

    def remove(self) -> None:
        """Delete the file: nothing is left to resume."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self.close()

    def _add(self, line: object) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> EdgelungError:
        failed = WriteError(self.path, error)
        if not self.rows:
            return failed
        return EdgelungError(
            f"{failed.fault}; {self.rows} rows are kept. {failed.remedy}, then run the same "
            "command with --resume"
        )

    def _scan(self) -> None:
        """Read what is there, and cut off what a killed process left incomplete."""
        size = 0
        for end, line in self._complete_lines():
            if size == 0:
                if not _is_first_line(line):
                    break
                self._identity, self.sessions = line["identity"], [line["begun"]]
            elif isinstance(line, list):
                self.batches += 1
                self.rows += len(line)
            elif isinstance(line, dict) and "resumed" in line:
                self.sessions.append(line["resumed"])
            else:
                break
            size = end
        if size == 0 and os.fstat(self._handle).st_size and not self._is_cut_first_line():
            raise EdgelungError(
                f"{self.path} is no journal of this edgelung; move it away or choose another --out"
            )
        os.ftruncate(self._handle, size)
        os.lseek(self._handle, size, os.SEEK_SET)
        if len(self.sessions) > 1:
            self._superseded = _RecordIndex(self._all_records()).superseded

    def _is_cut_first_line(self) -> bool:
        start = os.pread(self._handle, 4096, 0)
        expected = b'{"edgelung_journal":'
        return b"\n" not in start and start[: len(expected)] == expected[: len(start)]

    def _all_records(self) -> Iterator[Record]:
        for _, line in self._complete_lines():
            if isinstance(line, list):
                yield from map(_record_from, line)

    def _complete_lines(self) -> Iterator[tuple[int, Json]]:
        """The position behind each line, and the line; ends at the first incomplete one."""
        end = 0
        with self.path.open("rb") as file:
            for data in file:
                if not data.endswith(b"\n"):
                    break
                try:
                    line = json.loads(data)
                except ValueError:  # a power cut can leave zeros in the middle
                    break
                end += len(data)
                yield end, line


def _is_first_line(line: Json) -> bool:
    return (
        isinstance(line, dict)
        and line.get("edgelung_journal") == VERSION
        and isinstance(line.get("identity"), dict)
        and isinstance(line.get("begun"), str)
    )


def _record_from(values: list[Any]) -> Record:
    record = Record._make(values)
    stamp = record.stamp
    return record if stamp is None else record._replace(stamp=(stamp[0], stamp[1]))


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
