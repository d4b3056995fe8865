"""`edgelung evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.command import report
from edgelung.cli.model import AllowUnsignedOption, TrustOption, if_passed, warn_of_gate
from edgelung.cli.options import (
    CHECKS,
    INPUT,
    OUTPUT,
    BatchSizeOption,
    EngineOption,
    FollowLinksOption,
    PrecisionOption,
    ThreadsOption,
    chosen,
    named_path,
)

if TYPE_CHECKING:
    from edgelung.inference.evaluate import Evaluated

STARTER = Path("starter")  # names the bundle that comes with edgelung


def evaluate(
    bundle: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="BUNDLE",
            help="Bundle that `edgelung export` wrote, or `starter` for the one that comes with "
            "edgelung.",
        ),
    ],
    tiles: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="TILES",
            help="Folder of labelled tiles: a folder per class, or any folder with --groups whose "
            "list has a column `class`.",
        ),
    ],
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            rich_help_panel=INPUT,
            help="Source of each tile: columns `path` and `group` (or `cluster`), and any others "
            "for --by. Its rows are the tiles.  [default: every tile is its own group]",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            rich_help_panel=INPUT,
            help="Figures for each value of this column of --groups, such as site; repeatable.",
        ),
    ] = None,
    follow_links: FollowLinksOption = False,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            rich_help_panel=CHECKS,
            help="Exit with code 4 unless the lower bound of the 95 % interval reaches VALUE, such "
            "as balanced_accuracy=0.95; accuracy, balanced_accuracy, roc_auc or recall:CLASS; "
            "repeatable.",
        ),
    ] = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    trust: TrustOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="HTML",
            rich_help_panel=OUTPUT,
            help="New page to write as well.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the figures as JSON on standard output."
        ),
    ] = False,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """How good is a bundle on my labelled tiles?

    Prints figures with intervals over groups, for all tiles and by site or scanner, beside those of
    the bundle's own test. Research use only.
    """
    from edgelung.artifacts.bundle import open_bundle, starter_bundle
    from edgelung.artifacts.trust import choose_trust
    from edgelung.cli.defaults import read_defaults
    from edgelung.cli.evaluation_table import print_evaluation
    from edgelung.core.terminal import progress
    from edgelung.core.typed_json import plain
    from edgelung.evaluation.requirements import parse_requirement
    from edgelung.inference.evaluate import Site, evaluate_site
    from edgelung.inference.session import Options

    try:
        required = [parse_requirement(text) for text in require or ()]
    except ValueError as error:
        raise typer.BadParameter(f"--require: {error}") from error
    if out:
        _check_page(out)
    folder = starter_bundle() if bundle == STARTER and not bundle.exists() else bundle
    defaults = read_defaults(folder)
    opened = open_bundle(folder, choose_trust(trust, allow_unsigned))
    options = Options(
        engine=chosen(engine, defaults.engine),
        precision=chosen(precision, if_passed(opened, defaults.precision)),
        batch_size=batch_size or defaults.batch_size,
        threads=threads or defaults.threads,
    )
    warn_of_gate(opened, options.precision)
    site = Site(tiles, groups, tuple(by or ()), follow_links)
    with progress("evaluate") as advance:
        evaluated = evaluate_site(site, opened, options, required, advance)
    if out:
        _write_page(out, evaluated)
    if as_json:
        print(json.dumps(plain(evaluated.result), indent=2))
    else:
        print_evaluation(evaluated.result)
    report(RESEARCH_USE_ONLY)
    raise typer.Exit(evaluated.result.exit_code)


def _check_page(page: Path) -> None:
    """Raise EdgelungError, before the work, if the page cannot be written or is there."""
    from edgelung.core.errors import EdgelungError
    from edgelung.core.files import check_output_file

    if page.exists() or page.is_symlink() or page.suffix != ".html":
        raise EdgelungError(f"--out {page}: expected the name of a new .html file")
    check_output_file(page)


def _write_page(page: Path, evaluated: "Evaluated") -> None:
    from edgelung.core.files import atomic_write
    from edgelung.report.evaluation_page import evaluation_page

    data = evaluation_page(evaluated).encode("utf-8", "backslashreplace")
    with atomic_write(page) as file:
        file.write(data)
    report("wrote %s", page)
