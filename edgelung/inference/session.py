"""`edgelung infer`: a source and a bundle in; rows, a summary and an exit code out.

source ─► pipeline ─► records ─► sink ─► rows
                                   └──► tally ─► summary
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle, Variant, coverage_key
from edgelung.artifacts.summary import Listing, Summary, write_summary
from edgelung.core.errors import EdgelungError
from edgelung.core.files import WriteError
from edgelung.core.precision import FULL_PRECISION
from edgelung.core.system import versions
from edgelung.engines.names import EngineName
from edgelung.inference.destination import Destination
from edgelung.inference.engines import (
    Engines,
    LoadedEngines,
    OpenEngines,
    open_engines,
)
from edgelung.inference.identity import RunIdentity
from edgelung.inference.options import DEFAULTS, Options
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import FileReading
from edgelung.inference.record import LabelRule, Record, record_of
from edgelung.inference.shards import ShardFiles
from edgelung.inference.sinks import Sink, open_sink
from edgelung.inference.source import Source
from edgelung.inference.summary import Measurements, summarize
from edgelung.inference.tally import check_any_tile
from edgelung.tiles.find import FoundFile

__all__ = [
    "DEFAULTS",
    "Engines",
    "LoadedEngines",
    "OnRows",
    "OnStopped",
    "OpenEngines",
    "Options",
    "Session",
    "check_coverage",
    "infer_folder",
    "label_rule",
    "open_engines",
    "open_session",
]

OnRows = Callable[[int], None]  # rows that are done since the last call
OnStopped = Callable[[int, Path], None]  # rows that are kept, and the journal that keeps them


def infer_folder(
    source: Source,
    bundle: Bundle,
    destination: Destination,
    options: Options = DEFAULTS,
    *,
    resume: bool | None = None,
    on_rows: OnRows = lambda count: None,
    on_stopped: OnStopped = lambda count, journal: None,
    engines: OpenEngines | None = None,
) -> Summary:
    """Predict every file of the source: one row per file.

    Args:
        source: folders of tiles, or a list of files.
        bundle: the opened bundle.
        destination: where rows and summary go.
        options: how to predict.
        resume: True continues a stopped run (or begins one if there is none), False drops its
            rows, None refuses to do either.
        on_rows: called with the number of rows that are done since the last call.
        on_stopped: called if the run ends early, with the number of rows in the journal.
        engines: opens the engines; None: on this machine.

    Returns:
        The summary, which is also written. Files that cannot be predicted have a row with the
        reason; `summary.exit_code` tells that there were some.

    Raises:
        EdgelungError: a wrong folder or list, no engine that works, an output that cannot be
            written, or a stopped run that is not this one.
    """
    files = source.files(destination)
    with open_session(
        bundle,
        destination,
        source,
        options,
        resume=resume,
        on_stopped=on_stopped,
        opening=engines,
    ) as session:
        if session.earlier_rows:
            on_rows(session.earlier_rows)
        if options.shard is None:
            part = None
        else:
            files = part = ShardFiles(files, options.shard, session.batch_size)
        for records in session.predict(session.remaining(files)):
            on_rows(len(records))
        listing = part.seen.listing if part else None
        if listing and not listing.files:
            check_any_tile({}, 0)
        return session.finish(listing=listing)


class Session:
    """One start of the program on a run. Made by `open_session`."""

    def __init__(
        self,
        bundle: Bundle,
        destination: Destination,
        options: Options,
        engines: Engines,
        sink: Sink,
        identity: RunIdentity,
    ) -> None:
        self._bundle, self._destination, self._options = bundle, destination, options
        self._engines, self._sink, self._identity = engines, sink, identity
        self._measured = Measurements()
        self.earlier_rows = sink.rows
        self.batch_size = engines.batch_size

    def remaining(self, files: Iterable[FoundFile]) -> Iterable[FoundFile]:
        """Those of `files` that have no row from an earlier session."""
        return self._sink.remaining(files) if self.earlier_rows else files

    def earlier_paths(self) -> Iterator[str]:
        """Printable paths of the files that have a row from an earlier session."""
        return self._sink.earlier_paths()

    def predict(
        self,
        files: Iterable[FoundFile],
        accept: Callable[[Row[FoundFile]], bool] = lambda row: True,
    ) -> Iterator[list[Record]]:
        """Predict the files. Yields the records of each batch once they are in the sink.

        `accept` decides which rows count; the others are dropped.
        """
        rule = label_rule(self._bundle, self._engines.chosen.variant, self._options)
        batches = self._engines.predict(
            files,
            FileReading(self._bundle.reader),
            first=self._sink.batches,
        )
        with closing(batches):
            for rows in batches:
                accepted = [row for row in rows if accept(row)]
                self._measured.add(rows, accepted)
                records = [record_of(row, rule) for row in accepted]
                if records:
                    self._sink.append(records)
                    yield records

    def finish(self, waiting: int | None = None, listing: Listing | None = None) -> Summary:
        """Write the output and the summary.

        `waiting`: files that a watch leaves without a row; None for other runs. `listing`: all
        files of a run of which this is a part; None for other runs.
        """
        tally = self._sink.finish()
        summary = summarize(
            self._bundle,
            self._engines.chosen,
            self._destination,
            self._identity,
            tally,
            self._measured,
            sessions=self._sink.sessions,
            ended=_now(),
            threads=self._engines.threads,
            waiting=waiting,
            listing=listing,
            evidence=self._sink.evidence,
            prebuilt=self._options.prebuilt,
            nodes=self._engines.nodes,
        )
        self._write_summary(summary)
        self._sink.complete()
        return summary

    def _write_summary(self, summary: Summary) -> None:
        path = self._destination.summary
        if path is None:
            return
        try:
            write_summary(path, summary)
        except WriteError as error:
            if not self._destination.journal:  # rows on standard output: no resume
                raise
            raise EdgelungError(
                f"{error.fault}; the rows in {self._destination.name} are complete. "
                f"{error.remedy}, then run the same command with --resume"
            ) from error


@contextmanager
def open_session(
    bundle: Bundle,
    destination: Destination,
    source: Source,
    options: Options,
    *,
    resume: bool | None,
    on_stopped: OnStopped,
    watch: bool = False,
    opening: OpenEngines | None = None,
) -> Iterator[Session]:
    """Open the sink, then the engines, and check that a stopped run is this one.

    `opening`: opens the engines; None: on this machine.

    Raises EdgelungError as `infer_folder` does.
    """
    check_coverage(bundle, options.coverage)
    started = _now()
    with ExitStack() as stack:
        sink = open_sink(
            destination,
            bundle.classes,
            resume=resume,
            live=watch,
            may_be_empty=options.shard is not None,
        )
        stack.callback(_close, sink, destination, on_stopped)
        opened = (opening or open_engines)(bundle, options, sink.previous)
        engines = stack.enter_context(opened)
        identity = _identify(bundle, source, options, engines, watch)
        sink.start(identity, started)
        yield Session(bundle, destination, options, engines, sink, identity)


def _close(sink: Sink, destination: Destination, on_stopped: OnStopped) -> None:
    kept_rows = sink.close()
    if kept_rows and destination.journal:
        on_stopped(kept_rows, destination.journal)


def _identify(
    bundle: Bundle, source: Source, options: Options, engines: Engines, watch: bool
) -> RunIdentity:
    chosen = engines.chosen
    return RunIdentity(
        edgelung=__version__,
        packages=versions(),
        bundle=bundle.sha256,
        engine=EngineName(chosen.engine.name),
        precision=chosen.variant.precision,
        floating_point=chosen.engine.float_type,
        batch_size=engines.batch_size,
        verify=options.verify,
        verify_every=options.verify_every,
        min_confidence=options.min_confidence,
        strict_size=options.strict_size or None,
        prebuilt=str(options.prebuilt.path.absolute()) if options.prebuilt else None,
        inputs=source.folder_names,
        listing=source.listing_id,
        subset=source.subset,
        watch=watch or None,
        follow_links=source.follow_links or None,
        keep_unknown=options.keep_unknown or None,
        coverage=options.coverage,
        shard=str(options.shard) if options.shard else None,
    )


def check_coverage(bundle: Bundle, coverage: float | None) -> None:
    """Raise EdgelungError if the bundle has no prediction sets of this coverage."""
    sets = bundle.variants[FULL_PRECISION].entry.sets
    if coverage is not None and (key := coverage_key(coverage)) not in sets:
        remedy = f"expected one of {', '.join(sets)}" if sets else "export the bundle again"
        raise EdgelungError(f"the bundle has no prediction sets of coverage {key}; {remedy}")


def label_rule(bundle: Bundle, variant: Variant, options: Options) -> LabelRule:
    """Which predictions of a variant get a label.

    The bundle has sets of the coverage that is asked for (`check_coverage`).
    """
    known, level = variant.entry.known, None
    if options.coverage is not None:
        level = variant.entry.sets[coverage_key(options.coverage)].level
    return LabelRule(
        min_confidence=options.min_confidence,
        trained_sizes=bundle.trained_sizes,
        strict_size=options.strict_size,
        marks_unknown=not options.keep_unknown,
        known_up_to=known.threshold if known else None,
        set_level=level,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
