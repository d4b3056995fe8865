"""The record of one slide: a JSON file beside its results."""

from pathlib import Path
from typing import Literal

from msgspec import Struct

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.results import Interval
from edgelung.core import typed_json

SCHEMA_VERSION = 1
KIND: Literal["edgelung slide"] = "edgelung slide"
OK, FAILED = "ok", "failed"
REMEDY = "expected the summary that `edgelung slide` wrote"


class ClassShare(Struct, frozen=True, kw_only=True):
    """How much of the tissue one class covers.

    Attributes:
        name: the class.
        tiles: number of tiles with this label.
        share: of the labelled tissue, 0…1; None if there is none.
        interval: 95 % interval of the share; None where it is unknown (too few blocks).
    """

    name: str
    tiles: int
    share: float | None
    interval: Interval | None


class Blocks(Struct, frozen=True, kw_only=True):
    """The blocks of tissue that the intervals resample.

    Attributes:
        side_px: side of a block, pixels of level 0.
        side_um: the same in micrometres; None if the scale is unknown.
        count: blocks that hold labelled tissue.
        effective: the number of equal blocks that would say as much.
    """

    side_px: float
    side_um: float | None
    count: int
    effective: float


class Tissue(Struct, frozen=True, kw_only=True):
    """The tissue mask.

    Attributes:
        rule: how it was made, in words.
        threshold: the value that separates tissue from glass; None if the rule has none.
        downsample: pixels of level 0 per pixel of the mask.
        share: of the slide's area, 0…1.
        area_mm2: square millimetres; None if the scale is unknown.
    """

    rule: str
    threshold: float | None
    downsample: float
    share: float
    area_mm2: float | None


class SlideSummary(Struct, frozen=True, kw_only=True):
    """The record of a slide.

    Attributes:
        slide: file name. scene: name of the scene; '' in a file with one.
        status: 'ok'; 'failed': the slide has no results. Another word: it has some.
        reason: why the status is not 'ok'.
        started, ended: UTC, ISO 8601. sessions: when the slide was begun and resumed.
        width, height: pixels of level 0, within the bounds.
        format: format and reader in words. reader: 'direct', 'openslide' or 'tifffile'.
        mpp: micrometres per pixel that was used. mpp_source: where it is from.
        notes: what a person should know about the slide, one sentence each.
        tile_px: side of a tile, pixels of level 0. tile_um: the same in micrometres.
        level, eighths: which level was read, and at which scale (see `slides.base.Grid`).
        overlap: of neighbouring tiles, 0…1.
        statuses: status → number of tiles. labels: class → number of tiles with this label.
        blocks: what the intervals of `shares` resample; None without tiles.
        signature: who signed the bundle, in words.
        seconds, tiles_per_second: of the last session.
    """

    kind: Literal["edgelung slide"] = KIND  # marks the file
    schema_version: int = SCHEMA_VERSION
    note: str = RESEARCH_USE_ONLY
    slide: str
    scene: str = ""
    status: str
    reason: str = ""
    started: str
    ended: str
    sessions: list[str] = []
    width: int = 0
    height: int = 0
    format: str = ""
    reader: str = ""
    mpp: float | None = None
    mpp_source: str = ""
    notes: list[str] = []
    tile_px: int = 0
    tile_um: float | None = None
    level: int = 0
    eighths: int = 8
    overlap: float = 0.0
    tissue: Tissue | None = None
    tiles: int = 0
    statuses: dict[str, int] = {}
    labels: dict[str, int] = {}
    shares: list[ClassShare] = []
    blocks: Blocks | None = None
    bundle: str = ""
    bundle_sha256: str = ""
    signature: str = ""
    engine: str = ""
    precision: str = ""
    device: str = ""
    seconds: float = 0.0
    tiles_per_second: float | None = None


def write_slide_summary(path: Path, summary: SlideSummary) -> None:
    """Write the summary as JSON, atomically."""
    typed_json.write(path, summary)


def read_slide_summary(path: Path) -> SlideSummary:
    """Read a summary. Raises EdgelungError that names the file and what is wrong with it."""
    return typed_json.read(path, SlideSummary, REMEDY, SCHEMA_VERSION)
