"""`edgelung view`."""

from pathlib import Path
from typing import Annotated

import typer

from edgelung.cli.command import report
from edgelung.cli.options import INPUT, OUTPUT, named_path


def view(
    rows: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="ROWS",
            help="Rows of a finished run of `edgelung infer`: .csv, .jsonl or .parquet.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="HTML",
            rich_help_panel=OUTPUT,
            help="Page to write.  [default: beside the rows]",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="Where the tiles are now.  [default: where they were predicted]",
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="JSON",
            rich_help_panel=INPUT,
            help="The run's summary.  [default: beside the rows]",
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="KEY",
            rich_help_panel=INPUT,
            help="Stop unless a trusted key signed the run (`edgelung sign ROWS`): a public key "
            "(PEM), or a folder of them.",
        ),
    ] = None,
) -> None:
    """Which predictions need a look?

    Writes one HTML file: a gallery of the tiles that can be filtered by label, confidence, status
    and truth. It needs no network and no server. Research use only.
    """
    from edgelung.artifacts.trust import Trust, choose_trust
    from edgelung.core.files import atomic_write
    from edgelung.core.terminal import progress
    from edgelung.report.finished_run import open_finished_run
    from edgelung.report.gallery import MAX_THUMBNAILS, predictions_page
    from edgelung.report.signed_run import check_run

    page = _checked(out or rows.with_suffix(".html"))
    run = open_finished_run(rows, summary, root)
    signature = check_run(run, choose_trust(trust) if trust else Trust())
    if trust:
        report("rows and summary are signed %s", signature.text)
    predicted = sum(row.confidence is not None for row in run.predictions.rows)
    with progress("thumbnails", min(predicted, MAX_THUMBNAILS)) as advance:
        text = predictions_page(run, page, advance, signed=signature.text)
    data = text.encode("utf-8", "backslashreplace")  # names may hold bytes that are no UTF-8
    with atomic_write(page) as file:
        file.write(data)
    report("wrote %s (%.1f MB); open it in a browser", page, len(data) / 1e6)


def _checked(page: Path) -> Path:
    """The page, if it may be written."""
    from edgelung.core.errors import EdgelungError
    from edgelung.report.gallery import is_page

    if page.suffix.lower() not in (".html", ".htm"):
        raise EdgelungError(f"--out {page}: expected a name that ends in .html")
    if not page.absolute().parent.is_dir():
        raise EdgelungError(f"cannot write {page}: {page.parent} is no folder")
    taken = page.is_symlink() or page.exists()
    if taken and (page.is_symlink() or not page.is_file() or not is_page(page)):
        raise EdgelungError(
            f"{page} exists and is no page that `edgelung view` wrote; it was left alone: "
            "choose another name with --out"
        )
    return page
