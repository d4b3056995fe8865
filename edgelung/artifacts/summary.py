"""The summary of an `infer` run: its audit record, a JSON file beside the rows."""

from msgspec import Struct

from edgelung.artifacts.results import LabelledMetrics
from edgelung.core.system import Host
from edgelung.core.typed_json import Json

KIND = "edgelung infer"  # marks the file, so that only a summary is ever overwritten


class Latency(Struct, frozen=True, kw_only=True):
    """Percentiles of a duration, milliseconds."""

    p50: float
    p90: float
    p99: float


class Verification(Struct, frozen=True, kw_only=True):
    """The variant that ran beside full precision, on the tiles that both predicted.

    `variant`, `reference`: their metrics on those of the tiles that lie in class folders.
    """

    tiles: int
    agreement: float
    differing_labels: int
    max_probability_difference: float
    min_agreement: float
    passed: bool
    variant: LabelledMetrics | None
    reference: LabelledMetrics | None


class Summary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run did and with what. Times are UTC, ISO 8601.

    `resumed`: when the run was gone on with. `labelled`: metrics of the tiles that lie in folders
    named after classes. `milliseconds`: by step. `waiting`: files that a watch left without a row.
    """

    kind: str
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
    labelled: LabelledMetrics | None
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
    waiting: int | None = None
