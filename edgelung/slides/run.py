"""`edgelung slide`: slides and a bundle in; a folder of results for each slide out.

    open ─► scale ─► mask ─► grid ─► prediction ─► results

A slide that cannot be opened or predicted is a row with its reason, and the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.slide_summary import FAILED, SlideSummary
from edgelung.core.errors import EdgelungError, ExitCode, one_line
from edgelung.core.files import JOURNAL_SUFFIX, check_output_file, new_folder, writing
from edgelung.core.progress import SILENT, Advance
from edgelung.inference.session import DEFAULTS, Engines, OpenEngines, Options, open_engines
from edgelung.inference.shards import Shard
from edgelung.slides.base import Grid, Overview, Slide
from edgelung.slides.find import OVERVIEWS, find_slides, result_names
from edgelung.slides.formats import TableFormat
from edgelung.slides.mask import MIN_SHARE, MPP, TissueMask, find_tissue, whole_slide
from edgelung.slides.open import open_slides
from edgelung.slides.outline import read_outline
from edgelung.slides.plan import plan_grid
from edgelung.slides.prediction import (
    SlideChangedError,
    check_not_stopped,
    identify,
    now,
    open_journal,
    predict_slide,
)
from edgelung.slides.results import Read, is_finished, write_index, write_results
from edgelung.slides.scale import Scale, check_mpp, settle_scale, settle_tile

LEAST_OVERVIEW, MOST_OVERVIEW = 1_000_000, 16_000_000  # pixels
NEW, KEEPS = "results of a slide", "--resume keeps it and continues"  # for errors
OnStopped = Callable[[int, Path], None]  # tiles that are kept, and the journal that keeps them


class MaskRule(StrEnum):
    """Which tiles are predicted, where no file says it."""

    AUTO = "auto"
    NONE = "none"


@dataclass(frozen=True)
class SlideOptions:
    """How slides are read and what is written.

    Attributes:
        out: folder of the results.
        mpp: micrometres per pixel of level 0; None: what the file says.
        tile_um: side of a tile; None: what the bundle says.
        overlap: share of a tile's side that its neighbour also covers, 0…0.9.
        mask: how the tissue is found, or a GeoJSON file with outlines.
        table: format of the tiles.
        zoom: also write a Deep Zoom pyramid.
        min_confidence: less confident tiles get no label; None: none does.
        resume: True continues a stopped run, False begins it anew, None refuses to do either. With
            True and False, slides that are finished are kept.
        engines: engine, precision, batch size, threads.
        shard: predict only this part of the slides and write no index; a run with `resume` over all
            slides writes it once the parts have ended.
    """

    out: Path
    mpp: float | None = None
    tile_um: float | None = None
    overlap: float = 0.0
    mask: MaskRule | Path = MaskRule.AUTO
    table: TableFormat = TableFormat.PARQUET
    zoom: bool = False
    min_confidence: float | None = None
    resume: bool | None = None
    engines: Options = DEFAULTS
    shard: Shard | None = None


def parse_mask(text: str) -> MaskRule | Path:
    """'auto', 'none', or the name of a GeoJSON file. Raises EdgelungError."""
    if text in tuple(MaskRule):
        return MaskRule(text)
    path = Path(text)
    if path.suffix.lower() not in (".geojson", ".json") or not path.is_file():
        raise EdgelungError(f"--mask {text}: expected auto, none, or a GeoJSON file that exists")
    return path


def run_slides(
    paths: Sequence[Path],
    bundle: Bundle,
    options: SlideOptions,
    advance: Advance = SILENT,
    on_stopped: OnStopped = lambda count, journal: None,
    engines: OpenEngines | None = None,
) -> list[SlideSummary]:
    """Predict slides one after the other and write their results.

    Args:
        paths: slides, or folders with slides in them.
        bundle: the opened bundle.
        options: how.
        advance: moves a progress bar, counted in tiles.
        on_stopped: called if the run ends early, with the number of tiles in the journal.
        engines: opens the engines; None: on this machine.

    Returns:
        The summary of every slide, those that failed included.

    Raises:
        EdgelungError: the tile size is unknown, outlines are given for several slides, no engine
            works, results of another run are in the way, or an output cannot be written.
    """
    settle_tile(bundle.tile_um, options.tile_um)
    check_mpp(options.mpp)
    names = result_names(find_slides(paths))
    if isinstance(options.mask, Path) and len(names) > 1:
        raise EdgelungError(
            f"--mask {options.mask} has the outlines of one slide, and {len(names)} slides were "
            "named; run them one by one"
        )
    own = {
        path: name
        for number, (path, name) in enumerate(names.items())
        if options.shard is None or options.shard.owns(number)
    }
    if options.resume is None:
        for name in own.values():
            new_folder(options.out / name, NEW, KEEPS)
            check_not_stopped(options.out / (name + JOURNAL_SUFFIX))
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    for name in OVERVIEWS:  # known before hours of work
        check_output_file(options.out / name)
    summaries: list[SlideSummary] = []
    try:
        with (engines or open_engines)(bundle, options.engines, None) as opened:
            run = _Run(bundle, options, opened, advance, on_stopped, frozenset(names.values()))
            for path, name in own.items():
                summaries.extend(run.slides_of(path, name))
    finally:  # a run that is stopped has finished slides too
        if summaries and options.shard is None:
            write_index(options.out, summaries)
    return summaries


def exit_code(summaries: Sequence[SlideSummary]) -> ExitCode:
    """The exit code of a run over slides."""
    failed = any(summary.failed for summary in summaries)
    return ExitCode.SOME_FAILED if failed else ExitCode.OK


@dataclass
class _Run:
    """What all slides of a run share. `names`: of their results. `total`: tiles so far."""

    bundle: Bundle
    options: SlideOptions
    engines: Engines
    advance: Advance
    on_stopped: OnStopped
    names: frozenset[str]
    total: int = 0

    def slides_of(self, path: Path, name: str) -> Iterator[SlideSummary]:
        """Predict the slides of a file and write their results into folders of this name."""
        started = now()
        try:
            slides = open_slides(path)
        except EdgelungError as error:
            yield _failed(path, "", error, started)
            return
        with ExitStack() as stack:
            for slide in slides:
                stack.callback(slide.close)
            for number, slide in enumerate(slides, 1):
                folder = name if len(slides) == 1 else f"{name}-{number}"
                try:
                    self._check_scene(folder, name)
                    yield self._predict(slide, self.options.out / folder)
                except _SlideError as error:
                    yield _failed(path, slide.scene, error, started)

    def _check_scene(self, folder: str, name: str) -> None:
        """Check the name that a scene's results get, which was not known when the run began."""
        if folder == name:
            return
        with _only_this_slide():
            if folder in self.names:
                raise EdgelungError(
                    f"its results {folder} are those of another slide; give it its own --out"
                )
            if self.options.resume is None:
                new_folder(self.options.out / folder, NEW, KEEPS)

    def _predict(self, slide: Slide, folder: Path) -> SlideSummary:
        """Predict a slide and write its results. Raises _SlideError if only this slide fails."""
        started = now()
        with _only_this_slide():
            scale, tile_um, notes = self._scale(slide)
            overview = slide.overview(overview_pixels(slide, scale.mpp))
            mask = self._mask(slide, overview, scale.mpp)
            grid = self._grid(slide, scale.mpp, tile_um, mask)
            identity = identify(
                slide,
                grid,
                mask,
                scale.mpp,
                tile_um,
                self.bundle,
                self.engines,
                self.options.min_confidence,
                keep_unknown=self.options.engines.keep_unknown,
            )
        self.total += len(grid)
        self.advance.set_total(self.total)
        options = self.options
        summary = is_finished(folder, identity, options.table, zoom=options.zoom)
        if summary is not None:
            self.advance(len(grid), slide.path.name)
            return summary
        journal_path = folder.with_name(folder.name + JOURNAL_SUFFIX)
        with open_journal(
            journal_path,
            identity,
            len(self.bundle.classes),
            resume=options.resume,
            on_stopped=self.on_stopped,
        ) as journal:
            with _only_this_slide(SlideChangedError):
                predicted = predict_slide(
                    slide,
                    grid,
                    self.bundle,
                    self.engines,
                    journal,
                    identity,
                    on_tiles=lambda count: self.advance(count, slide.path.name),
                )
            read = Read(slide, scale, tile_um, notes, overview, mask, grid)
            return write_results(
                folder,
                read,
                predicted,
                identity,
                self.bundle,
                self.engines,
                options.table,
                started=started,
                zoom=options.zoom,
            )

    def _scale(self, slide: Slide) -> tuple[Scale, float, list[str]]:
        """The slide's scale, the side of a tile in micrometres, and notes about both."""
        scale = settle_scale(slide.scale, self.options.mpp)
        tile_um, notes = settle_tile(self.bundle.tile_um, self.options.tile_um)
        return scale, tile_um, [*scale.notes, *notes]

    def _mask(self, slide: Slide, overview: Overview, mpp: float) -> TissueMask:
        whole = slide.levels[0]
        mask = self.options.mask
        if isinstance(mask, Path):
            return read_outline(mask, whole.width, whole.height)
        if mask == MaskRule.NONE:
            return whole_slide(whole.width, whole.height)
        return find_tissue(overview, mpp)

    def _grid(self, slide: Slide, mpp: float, tile_um: float, mask: TissueMask) -> Grid:
        """The tiles that hold enough tissue."""
        size = self.bundle.reader.size
        grid = plan_grid(slide, mpp, tile_um, size, self.options.overlap)
        return replace(grid, cells=grid.cells[mask.shares(grid) >= MIN_SHARE])


class _SlideError(EdgelungError):
    """A slide that cannot be predicted; the run goes on with the next one."""


@contextmanager
def _only_this_slide(*kinds: type[EdgelungError]) -> Iterator[None]:
    try:
        yield
    except EdgelungError as error:
        if kinds and not isinstance(error, kinds):
            raise
        raise _SlideError(str(error)) from error


def overview_pixels(slide: Slide, mpp: float) -> int:
    """How many pixels the picture of the slide needs to have MPP micrometres each."""
    whole = slide.levels[0]
    wanted = whole.width * whole.height * (mpp / MPP) ** 2
    return int(min(max(wanted, LEAST_OVERVIEW), MOST_OVERVIEW))


def _failed(path: Path, scene: str, error: EdgelungError, started: str) -> SlideSummary:
    return SlideSummary(
        slide=path.name,
        scene=scene,
        status=FAILED,
        reason=one_line(error, 400),
        started=started,
        ended=now(),
    )
