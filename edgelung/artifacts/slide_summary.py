"""The record of one slide: a JSON file beside its results."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.results import Interval
from edgelung.artifacts.summary import NodeRecord
from edgelung.core import typed_json
from edgelung.core.csv_cells import safe_cell
from edgelung.core.files import atomic_write
from edgelung.core.typed_json import Json
from edgelung.tiles.status import NO_FAILURE

SCHEMA_VERSION = 1
KIND: Literal["edgelung slide"] = "edgelung slide"
OK, FAILED, NO_TISSUE = "ok", "failed", "no-tissue"
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
        side_um: the same in micrometres.
        count: blocks that hold labelled tissue.
        effective: effective number of blocks (Kish 1965); `count` if all hold as much tissue.
    """

    side_px: float
    side_um: float
    count: int
    effective: float


class Tissue(Struct, frozen=True, kw_only=True):
    """The tissue mask.

    Attributes:
        rule: how it was made, in words.
        threshold: the value that separates tissue from glass; None if the rule has none.
        downsample: pixels of level 0 per pixel of the mask.
        share: of the slide's area, 0…1.
        area_mm2: square millimetres.
    """

    rule: str
    threshold: float | None
    downsample: float
    share: float
    area_mm2: float


class SlideSummary(Struct, frozen=True, kw_only=True):
    """The record of a slide.

    Attributes:
        slide: file name. scene: name of the scene; '' in a file with one.
        status: 'ok'; 'failed': the slide has no results. Another word: it has some.
        reason: why the status is not 'ok'.
        started, ended: UTC, ISO 8601. sessions: when the slide was begun and resumed.
        width, height: pixels of level 0, within the bounds.
        format: format and reader in words. reader: 'direct' or 'openslide'.
        mpp: micrometres per pixel that was used; None: it failed. mpp_source: where it is from.
        notes: what a person should know about the slide, one sentence each.
        tile_px: side of a tile, pixels of level 0. tile_um: the same in micrometres.
        level, eighths: which level was read, and at which scale (see `slides.base.Grid`).
        overlap: of neighbouring tiles, 0…1.
        statuses: status → number of tiles. labels: class → number of tiles with this label.
        stages: '1' → tiles that left the model at its early exit, '2' → tiles that went through all
            of it; empty without an early exit.
        knows_unknown: the bundle can tell tissue that the model was not made for.
        blocks: what the intervals of `shares` resample; None without tiles.
        signature: who signed the bundle, in words.
        seconds, tiles_per_second: of the last session.
        options: all settings that affect the tiles.
        journal_checksum: of the last line of the journal, over all its lines.
        journal_dropped: lines of the journal that were damaged or changed, and dropped.
        nodes: the machines of the cluster that predicted (`--ray`); none if it was this one.
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
    stages: dict[str, int] = {}
    knows_unknown: bool = False
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
    options: dict[str, Json] = {}
    journal_checksum: str | None = None
    journal_dropped: int = 0
    nodes: list[NodeRecord] = []

    @property
    def failed_whole(self) -> bool:
        """True if the slide has no results."""
        return self.status == FAILED

    @property
    def failed_tiles(self) -> int:
        """Tiles without a prediction because of an error."""
        return sum(n for status, n in self.statuses.items() if status not in NO_FAILURE)

    @property
    def failed(self) -> bool:
        """True if the slide or a tile of it failed."""
        return self.failed_whole or self.failed_tiles > 0

    @property
    def name(self) -> str:
        """File and scene."""
        return f"{self.slide} {self.scene}".strip()

    @property
    def most_frequent(self) -> ClassShare | None:
        """The class with the largest share; None without a label."""
        known = [one for one in self.shares if one.share is not None]
        return max(known, key=lambda one: one.share or 0.0, default=None)


def write_slide_summary(path: Path, summary: SlideSummary) -> None:
    """Write the summary as JSON, atomically."""
    typed_json.write(path, summary)


def read_slide_summary(path: Path) -> SlideSummary:
    """Read a summary. Raises EdgelungError that names the file and what is wrong with it."""
    return typed_json.read(path, SlideSummary, REMEDY, SCHEMA_VERSION)


def write_run_table(path: Path, slides: Sequence[SlideSummary], folders: Mapping[int, str]) -> None:
    """Write slides.csv: one row per slide. `folders`: position → name of the slide's folder."""
    classes = list(dict.fromkeys(one.name for slide in slides for one in slide.shares))
    text = io.StringIO()
    lines = csv.writer(text)
    first = ["slide", "scene", "status", "reason", "folder", "tiles", "failed_tiles", "tissue_mm2"]
    lines.writerow([*first, *(safe_cell(f"share_{name}") for name in classes)])
    for number, slide in enumerate(slides):
        shares = {one.name: one.share for one in slide.shares}
        area = slide.tissue.area_mm2 if slide.tissue else None
        row = [
            *(slide.slide, slide.scene, slide.status, slide.reason, folders.get(number, "")),
            *(slide.tiles, slide.failed_tiles, "" if area is None else area),
            *("" if (share := shares.get(name)) is None else f"{share:.6f}" for name in classes),
        ]
        lines.writerow([safe_cell(cell) if isinstance(cell, str) else cell for cell in row])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
