"""Predict the tiles of one slide. A killed run continues where its journal ends.

The tiles are always read in the order of the grid, so what the journal holds is a beginning of
them, and the rest are the batches of an undisturbed run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
from msgspec import field

from edgelung import __version__
from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.artifacts.summary import NodeRecord
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.core.system import RUNTIME_PACKAGES, SLIDE_PACKAGES, versions
from edgelung.engines.names import EngineName
from edgelung.inference.identity import Identity
from edgelung.inference.journal import Journal
from edgelung.inference.record import LabelRule, Record, make_record
from edgelung.inference.session import Engines
from edgelung.slides.base import Grid, Slide
from edgelung.slides.mask import TissueMask
from edgelung.slides.reading import SlideReading, stamp_of_slide


class SlideIdentity(Identity, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that the rows of a slide depend on.

    Attributes:
        slide: name of the file.
        stamp: its size in bytes and time of the last change.
        reader: the library that reads it.
        grid: level, scale, side and step in its pixels.
        mask: how the tissue was found, and the beginning of the SHA-256 of its mask.
    """

    edgelung: str
    packages: dict[str, str]
    bundle: str
    engine: EngineName = field(name="--engine")
    precision: Precision = field(name="--precision")
    floating_point: str = field(name="floating point")
    batch_size: int = field(name="--batch-size")
    min_confidence: float | None = field(name="--min-confidence")
    keep_unknown: bool | None = field(name="--unknown keep", default=None)
    slide: str
    scene: str
    stamp: list[int]
    reader: str
    mpp: float = field(name="--mpp")
    tile_um: float = field(name="--tile-um")
    grid: list[int]
    mask: str = field(name="--mask")


@dataclass(frozen=True)
class Predicted:
    """The tiles of a slide, and how the run went.

    Attributes:
        tiles: all of them, in the order of the grid.
        sessions: when the run was begun and resumed; UTC.
        resumed: how many tiles an earlier session predicted.
        dropped: damaged lines of the journal, which were dropped.
        checksum: of the journal.
        seconds: of this session.
        nodes: the machines of the cluster that predicted; none if it was this one.
    """

    tiles: SlideTiles
    sessions: Sequence[str]
    resumed: int
    dropped: int
    checksum: str
    seconds: float
    nodes: Sequence[NodeRecord] = ()

    @property
    def tiles_per_second(self) -> float | None:
        """Speed of this session; None if it predicted nothing."""
        done = len(self.tiles) - self.resumed
        return round(done / self.seconds, 1) if done and self.seconds else None


def identify(
    slide: Slide,
    grid: Grid,
    mask: TissueMask,
    mpp: float,
    tile_um: float,
    bundle: Bundle,
    engines: Engines,
    min_confidence: float | None,
    *,
    keep_unknown: bool = False,
) -> SlideIdentity:
    """The identity of a slide's run. Raises SlideChangedError if the slide is gone."""
    chosen = engines.chosen
    return SlideIdentity(
        edgelung=__version__,
        packages=versions((*RUNTIME_PACKAGES, *SLIDE_PACKAGES)),
        bundle=bundle.sha256,
        engine=EngineName(chosen.engine.name),
        precision=chosen.variant.precision,
        floating_point=chosen.engine.float_type,
        batch_size=engines.batch_size,
        min_confidence=min_confidence,
        keep_unknown=keep_unknown or None,
        slide=slide.path.name,
        scene=slide.scene,
        stamp=_stamp(slide.path),
        reader=slide.reader,
        mpp=mpp,
        tile_um=tile_um,
        grid=[grid.level, grid.eighths, grid.side, grid.step],
        mask=f"{mask.rule} ({sha256(np.packbits(mask.pixels).tobytes()).hexdigest()[:16]})",
    )


class SlideChangedError(EdgelungError):
    """The slide was changed while it was read."""


def check_not_stopped(path: Path) -> None:
    """Raise EdgelungError if a journal holds the tiles of a run that did not end."""
    if path.exists():
        with closing(Journal(path)) as journal:
            _refuse_rows(journal)


def _refuse_rows(journal: Journal) -> None:
    if journal.rows or journal.damaged:
        raise EdgelungError(
            f"{journal.path} holds {journal.rows} tiles of a run that did not end; add --resume to "
            "continue it, or --restart to begin anew"
        )


