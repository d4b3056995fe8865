"""`edgelung slide`."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.cluster import check_ray, on_cluster
from edgelung.cli.command import report
from edgelung.cli.model import (
    AllowUnsignedOption,
    ModelOption,
    TrustOption,
    UnknownOption,
    UnknownTiles,
    if_passed,
    open_model,
    warn_of_gate,
)
from edgelung.cli.options import (
    INPUT,
    OUTPUT,
    BatchSizeOption,
    DeviceOption,
    EngineOption,
    MinConfidenceOption,
    PrecisionOption,
    RayOption,
    ThreadsOption,
    chosen,
    named_path,
)
from edgelung.slides.formats import TableFormat

if TYPE_CHECKING:
    from edgelung.artifacts.slide_summary import SlideSummary

SCALE = "Scale"


def slide(
    slides: Annotated[
        list[Path],
        typer.Argument(
            parser=named_path,
            metavar="SLIDE",
            help="Slides: SVS, tiled TIFF, OME-TIFF, NDPI, MRXS, SCN, a DICOM folder, …; or a "
            "folder with slides in it.",
        ),
    ],
    model: ModelOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    trust: TrustOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    mpp: Annotated[
        float | None,
        typer.Option(
            metavar="M",
            rich_help_panel=SCALE,
            help="Micrometres per pixel of the full resolution, if the file says none or a wrong "
            "one.",
        ),
    ] = None,
    tile_um: Annotated[
        float | None,
        typer.Option(
            metavar="U",
            rich_help_panel=SCALE,
            help="Side of a tile in micrometres.  [default: what the bundle says that the model "
            "was trained on]",
        ),
    ] = None,
    overlap: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            metavar="F",
            rich_help_panel=INPUT,
            help="Share of a tile's side that its neighbour also covers.",
        ),
    ] = 0.0,
    mask: Annotated[
        str,
        typer.Option(
            metavar="MASK",
            rich_help_panel=INPUT,
            help="Which tiles: auto finds the tissue, none takes all, FILE.geojson has outlines "
            "that you drew.",
        ),
    ] = "auto",
    out: Annotated[
        Path,
        typer.Option(
            parser=named_path,
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Folder of the results; each slide gets a folder in it.",
        ),
    ] = Path("slide-results"),
    table: Annotated[
        TableFormat,
        typer.Option(
            "--format",
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Table of the tiles: parquet, csv, or wsinfer (CSV with the columns of WSInfer).",
        ),
    ] = TableFormat.PARQUET,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            rich_help_panel=INPUT,
            help="Predict only part K of N of the slides, such as 3/8; other processes or machines "
            "predict the others. Parts write no index: run the command once more with --resume and "
            "without --shard.",
        ),
    ] = None,
    zoom: Annotated[
        bool,
        typer.Option(
            "--zoom",
            rich_help_panel=OUTPUT,
            help="Also write a page that zooms to the full resolution (Deep Zoom; many files).",
        ),
    ] = False,
    min_confidence: MinConfidenceOption = None,
    unknown: UnknownOption = UnknownTiles.MARK,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--restart",
            rich_help_panel=OUTPUT,
            help="Continue a run that was stopped, or begin it anew.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Print the summaries as JSON."),
    ] = False,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    ray: RayOption = None,
) -> None:
    """What does each part of a slide show?

    Finds the tissue, predicts its tiles, and writes a table, a heat map, a page and a file for
    QuPath. Research use only.
    """
    from edgelung.artifacts.trust import choose_trust
    from edgelung.cli.defaults import read_defaults
    from edgelung.core.terminal import progress
    from edgelung.core.typed_json import plain
    from edgelung.inference.session import Options
    from edgelung.inference.shards import Shard
    from edgelung.report.slide_index import INDEX_PAGE
    from edgelung.slides.run import SlideOptions, exit_code, parse_mask, run_slides

    check_ray(ray, {"--shard": shard, "--device": device})
    defaults = read_defaults(model)
    model = model or (Path(defaults.model) if defaults.model else None)
    bundle = open_model(model, choose_trust(trust, allow_unsigned))
    options = SlideOptions(
        out=out,
        mpp=mpp,
        tile_um=tile_um,
        overlap=overlap,
        mask=parse_mask(mask),
        table=table,
        zoom=zoom,
        shard=None if shard is None else Shard.parse(shard),
        min_confidence=defaults.min_confidence if min_confidence is None else min_confidence,
        resume=resume,
        engines=Options(
            engine=chosen(engine, defaults.engine),
            precision=chosen(precision, if_passed(bundle, defaults.precision)),
            batch_size=batch_size or defaults.batch_size,
            threads=threads or defaults.threads,
            keep_unknown=unknown is UnknownTiles.KEEP,
            gpu=device,
        ),
    )
    warn_of_gate(bundle, options.engines.precision)
    with (
        on_cluster(ray, allow_unsigned=allow_unsigned) as engines,
        progress("slide") as advance,
    ):
        summaries = run_slides(slides, bundle, options, advance, _print_resume_command, engines)
    if as_json:
        print(json.dumps([plain(summary) for summary in summaries], indent=2), flush=True)
    else:
        _print_table(summaries)
    if options.shard:
        report("once all parts have ended, --resume without --shard writes %s", out / INDEX_PAGE)
    else:
        report("open %s in a browser", out / INDEX_PAGE)
    report(RESEARCH_USE_ONLY)
    raise typer.Exit(exit_code(summaries))


def _print_resume_command(tiles: int, journal: Path) -> None:
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--restart")]
    command = shlex.join(["edgelung", *words, "--resume"])
    report("stopped: %d tiles are kept in %s. To continue:\n%s", tiles, journal.name, command)


def _print_table(summaries: "list[SlideSummary]") -> None:
    from rich.table import Column, Table

    from edgelung.core.errors import visible
    from edgelung.core.terminal import out
    from edgelung.tiles.status import Status

    table = Table(
        Column("slide", overflow="fold"),
        "status",
        Column("tiles", justify="right"),
        Column("failed", justify="right"),
        Column("tissue mm²", justify="right"),
        Column("most frequent", overflow="fold"),
    )
    for one in summaries:
        area, top = one.tissue and one.tissue.area_mm2, one.most_frequent
        table.add_row(
            visible(one.name),
            one.status,
            f"{one.tiles:,}",
            f"{one.failed_tiles:,}",
            "" if area is None else f"{area:.1f}",
            visible(f"{top.name} {100 * (top.share or 0):.1f} %") if top else "",
        )
    out().print(table)
    for one in summaries:
        unknown = one.statuses.get(Status.UNKNOWN, 0)
        told = f"{unknown:,} of {one.tiles:,} tiles are unlike the training tiles: no label"
        for note in (one.reason, *one.notes, told if unknown else ""):
            if note:
                out().print(visible(note if one.slide in note else f"{one.name}: {note}"))
