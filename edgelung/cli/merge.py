"""`edgelung merge`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.command import report
from edgelung.cli.options import OUTPUT, named_path


def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(
            parser=named_path,
            metavar="ROWS",
            help="Rows of every part of a run (`edgelung infer --shard K/N`), all of one format, "
            "with their summaries beside them.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="File for the rows of the whole run; its summary is written beside it.",
        ),
    ],
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the summary as JSON on standard output."
        ),
    ] = False,
) -> None:
    """What do the parts of a run give as a whole?

    Puts the rows of `edgelung infer --shard` together, sorted by path. Checks that the parts are
    of one run (bundle, options, files), that none is missing or was changed, and that each file has
    one row. Research use only.
    """
    from edgelung.cli.infer import print_summary
    from edgelung.core.typed_json import plain
    from edgelung.inference.destination import Destination
    from edgelung.inference.merge import merge_parts

    summary = merge_parts(parts, Destination.parse(out))
    if as_json:
        print(json.dumps(plain(summary), indent=2), flush=True)
    else:
        print_summary(summary)
    report("to see the tiles: %s", shlex.join(["edgelung", "view", summary.out]))
    report(RESEARCH_USE_ONLY)
    raise typer.Exit(summary.exit_code)
