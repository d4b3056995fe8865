"""The results of a slide: a folder that is written whole when the slide ends, and the index."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.slide_summary import (
    NO_TISSUE,
    OK,
    SlideSummary,
    Tissue,
    read_slide_summary,
    write_run_table,
    write_slide_summary,
)
from edgelung.artifacts.slide_tiles import SlideTiles, write_tiles, write_wsinfer
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder, atomic_write
from edgelung.core.folder import is_temporary_folder
from edgelung.core.own_folders import SLIDE_PAGE, SLIDE_RECORD
from edgelung.inference.session import Engines
from edgelung.report.slide_index import INDEX_PAGE, index_page
from edgelung.report.slide_page import ZOOM_PAGE, slide_page
from edgelung.report.zoom_page import zoom_page
from edgelung.slides.base import Grid, Overview, Slide
from edgelung.slides.find import RUN_TABLE
from edgelung.slides.formats import TABLES, TableFormat
from edgelung.slides.geojson import TILES, TISSUE_FILE, write_tile_features, write_tissue_features
from edgelung.slides.heatmap import write_pictures
from edgelung.slides.mask import TissueMask
from edgelung.slides.ome_overlay import OVERLAY, write_overlay
from edgelung.slides.prediction import Predicted, SlideIdentity, now
from edgelung.slides.scale import Scale
from edgelung.slides.shares import class_shares
from edgelung.slides.zoom import write_zoom


@dataclass(frozen=True)
class Read:
    """How a slide was read.

    Attributes:
        slide: the open slide.
        scale: micrometres per pixel.
        tile_um: side of a tile in micrometres, as it was asked for.
        notes: what people should know about the scale.
        overview: picture of the slide.
        mask: its tissue.
        grid: the tiles that were read.
    """

    slide: Slide
    scale: Scale
    tile_um: float
    notes: Sequence[str]
    overview: Overview
    mask: TissueMask
    grid: Grid

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the slide, pixels of level 0."""
        whole = self.slide.levels[0]
        return whole.width, whole.height


def write_results(
    folder: Path,
    read: Read,
    predicted: Predicted,
    identity: SlideIdentity,
    bundle: Bundle,
    engines: Engines,
    table: TableFormat,
    *,
    started: str,
    zoom: bool,
) -> SlideSummary:
    """Write everything about a slide into a new folder; nothing is kept if that fails.

    Raises WriteError if it cannot be written.
    """
    summary = _summarize(read, predicted, identity, bundle, engines, started)
    tiles, mask = predicted.tiles, read.mask
    drawn = mask.pixels if mask.is_drawn else None
    name = read.slide.path.name + (f" {read.slide.scene}" if read.slide.scene else "")
    with atomic_folder(folder) as inside:
        if table == TableFormat.WSINFER:
            write_wsinfer(inside / TABLES[table], tiles)
        else:
            write_tiles(inside / TABLES[table], tiles)
        write_tile_features(inside / TILES, tiles, name)
        if drawn is not None:
            write_tissue_features(inside / TISSUE_FILE, drawn, mask.downsample, name, read.size)
        write_pictures(inside, tiles, read.overview, drawn)
        write_overlay(inside / OVERLAY, tiles, name, read.size, read.scale.mpp)
        write_slide_summary(inside / SLIDE_RECORD, summary)
        if zoom:
            pyramid = write_zoom(inside, read.slide)
            page = zoom_page(summary, read.overview, tiles, drawn, mask.downsample, pyramid)
            _write_page(inside / ZOOM_PAGE, page)
        files = sorted(path.name for path in inside.iterdir() if path.is_file())
        page = slide_page(summary, read.overview, tiles, drawn, mask.downsample, files=files)
        _write_page(inside / SLIDE_PAGE, page)
    return summary


