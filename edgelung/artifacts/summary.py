"""The summary of an `infer` run: a JSON file beside the rows that records the run."""

import os
from pathlib import Path

from msgspec import Struct

from edgelung.artifacts.results import Concern
from edgelung.artifacts.trust import SignatureCheck
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import WriteError, json_bytes, replacing
from edgelung.core.folder import Folder, read_regular
from edgelung.core.system import Host
from edgelung.core.typed_json import Json

SCHEMA_VERSION = 1  # summaries without a version are read as version 1
KIND = "edgelung infer"  # marks the file: only a file with this mark is overwritten
SUFFIX = ".summary.json"
MAX_BYTES = 1 << 26  # a summary has a few kilobytes; a larger file is not one
REMEDY = "expected the summary that `edgelung infer` wrote"


class Latency(Struct, frozen=True, kw_only=True):
    """Percentiles of a duration, milliseconds."""

    p50: float
    p90: float
    p99: float


class Verification(Struct, frozen=True, kw_only=True):
    """Comparison of the variant with full precision, on the tiles that both predicted."""

    tiles: int
    agreement: float
    differing_labels: int
    max_probability_difference: float
    min_agreement: float
    passed: bool


class Listing(Struct, frozen=True, kw_only=True):
    """All files of a run, whichever part predicted them.

    `paths`: the sum of the BLAKE2b hashes of their printable paths, modulo 2^256, in hexadecimal.
    """

    files: int
    paths: str


class Part(Struct, frozen=True, kw_only=True):
    """A part of a run (`--shard`) that `edgelung merge` put together with the others."""

    shard: str
    out: str
    out_sha256: str
    journal_checksum: str | None
    started: str
    ended: str
    seconds: float
    tiles_per_second: float | None
    threads: int
    host: Host


class NodeRecord(Struct, frozen=True, kw_only=True):
    """What a machine of a cluster (`--ray`) predicted in the last session of a run.

    Attributes:
        host: the machine; rows are equal to the last bit only where processors are alike.
        engine, device, floating_point, golden_difference: as in the summary, on this machine.
        threads: CPU threads of its worker.
        workers: how many worker processes it began; more than one of a device: some ended early.
        tiles: rows from it, those of broken files included.
    """

    host: Host
    engine: str
    device: str
    floating_point: str
    golden_difference: float
    threads: int
    workers: int
    tiles: int


