"""The journal of a run: what is done, so that a killed run goes on where it stopped.

A text file beside the output, only ever added to. First a line that says what run this is; then a
line per batch, a JSON array of its records. A line counts when it is whole, so a run may be killed
at any moment, and a batch is either done or not: the batches of the rest are those that an
undisturbed run would have made, to the last bit of every probability.

The output is written from the journal when every row is in it, and takes its name in one step.
"""

import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import JOURNAL_SUFFIX, TEMPORARY_SUFFIX, locked
from edgelung.inference.pipeline import Stamp, stamp_of
from edgelung.inference.record import Record, printable
from edgelung.tiles.find import FoundFile

VERSION = 1
SYNC_SECONDS = 5.0  # how much work a power cut (not a kill) may cost
_NO_STAMP = (-1, -1)


def journal_of(out: Path) -> Path:
    """Where the journal of the run that writes `out` lies."""
    return out.with_name(out.name + JOURNAL_SUFFIX)


class Journal:
    """An open journal; one process at a time has it (a lock, where the file system knows locks).

    `identity` is what the run must still be in order to go on; `batches` and `rows` count what is
    in it; `sessions` when it was begun and gone on with; `met` how many files `without_done` saw.
    """

    def __init__(self, out: Path) -> None:
        self.path = journal_of(out)
        self.identity: Mapping[str, Any] | None = None
        self.sessions: list[str] = []
        self.batches = self.rows = self.met = 0
        self._superseded: set[int] = set()
        self._synced = monotonic()
        try:
            busy = (
                f"another run is writing {out.name} right now; wait for it or choose another --out"
            )
            self._handle = locked(self.path, busy)
        except OSError as error:
            raise EdgelungError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            self._scan()
        except BaseException:
            os.close(self._handle)
            raise

    @property
    def open(self) -> bool:
        """Whether it is still this process's."""
        return self._handle >= 0

    def begin(self, identity: Mapping[str, Any], when: str) -> None:
        """Start with no rows."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self.identity, self.sessions, self.batches, self.rows = identity, [when], 0, 0
        self._superseded = set()
        self._add({"edgelung_journal": VERSION, "begun": when, "identity": identity})

    def go_on(self, identity: Mapping[str, Any], when: str) -> None:
        """Go on with the rows that are there; EdgelungError where it is another run now."""
        for key in {**(self.identity or {}), **identity}:
            now, before = identity.get(key), (self.identity or {}).get(key)
            if json.loads(json.dumps(now)) != before:
                raise EdgelungError(
                    f"cannot resume: {key} was {before} and is {now} now, so the rows would not be "
                    "of one run; give the same again, or --restart to begin anew"
                )
        self.sessions.append(when)
        self._add({"resumed": when})

    def append(self, records: Sequence[Record]) -> None:
        """Add the records of a batch; they survive the end of this process at once."""
        self._add(records)
        self.batches += 1
        self.rows += len(records)
        if monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._handle)
            self._synced = monotonic()

    def records(self) -> Iterator[Record]:
        """Every file's record, in the order in which they came; the last where there are two."""
        for place, record in enumerate(self._every()):
            if place not in self._superseded:
                yield record

    def without_done(self, files: Iterable[FoundFile]) -> Iterator[FoundFile]:
        """Those of `files` that have no record yet, or have changed since it was made."""
        done = _Index(self._every()) if self.rows else None
        # A folder that could not be listed may be now; where it still cannot, it has its row again.
        folders = done.folders if done else set()
        self._superseded |= folders
        for file in files:
            self.met += 1
            found = done.find(file.path) if done else None
            if found is None or found[0] in folders:
                yield file
            elif found[1] != (stamp_of(file) or _NO_STAMP):
                self._superseded.add(found[0])
                yield file

    def close(self) -> None:
        """Keep the file, give back the lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """The output is whole: nothing is left to go on with."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self.close()

    def _add(self, line: object) -> None:
        data = memoryview(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            kept = f"; {self.rows} rows are kept: make room, then --resume" if self.rows else ""
            raise EdgelungError(f"cannot write {self.path}: {error.strerror}{kept}") from error

    def _scan(self) -> None:
        """Read what is there, and cut off what a killed process left half-written."""
        size = 0
        for end, line in self._lines():
            if size == 0:
                if not isinstance(line, dict) or line.get("edgelung_journal") != VERSION:
                    break
                self.identity = line["identity"]
                self.sessions = [line["begun"]]
            elif isinstance(line, dict):
                self.sessions.append(line["resumed"])
            else:
                self.batches += 1
                self.rows += len(line)
            size = end
        if size == 0 and os.fstat(self._handle).st_size and not self._torn_first_line():
            raise EdgelungError(
                f"{self.path} is no journal of this edgelung; move it away or choose another --out"
            )
        os.ftruncate(self._handle, size)
        os.lseek(self._handle, size, os.SEEK_SET)
        if len(self.sessions) > 1:
            self._superseded = _Index(self._every()).earlier

    def _torn_first_line(self) -> bool:
        start = os.pread(self._handle, 4096, 0)
        expected = b'{"edgelung_journal":'
        return b"\n" not in start and start[: len(expected)] == expected[: len(start)]

    def _every(self) -> Iterator[Record]:
        for _, line in self._lines():
            if isinstance(line, list):
                yield from map(_record, line)

    def _lines(self) -> Iterator[tuple[int, Any]]:
        """The whole lines and the place behind each; ends at the first that is not whole."""
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


def _record(values: list[Any]) -> Record:
    record = Record._make(values)
    stamp = record.stamp
    return record if stamp is None else record._replace(stamp=(stamp[0], stamp[1]))


class _Index:
    """Path → place of its last record and stamp, in 40 bytes a record.

    Keys are 128-bit hashes of the paths, so that a million long names need not be held.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        high, low, sizes, times = array("Q"), array("Q"), array("q"), array("q")
        self.folders: set[int] = set()  # places of what stands for a folder that was not listed
        for place, record in enumerate(records):
            if record.path == "." or record.path.endswith("/"):
                self.folders.add(place)
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
    def earlier(self) -> set[int]:
        """Places of records that a later one of the same path replaces."""
        high, low = np.asarray(self._high), np.asarray(self._low)
        again = (high[:-1] == high[1:]) & (low[:-1] == low[1:])
        return {int(place) for place in self._order[:-1][again]}

    def find(self, path: str) -> tuple[int, Stamp] | None:
        """Place of the last record of this path, and the stamp in it."""
        first, second = _key(printable(path))
        i, found = bisect_left(self._high, first), None
        while i < len(self._high) and self._high[i] == first:
            if self._low[i] == second:
                found = int(self._order[i])
            i += 1
        return None if found is None else (found, (self._sizes[found], self._times[found]))


def _key(path: str) -> tuple[int, int]:
    digest = blake2b(path.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def write_whole(out: Path, write: Callable[[Any], None]) -> None:
    """Write `out` in one step through a temporary sibling of a fixed name.

    The name is fixed so that what a killed run left is written over, not left lying about; the
    journal's lock keeps a second writer away.
    """
    part = out.with_name(f".{out.name}{TEMPORARY_SUFFIX}")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise EdgelungError(
                f"cannot write {out}: {error.strerror or one_line(error)}; every row is kept: "
                "make room, then --resume"
            ) from error
        raise
