"""Builds the summary of a run from what it counted and measured."""

import json
import time
from collections.abc import Mapping, Sequence

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.summary import (
    KIND,
    SCHEMA_VERSION,
    Listing,
    NodeRecord,
    Summary,
    Verification,
)
from edgelung.core.errors import ExitCode
from edgelung.core.files import sha256_bytes
from edgelung.core.system import host
from edgelung.core.typed_json import Json
from edgelung.engines.choose import Choice
from edgelung.engines.tensorrt.prebuilt import PrebuiltFolder
from edgelung.evaluation.concerns import bundle_concerns
from edgelung.inference.destination import Destination
from edgelung.inference.identity import RunIdentity
from edgelung.inference.percentiles import DurationHistogram
from edgelung.inference.pipeline import Item, Row
from edgelung.inference.sinks import Evidence
from edgelung.inference.tally import Tally


class Measurements:
    """How long this session took. The clock starts with the object."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.tiles = 0
        self.decode = DurationHistogram()
        self.engine = DurationHistogram()

    def add(self, batch: Sequence[Row[Item]], accepted: Sequence[Row[Item]]) -> None:
        """Count one batch, and the predictions among its accepted rows."""
        for row in accepted:
            if row.probabilities is not None:
                self.decode.add(row.decode_seconds)
                self.tiles += 1
        if seconds := max(row.engine_seconds for row in batch):
            self.engine.add(seconds)

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start


def summarize(
    bundle: Bundle,
    chosen: Choice,
    destination: Destination,
    identity: RunIdentity,
    tally: Tally,
    measured: Measurements,
    *,
    sessions: Sequence[str],
    ended: str,
    threads: int,
    waiting: int | None,
    listing: Listing | None,
    evidence: Evidence,
    prebuilt: PrebuiltFolder | None,
    nodes: Sequence[NodeRecord],
) -> Summary:
    """The summary of a run whose rows are written.

    Args:
        sessions: when the run was begun and resumed, `ended` when it ended; UTC.
        waiting: files that a watch leaves without a row; None for other runs.
        listing: all files that a part of a run has seen; None for other runs.
        evidence: hashes of the rows and of the journal.
        prebuilt: the folder of the engine, if it was built ahead of time.
        nodes: the other machines that predicted; none if it was this one.
    """
    seconds = measured.seconds()
    options = {**identity.to_json(), "--threads": threads}
    verification = tally.verification()
    return Summary(
        kind=KIND,
        schema_version=SCHEMA_VERSION,
        note=RESEARCH_USE_ONLY,
        started=sessions[0],
        resumed=list(sessions[1:]),
        ended=ended,
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        engine=chosen.engine.name,
        device=chosen.engine.device,
        precision=chosen.variant.precision,
        floating_point=chosen.engine.float_type,
        choice=chosen.reason,
        golden_difference=chosen.golden_difference,
        files=tally.files,
        failed=tally.failed,
        statuses=dict(tally.statuses),
        other_sizes=tally.other_sizes,
        trained_sizes=str(bundle.trained_sizes),
        labels={name: tally.labels[name] for name in bundle.classes},
        verify=verification,
        exit_code=int(_exit_code(tally, verification)),
        out=destination.name,
        out_sha256=evidence.out_sha256,
        options=options,
        options_sha256=options_hash(options),
        seconds=round(seconds, 3),
        tiles_per_second=round(measured.tiles / seconds, 1) if seconds else None,
        milliseconds={
            "read and decode, a tile": measured.decode.latency(),
            f"engine, a batch of {identity.batch_size}": measured.engine.latency(),
        },
        threads=threads,
        host=host(),
        waiting=waiting,
        listing=listing,
        concerns=bundle_concerns(bundle.manifest),
        links_skipped=tally.links,
        stages=dict(sorted(tally.stages.items())),
        journal_checksum=evidence.journal_checksum,
        journal_dropped=evidence.journal_dropped,
        knows_unknown=chosen.variant.entry.known is not None,
        signature=bundle.signature,
        prebuilt_signature=prebuilt.signature if prebuilt else None,
        nodes=list(nodes),
    )


def _exit_code(tally: Tally, verification: Verification | None) -> ExitCode:
    if verification is not None and not verification.passed:
        return ExitCode.GATE
    return ExitCode.SOME_FAILED if tally.failed else ExitCode.OK


def options_hash(options: Mapping[str, Json]) -> str:
    """SHA-256 of the options as sorted JSON."""
    return sha256_bytes(json.dumps(options, sort_keys=True).encode())
