"""`edgelung compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.options import OUTPUT

if TYPE_CHECKING:
    from edgelung.evaluation.comparison import ComparedModel, Difference


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


def _difference_cell(difference: "Difference | None") -> str:
    """The difference in points, and its interval, or why there is none."""
    if difference is None:
        return ""
    change = f"{100 * difference.balanced_accuracy:+.2f}"
    if difference.interval is None:
        return f"{change}\nno interval: {difference.no_interval}"
    low, high = difference.interval
    return f"{change}\n{100 * low:+.2f} … {100 * high:+.2f}"


def _print(models: list["ComparedModel"]) -> None:
    from rich.table import Column, Table

    from edgelung.core.errors import visible
    from edgelung.core.terminal import out
    from edgelung.evaluation.comparison import NO_INTERVAL
    from edgelung.evaluation.intervals import caution, table_cells

    differences = [model.difference for model in models if model.difference]
    for number, model in enumerate(models, 1):
        name = f"{model.run}: {model.role} {model.model}, split by {model.split}"
        out().print(f"{number:2}  {visible(name)}")
    table = Table(
        Column("model", no_wrap=True),
        *(["difference"] if differences else []),  # what the command is asked for
        *("accuracy", "recall", "F1", "precision"),
        title="test set, %; below a figure its 95 % interval over groups",
    )
    for number, model in enumerate(models, 1):
        accuracy, precision, recall, f1 = table_cells(model.test, model.test.intervals)
        cells = [_difference_cell(model.difference)] if differences else []
        table.add_row(f"{number} {model.role}", *cells, accuracy, recall, f1, precision)
    out().print(table)
    for name in dict.fromkeys(difference.against for difference in differences):
        out().print(
            f"difference  in recall, in points, to {name}; paired over groups", markup=False
        )
    if differences:
        out().print("An interval that contains 0 shows no difference.")
    if any(difference.interval is None for difference in differences):
        out().print(NO_INTERVAL)
    if warning := caution(min(model.fewest_groups for model in models)):
        out().print(warning)
    if any(model.split == "random" for model in models):
        out().print(
            "random      near copies of test tiles were trained on: memory, not recognition"
        )
