"""`edgelung compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.options import OUTPUT

if TYPE_CHECKING:
    from edgelung.evaluation.comparison import ComparedModel


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders that `edgelung train` wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="HTML", rich_help_panel=OUTPUT, help="New page to write as well."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the figures as JSON on standard output."
        ),
    ] = False,
) -> None:
    """Which of these runs is better, and is the difference real?

    Prints a table in the form of the paper's Table II, with intervals over groups and paired
    differences where runs were tested on the same tiles. Research use only.
    """
    from edgelung.core.errors import EdgelungError
    from edgelung.core.files import atomic_write, check_output_file
    from edgelung.core.typed_json import plain
    from edgelung.evaluation.comparison import compare_runs

    if out and (out.exists() or out.suffix != ".html"):
        raise EdgelungError(f"--out {out}: expected the name of a new .html file")
    if out:
        check_output_file(out)
    comparison = compare_runs(runs)
    if out:
        from edgelung.report.pages import compare_page

        with atomic_write(out, "w", encoding="utf-8") as file:
            file.write(compare_page(comparison))
    if as_json:
        print(json.dumps(plain(comparison), indent=2))
    else:
        _print(comparison.models)


def _print(models: list["ComparedModel"]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    from edgelung.core.terminal import out
    from edgelung.evaluation.intervals import caution, table_cells

    table = Table(
        Column("model", overflow="fold"),  # names differ at their ends
        *("split", "accuracy", "precision", "recall", "F1", "difference"),
        title="test set, %; below a figure its 95 % interval over groups",
    )
    for model in models:
        difference = ""
        if model.difference:
            low, high = model.difference.interval
            change = 100 * model.difference.balanced_accuracy
            difference = f"{change:+.2f}\n{100 * low:+.2f} … {100 * high:+.2f}"
        name = escape(f"{model.run}: {model.role}\n{model.model}")
        cells = table_cells(model.test, model.test.intervals)
        table.add_row(name, model.split, *cells, difference)
    out().print(table)
    against = dict.fromkeys(model.difference.against for model in models if model.difference)
    for name in against:
        out().print(
            f"difference  in recall, in points, to {name}; paired over groups", markup=False
        )
    if warning := caution(min(model.fewest_groups for model in models)):
        out().print(warning)
    if any(model.split == "random" for model in models):
        out().print(
            "random      near copies of test tiles were trained on: memory, not recognition"
        )