def _summarize(
    read: Read,
    predicted: Predicted,
    identity: SlideIdentity,
    bundle: Bundle,
    engines: Engines,
    started: str,
) -> SlideSummary:
    tiles, grid, mask = predicted.tiles, read.grid, read.mask
    mpp = read.scale.mpp
    shares, blocks = class_shares(tiles, mask.shares(grid) if mask.is_drawn else None, mpp)
    width, height = read.size
    chosen = engines.chosen
    return SlideSummary(
        slide=read.slide.path.name,
        scene=read.slide.scene,
        status=OK if len(tiles) else NO_TISSUE,
        reason="" if len(tiles) else "no tile holds enough tissue",
        started=started,
        ended=now(),
        sessions=list(predicted.sessions),
        width=width,
        height=height,
        format=read.slide.kind,
        reader=read.slide.reader,
        mpp=mpp,
        mpp_source=read.scale.source,
        notes=[*read.notes, *_notes(read, predicted, bundle)],
        tile_px=grid.side0,
        tile_um=round(grid.side * grid.downsample * mpp, 3),
        level=grid.level,
        eighths=grid.eighths,
        overlap=round(grid.overlap, 4),
        tissue=Tissue(
            rule=mask.rule,
            threshold=mask.threshold,
            downsample=mask.downsample,
            share=round(float(mask.pixels.mean()), 6),
            area_mm2=round(mask.area_mm2(mpp), 4),
        )
        if mask.is_drawn
        else None,
        tiles=len(tiles),
        statuses=dict(Counter(map(str, tiles.statuses))),
        stages=dict(sorted(Counter(map(str, tiles.stages[tiles.stages > 0].tolist())).items())),
        knows_unknown=chosen.variant.entry.known is not None,
        labels=_labels(tiles),
        shares=shares,
        blocks=blocks,
        bundle=bundle.manifest.name,
        bundle_sha256=bundle.sha256,
        signature=bundle.signature.text if bundle.signature else "",
        engine=chosen.engine.name,
        precision=chosen.variant.precision,
        device=chosen.engine.device,
        nodes=list(predicted.nodes),
        seconds=round(predicted.seconds, 3),
        tiles_per_second=predicted.tiles_per_second,
        options=identity.to_json(),
        journal_checksum=predicted.checksum,
        journal_dropped=predicted.dropped,
    )


def _notes(read: Read, predicted: Predicted, bundle: Bundle) -> list[str]:
    grid, mpp, notes = read.grid, read.scale.mpp, []
    side, wanted = grid.side * grid.downsample * mpp, read.tile_um
    if abs(side / wanted - 1) > 0.005:
        notes.append(f"tiles are {side:.1f} µm wide instead of {wanted:g}: whole pixels of a level")
    if grid.side < bundle.reader.size:
        notes.append(
            f"a tile has {grid.side} pixels at the full resolution and the model takes "
            f"{bundle.reader.size}: tiles are enlarged"
        )
    if predicted.dropped:
        notes.append(f"{predicted.dropped} damaged line(s) of the journal were predicted again")
    if bundle.is_starter:
        notes.append("the starter is for trying edgelung; its training tiles have no known scale")
    return notes


def _labels(tiles: SlideTiles) -> dict[str, int]:
    counts = Counter(tiles.labels.tolist())
    return {name: counts[index] for index, name in enumerate(tiles.classes)}


def is_finished(
    folder: Path, identity: SlideIdentity, table: TableFormat, *, zoom: bool
) -> SlideSummary | None:
    """The summary, if a folder holds the results of this very run; None if there is no folder.

    Raises EdgelungError if it holds something else, or lacks a file that is asked for now.
    """
    if not folder.exists():
        return None
    try:
        summary = read_slide_summary(folder / SLIDE_RECORD)
    except EdgelungError as error:
        raise EdgelungError(
            f"{folder} exists and holds no results of a slide; choose another --out"
        ) from error
    difference = identity.difference(summary.options)
    for name in (TABLES[table], *([ZOOM_PAGE] if zoom else [])):
        if not difference and not (folder / name).exists():
            difference = f"{name} was not asked for"
    if difference:
        raise EdgelungError(
            f"{folder} is finished, but with other options: {difference}; repeat the first "
            "command, choose another --out, or remove the folder"
        )
    return summary


def write_index(out: Path, summaries: Sequence[SlideSummary]) -> None:
    """Write the page and the table over all slides in `out`: those of earlier runs too.

    `summaries`: of this run; those of slides that failed are in no folder.
    """
    links, slides = {}, []
    for folder in sorted(path.parent for path in out.glob(f"*/{SLIDE_RECORD}")):
        if is_temporary_folder(folder.name):
            continue  # another run is writing it, or was killed meanwhile
        try:
            slides.append(read_slide_summary(folder / SLIDE_RECORD))
        except EdgelungError:
            continue
        links[len(slides) - 1] = f"{folder.name}/{SLIDE_PAGE}"
    known = {(one.slide, one.scene) for one in slides}
    slides += [one for one in summaries if one.failed_whole and (one.slide, one.scene) not in known]
    _write_page(out / INDEX_PAGE, index_page(slides, links, out.absolute().name))
    folders = {number: Path(link).parent.name for number, link in links.items()}
    write_run_table(out / RUN_TABLE, slides, folders)


def _write_page(path: Path, page: str) -> None:
    with atomic_write(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
