"""`edgelung infer`: files, a bundle, an output with a row each, and a summary of what happened."""

import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file, write_json
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.engines.choose import open_engine
from edgelung.engines.names import EngineName
from edgelung.inference.journal import Journal, write_whole
from edgelung.inference.listing import gather
from edgelung.inference.pipeline import Row, default_batch_size, predict_batches
from edgelung.inference.record import Record, record_of
from edgelung.inference.summary import (
    NoTilesError,
    Percentiles,
    Tally,
    bundle_hash,
    check_tiles,
    host,
    options_hash,
    packages,
    record_head,
    summarize,
    summary_path,
)
from edgelung.inference.writer import STANDARD_OUTPUT, RowWriter, format_of
from edgelung.tiles.find import FoundFile

__all__ = ["Options", "Session", "gather", "infer_folder"]


@dataclass(frozen=True)
class Options:
    """How to predict; None where it is left to the run.

    With `verify` full precision runs beside the chosen variant, on every `verify_every`-th batch.
    """

    engine: EngineName | None = None
    precision: Precision | None = None
    batch_size: int | None = None
    threads: int | None = None
    prebuilt: Path | None = None
    verify: bool = False
    verify_every: int = 1
    min_confidence: float | None = None
    source: Mapping[str, Any] = field(default_factory=dict)


class Session:
    """One run of the program over files: predicts, keeps what is done, writes what it came to.

    With `out` a file, rows go to its journal and `finish` writes them under their name; with
    standard output they go there at once. Use as a context manager.
    """

    def __init__(
        self,
        bundle: Bundle,
        out: Path,
        options: Options,
        *,
        resume: bool | None = None,
        summary: Path | None = None,
        on_kept: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.bundle, self.out, self.options = bundle, out, options
        self._on_kept = on_kept
        self._summary_path = summary_path(out, summary)
        self.format = format_of(out)
        self.started = _now()
        self.tally = Tally(bundle.classes)
        self._decode, self._engine = Percentiles(), Percentiles()
        self._tiles = 0  # predicted in this session
        self._begun = False
        self.journal: Journal | None = None
        self._stack = ExitStack()
        try:
            self._open(resume)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, resume: bool | None) -> None:
        if self.out == STANDARD_OUTPUT:
            if resume is not None:
                raise EdgelungError("rows on standard output are gone: only a file can be resumed")
        else:
            self.journal = Journal(self.out)
            self._stack.callback(self._put_away)
            if resume is None and self.journal.rows:
                raise EdgelungError(
                    f"{self.journal.path} holds {self.journal.rows} rows of a run that did not "
                    "end; add --resume to go on with it, or --restart to begin anew"
                )
        going_on = self.journal and self.journal.rows and resume
        before = self.journal.identity if self.journal and going_on else None
        options = _as_before(self.options, before)
        self.threads = options.threads or available_cores()
        latency = options.batch_size == 1
        wanted = (self.bundle, options.engine)
        how: dict[str, Any] = {"prebuilt": options.prebuilt, "latency": latency}
        self.chosen = open_engine(*wanted, options.precision, self.threads, **how)
        self._stack.callback(self.chosen.engine.close)
        self.batch_size = options.batch_size or default_batch_size(self.chosen.engine)
        self._reference = None
        if options.verify:
            full = open_engine(*wanted, FULL_PRECISION, self.threads, **how)
            self._reference = full.engine
            self._stack.callback(full.engine.close)
        self.identity = {
            "edgelung": __version__,
            "packages": packages(),  # that decode, resize and compute
            "bundle": bundle_hash(self.bundle),
            "--engine": self.chosen.engine.name,
            "--precision": self.chosen.variant.precision,
            "floating point": self.chosen.engine.float_type,
            "--batch-size": self.batch_size,
            "--verify": options.verify,
            "--verify-every": options.verify_every,
            "--min-confidence": options.min_confidence,
            "--prebuilt": str(options.prebuilt.absolute()) if options.prebuilt else None,
            **options.source,
        }
        if self.journal and before is not None:
            self.journal.go_on(self.identity, self.started)
        elif self.journal:
            self.journal.begin(self.identity, self.started)
        self._begun = True
        self._timer = time.perf_counter()
        self.writer: RowWriter | None = None
        if not self.journal:
            handle = sys.stdout.fileno() if sys.stdout else None
            sink = Unbuffered(handle, "standard output")
            self.writer = self.format(sink, self.bundle.classes)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _put_away(self) -> None:
        """However it ended: rows are kept, a journal without any is not."""
        if self.journal and self.journal.open:
            rows = self.journal.rows
            if rows:
                self.journal.close()
                if self._begun:
                    self._on_kept(rows)
            else:
                self.journal.remove()

    def batches(
        self, files: Iterable[FoundFile], keep: Callable[[Row], bool] = lambda row: True
    ) -> Iterator[list[Record]]:
        """Predict the files; the rows that `keep` wants are kept, then given out by batches."""
        batches = predict_batches(
            files,
            self.bundle.reader,
            self.chosen.engine,
            batch_size=self.batch_size,
            threads=self.threads,
            reference=self._reference,
            reference_every=self.options.verify_every,
            first=self.journal.batches if self.journal else 0,
        )
        with closing(batches):
            for rows in batches:
                records = []
                for row in filter(keep, rows):
                    records.append(record_of(row, self.bundle.classes, self.options.min_confidence))
                    if row.probabilities is not None:
                        self._decode.add(row.decode_seconds)
                        self._tiles += 1
                if seconds := max(row.engine_seconds for row in rows):
                    self._engine.add(seconds)
                if not records:
                    continue
                if self.journal:
                    self.journal.append(records)
                if self.writer:
                    self.writer.write(records)
                if not self.journal:
                    self._count(records)
                yield records

    def _count(self, records: Iterable[Record]) -> None:
        for record in records:
            self.tally.add(record)

    def finish(self, check: bool = True) -> dict[str, Any]:
        """Write the output and the summary; returns the summary."""
        journal = self.journal
        if journal:
            self.tally = Tally(self.bundle.classes)
            try:
                write_whole(self.out, lambda file: self._write(file, journal, check))
            except NoTilesError:
                journal.remove()
                raise
        elif check:
            check_tiles(self.tally)
        summary = self._summary(time.perf_counter() - self._timer)
        if self._summary_path:
            write_json(self._summary_path, summary)
        return summary

    def _write(self, file: Any, journal: Journal, check: bool) -> None:
        rows = self.format(file, self.bundle.classes)
        waiting: list[Record] = []
        for record in journal.records():
            self.tally.add(record)
            waiting.append(record)
            if len(waiting) == 1024:
                rows.write(waiting)
                waiting.clear()
        rows.write(waiting)
        rows.close()
        if check:
            check_tiles(self.tally)

    def _summary(self, seconds: float) -> dict[str, Any]:
        options = {**self.identity, "--threads": self.threads}
        sessions = self.journal.sessions if self.journal else [self.started]
        written = self.out != STANDARD_OUTPUT
        return {
            **record_head(sessions[0], sessions, _now()),
            **summarize(self.bundle, self.chosen, self.tally),
            "out": os.fsencode(self.out).decode(errors="backslashreplace"),
            "out_sha256": sha256_file(self.out) if written else None,
            "options": options,
            "options_sha256": options_hash(options),
            "seconds": round(seconds, 3),
            "tiles_per_second": round(self._tiles / seconds, 1) if seconds else None,
            "milliseconds": {
                "read and decode, a tile": self._decode.milliseconds(),
                f"engine, a batch of {self.batch_size}": self._engine.milliseconds(),
            },
            "threads": self.threads,
            "host": host(),
        }