class Summary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a run.

    Attributes:
        started, ended, resumed: UTC, ISO 8601; `resumed` has one entry per `--resume`.
        precision: of the graph. floating_point: the type in which the engine computes.
        choice: why this engine and variant were chosen.
        golden_difference: largest |Δ probability| on the bundle's golden tiles.
        files: number of rows. failed: rows without a prediction because of an error.
        labels: class → number of files with this label.
        stages: '1' → tiles that left the model at its early exit, '2' → tiles that went through all
            of it; empty for a model without one.
        verify: the comparison with full precision; None without `--verify`.
        exit_code: see `edgelung.core.errors.ExitCode`.
        out, out_sha256: the file of the rows ('-' is standard output) and the hash of what was
            written to it.
        journal_checksum: of the last line of the run's journal, over all its lines; None for
            standard output.
        journal_dropped: lines of the journal that were damaged or changed, and dropped.
        links_skipped: links that lead out of the folder and were not followed.
        options, options_sha256: all settings that affect the rows, and their hash as sorted JSON.
            An option that the user left open has the value that was used.
        seconds, tiles_per_second: of the last session, without the time to load the engine.
        milliseconds: durations by step.
        other_sizes: predicted tiles whose size in pixels is far from `trained_sizes`.
        waiting: files without a row when `--watch` ended; None for other runs.
        concerns: why the bundle's model, or the figures about it, should not be trusted.
        knows_unknown: the bundle can tell tissue that it was not made for.
        listing: all files that the part of a run (`--shard`) has seen; None for other runs.
        parts: what `edgelung merge` put together. Such a run has the `seconds` of all parts
            together, no `tiles_per_second`, no durations and no journal; threads and host are those
            of the first part.
        nodes: the machines of the cluster that predicted (`--ray`); none if it was `host`.
        signature: who signed the bundle; None in summaries of an older edgelung.
        prebuilt_signature: who signed the engines of `--prebuilt`; None without them.
    """

    kind: str
    schema_version: int
    note: str
    started: str
    resumed: list[str]
    ended: str
    bundle: str
    bundle_sha256: str
    engine: str
    device: str
    precision: str
    floating_point: str
    choice: str
    golden_difference: float
    files: int
    failed: int
    statuses: dict[str, int]
    labels: dict[str, int]
    verify: Verification | None
    exit_code: int
    out: str
    out_sha256: str | None
    options: dict[str, Json]
    options_sha256: str
    seconds: float
    tiles_per_second: float | None
    milliseconds: dict[str, Latency | None]
    threads: int
    host: Host
    other_sizes: int = 0
    trained_sizes: str = ""
    waiting: int | None = None
    concerns: list[Concern] = []
    links_skipped: int = 0
    stages: dict[str, int] = {}
    journal_checksum: str | None = None
    journal_dropped: int = 0
    knows_unknown: bool = False
    listing: Listing | None = None
    parts: list[Part] = []
    signature: SignatureCheck | None = None
    prebuilt_signature: SignatureCheck | None = None
    nodes: list[NodeRecord] = []


def summary_bytes(summary: Summary) -> bytes:
    """The summary as its file holds it, to the last byte: what a signature is over."""
    return json_bytes(typed_json.plain(summary))


def write_summary(path: Path, summary: Summary) -> None:
    """Write the summary as JSON, atomically.

    Raises EdgelungError if `path` is there and is no summary of a run.
    """
    try:
        folder = Folder(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error
    with folder:
        check_summary(folder, path.name)
        with replacing(folder, path.name) as descriptor, open(descriptor, "wb", closefd=False) as f:
            f.write(summary_bytes(summary))


def check_summary(folder: Folder, name: str) -> None:
    """Raise EdgelungError if `name` in an open folder is there and is no summary of a run."""
    try:
        content = folder.read(name, MAX_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WriteError(folder.path / name, error) from error
    if content and _parsed(content) is None:
        raise EdgelungError(
            f"{folder.path / name} exists and is no summary of a run; it was left alone: name "
            "another file with --summary"
        )


def read_summary(path: Path) -> Summary:
    """Read a summary. Raises EdgelungError that names the file and what is wrong with it."""
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error
    return decode_summary(path, data)


def decode_summary(path: Path, data: bytes) -> Summary:
    """As `read_summary`, of bytes that were read before; `path` is for messages."""
    content = _parsed(data)
    if content is None:
        raise EdgelungError(f"{path} is no summary of a run; {REMEDY}")
    content.setdefault("schema_version", 1)
    typed_json.check_version(path, content, SCHEMA_VERSION)
    try:
        return typed_json.convert(content, Summary)
    except ValueError as error:
        raise EdgelungError(f"cannot read {path}: {one_line(error)}; {REMEDY}") from error


def summary_beside(rows: Path) -> Path:
    """Where the summary of `rows` is: rows.summary.json beside rows.csv.

    Where that file belongs to rows of another name, such as rows.parquet: rows.csv.summary.json.
    """
    short = rows.with_suffix(SUFFIX)
    if short.exists() and rows_name_of(short) not in (None, rows.name):
        return rows.with_name(rows.name + SUFFIX)
    return short


def rows_name_of(path: Path) -> str | None:
    """File name of the rows that the summary at `path` describes; None if it is no summary."""
    content = _content_of(path)
    return None if content is None else os.path.basename(str(content.get("out")))


def _content_of(path: Path) -> dict[str, Json] | None:
    """The JSON object in the file, if it is a summary of any version."""
    try:
        return _parsed(read_regular(path, MAX_BYTES))
    except OSError:
        return None


def _parsed(data: bytes) -> dict[str, Json] | None:
    try:
        content = typed_json.parse(data)
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("kind") == KIND else None