@contextmanager
def open_journal(
    path: Path,
    identity: SlideIdentity,
    classes: int,
    *,
    resume: bool | None,
    on_stopped: Callable[[int, Path], None],
) -> Iterator[Journal]:
    """Open the journal of a slide. It stays if there are rows in it and the block raises.

    `on_stopped` is told the number of rows that stay. Raises EdgelungError if the journal holds the
    rows of another run, or those of any run that did not end and `resume` is None.
    """
    with closing(Journal(path, classes=classes, restart=resume is False)) as journal:
        if resume is None:
            _refuse_rows(journal)
        if resume and journal.rows:
            journal.resume(identity, now())
        else:
            journal.begin(identity, now())
        try:
            yield journal
        except BaseException:
            if journal.rows:
                on_stopped(journal.rows, path)
            else:
                journal.remove()
            raise
        journal.remove()


def predict_slide(
    slide: Slide,
    grid: Grid,
    bundle: Bundle,
    engines: Engines,
    journal: Journal,
    identity: SlideIdentity,
    *,
    on_tiles: Callable[[int], None] = lambda count: None,
) -> Predicted:
    """Predict all tiles of a grid that the journal does not hold yet.

    A tile that cannot be read has its status and reason; the others are predicted.

    Raises:
        SlideChangedError: the slide was changed while it was read.
    """
    start, resumed = time.perf_counter(), journal.rows
    if resumed:
        on_tiles(resumed)
    known = engines.chosen.variant.entry.known
    rule = LabelRule(
        identity.min_confidence,
        marks_unknown=not identity.keep_unknown,
        known_up_to=known.threshold if known else None,
    )
    with closing(SlideReading(slide, grid, bundle.reader.size)) as reading:
        batches = engines.predict(range(resumed, len(grid)), reading, first=journal.batches)
        with closing(batches):
            for rows in batches:
                journal.append([make_record(row, name_of(grid, row.item), rule) for row in rows])
                on_tiles(len(rows))
    if _stamp(slide.path) != identity.stamp:
        raise SlideChangedError(
            f"{slide.path} was changed while it was read; copy it completely, then --restart"
        )
    return Predicted(
        _collect(journal, grid, bundle.classes),
        tuple(journal.sessions),
        resumed,
        journal.dropped,
        journal.checksum,
        time.perf_counter() - start,
        tuple(engines.nodes),
    )


def _stamp(path: Path) -> list[int]:
    """Size in bytes and time of the last change. Raises SlideChangedError if it is gone."""
    try:
        return list(stamp_of_slide(path))
    except OSError as error:
        raise SlideChangedError(
            f"{path} was there and is not any more: {error.strerror}; is the drive connected?"
        ) from error


def name_of(grid: Grid, index: int) -> str:
    """The name of a tile in the journal: column and row."""
    column, row = grid.cells[index]
    return f"{column},{row}"


def _collect(journal: Journal, grid: Grid, classes: Sequence[str]) -> SlideTiles:
    """The rows of the journal as columns."""
    probabilities = np.full((len(grid), len(classes)), np.nan, np.float32)
    scores = np.full(len(grid), np.nan, np.float32)
    stages = np.zeros(len(grid), np.uint8)
    statuses, errors = [], []
    for index, record in enumerate(_checked(journal, grid)):
        if record.probabilities is not None:
            probabilities[index] = record.probabilities
        if record.ood is not None:
            scores[index] = record.ood
        stages[index] = record.stage or 0
        statuses.append(record.status)
        errors.append(record.error)
    corners = grid.corners0
    return SlideTiles(
        classes=tuple(classes),
        x=corners[:, 0],
        y=corners[:, 1],
        side=grid.side0,
        step=grid.step * grid.downsample,
        probabilities=probabilities,
        statuses=statuses,
        errors=errors,
        ood=scores if np.isfinite(scores).any() else None,
        stage=stages if stages.any() else None,
    )


def _checked(journal: Journal, grid: Grid) -> Iterator[Record]:
    """The records of the journal, one for each tile in the order of the grid."""
    count = 0
    for record in journal.records():
        if count >= len(grid) or record.path != name_of(grid, count):
            raise EdgelungError(
                f"{journal.path} holds rows that are not of this slide; --restart begins anew"
            )
        yield record
        count += 1
    if count != len(grid):
        raise EdgelungError(
            f"{journal.path} holds {count} of {len(grid)} tiles; --resume continues"
        )


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
