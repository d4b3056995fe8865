"""`edgelung demo`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.options import INPUT, MODEL, OUTPUT, training_extra

if TYPE_CHECKING:
    from edgelung.tools.demo import DemoOptions


def demo(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Folder to write; if it exists, a number is added to its name.",
        ),
    ] = Path("demo"),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="Labelled tiles, in class folders.  [default: synthetic ones, drawn by edgelung]",
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            rich_help_panel=INPUT,
            help="With --data: a CSV with the columns path and group (or cluster).",
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="A further folder to predict at the end; repeatable.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=MODEL,
            help="Recipe of `edgelung train`.  [default: demo; with --data quick]",
        ),
    ] = "",
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=OUTPUT,
            help="Print the figures as JSON on standard output; they are in results.json too.",
        ),
    ] = False,
) -> None:
    """Does the whole chain work here, from tiles to predictions?

    Trains, exports with INT8, predicts the test tiles in both CPU engines and compares. Every step
    is an `edgelung` command, which is printed. Takes about five minutes on two cores. Needs
    `pip install 'edgelung[train]'`. Research use only.
    """
    from edgelung.core.errors import EdgelungError
    from edgelung.core.typed_json import plain
    from edgelung.tools.demo import DemoOptions, run_demo

    if groups and data is None:
        raise EdgelungError("--groups needs --data, the tiles that the groups are of")
    with training_extra("demo"):
        import timm  # noqa: F401 (asked for now, not when minutes of work are done)

        from edgelung.train.synthetic import write_dataset  # noqa: F401
    folder = _new_folder(out)
    if data is None:
        options = _synthetic(folder, recipe or "demo", also or [], quiet=as_json)
    else:
        options = DemoOptions(data, groups, recipe or "quick", also=also or [])
    figures = run_demo(options, folder, quiet=as_json)
    if as_json:
        print(json.dumps(plain(figures), indent=2))


def _synthetic(folder: Path, recipe: str, also: list[Path], *, quiet: bool) -> "DemoOptions":
    """Draw the tiles that the demo runs on without --data."""
    from edgelung.core.files import writing
    from edgelung.core.own_folders import GROUPS
    from edgelung.core.terminal import err, out
    from edgelung.tools.demo import CALIBRATION_TILES, DemoOptions
    from edgelung.train.synthetic import write_dataset

    with writing(folder / "tiles"):
        data = write_dataset(folder / "tiles", sources=64, tiles_per_source=10)
    console = err() if quiet else out()
    console.print(f"Drew synthetic tiles in {data}: drawn by a program, not tissue.")
    return DemoOptions(data, data / GROUPS, recipe, CALIBRATION_TILES, also)


def _new_folder(folder: Path) -> Path:
    """Create `folder`, with a number behind its name if it exists.

    Raises EdgelungError if it cannot be created.
    """
    from edgelung.core.files import new_folder, writing

    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    new_folder(candidate, "demo")
    with writing(candidate):
        candidate.mkdir(parents=True)
    return candidate