def infer_folder(
    files: Iterable[FoundFile],
    bundle: Bundle,
    out: Path,
    options: Options = Options(),
    *,
    resume: bool | None = None,
    summary: Path | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_kept: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Predict `files` into `out`; returns the run's summary with its exit code.

    `resume` True goes on with a run that was stopped (and begins one where there is none), False
    begins anew, None refuses to throw rows of a stopped run away. `on_rows` hears of rows as they
    are done, `on_kept` how many are kept when the run is stopped.
    """
    with Session(bundle, out, options, resume=resume, summary=summary, on_kept=on_kept) as session:
        journal = session.journal
        kept = journal.rows if journal else 0
        if journal and kept:
            on_rows(kept)
            files = journal.without_done(files)
        for records in session.batches(files):
            on_rows(len(records))
        if journal and kept and not journal.met:
            raise EdgelungError(
                "found no file at all, where there were some when the run was begun; a share that "
                "went away?"
            )
        result = session.finish()
        if journal:
            journal.remove()
    return result


def _as_before(options: Options, before: Mapping[str, Any] | None) -> Options:
    """What was left open is what the run was begun with."""
    if before is None:
        return options
    return replace(
        options,
        engine=options.engine or EngineName(before["--engine"]),
        precision=options.precision or Precision(before["--precision"]),
        batch_size=options.batch_size or before["--batch-size"],
    )


class Unbuffered:
    """A file without a buffer of Python's, so that an error is met here and once."""

    def __init__(self, handle: int | None, name: str) -> None:
        self._handle, self._name = handle, name
        self._bytes = 0

    def write(self, data: bytes) -> int:
        """Write all of it; EdgelungError where nobody reads or nothing fits any more."""
        rest = memoryview(data)
        try:
            if self._handle is None:
                raise BrokenPipeError
            while rest:
                try:
                    rest = rest[os.write(self._handle, rest) :]
                except BlockingIOError:  # the other end made it so; it will read on
                    select.select([], [self._handle], [])
        except BrokenPipeError as error:
            raise EdgelungError(
                f"{self._name} was closed after {self._bytes} bytes of rows; nothing more was "
                "predicted"
            ) from error
        except OSError as error:
            raise EdgelungError(f"cannot write to {self._name}: {error.strerror}") from error
        self._bytes += len(data)
        return len(data)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
