"""`edgelung compare`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


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
    from edgelung.errors import EdgelungError
    from edgelung.evidence.comparison import compare_runs
    from edgelung.files import atomic_write

    if out and (out.exists() or out.suffix != ".html"):
        raise EdgelungError(f"--out {out}: expected the name of a new .html file")
    found = compare_runs(runs)
    if out:
        from edgelung.report.pages import compare_page

        with atomic_write(out, "w", encoding="utf-8") as file:
            file.write(compare_page(found))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found["models"])


def _print(models: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from edgelung.terminal import out

    columns = ("accuracy", "macro_precision", "macro_recall", "macro_f1")
    table = Table(
        "model", "split", "accuracy", "precision", "recall", "F1", "recall's 95 %", "difference",
        title="test set, %",
    )  # fmt: skip
    for model in models:
        low, high = model["intervals"]["balanced_accuracy"]
        difference = ""
        if model["against"]:
            least, most = model["difference_interval"]
            change = 100 * model["difference"]
            difference = f"{change:+.2f} ({100 * least:+.2f} … {100 * most:+.2f})"
        table.add_row(
            f"{model['run']}: {model['role']} {model['model']}",
            model["split"],
            *(f"{100 * model[column]:.2f}" for column in columns),
            f"{100 * low:.2f} – {100 * high:.2f}",
            difference,
        )
    out.print(table)
    against = dict.fromkeys(model["against"] for model in models if model["against"])
    for name in against:
        out.print(f"difference  in recall, in points, to {name}; paired over groups", markup=False)
    if any(model["split"] == "random" for model in models):
        out.print("random      near copies of test tiles were trained on: memory, not recognition")
