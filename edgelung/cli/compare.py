"""`edgelung compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgelung.evaluation.comparison import ComparedModel


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write; must not exist yet.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON on standard output.")
    ] = False,
) -> None:
    """Put finished runs side by side in the form of the paper's Table II. Research use only."""
    from edgelung.core.errors import EdgelungError
    from edgelung.core.files import atomic_write
    from edgelung.core.typed_json import plain
    from edgelung.evaluation.comparison import compare_runs

    if out and (out.exists() or out.suffix != ".html"):
        raise EdgelungError(f"--out {out}: expected the name of a new .html file")
    found = compare_runs(runs)
    if out:
        from edgelung.report.pages import compare_page

        with atomic_write(out, "w", encoding="utf-8") as file:
            file.write(compare_page(found))
    if as_json:
        print(json.dumps(plain(found), indent=2))
    else:
        _print(found.models)


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
    out.print(table)
    against = dict.fromkeys(model.difference.against for model in models if model.difference)
    for name in against:
        out.print(f"difference  in recall, in points, to {name}; paired over groups", markup=False)
    if warning := caution(min(model.fewest_groups for model in models)):
        out.print(warning)
    if any(model.split == "random" for model in models):
        out.print("random      near copies of test tiles were trained on: memory, not recognition")
