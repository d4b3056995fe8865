"""`edgelung audit`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def audit(
    data: Annotated[Path, typer.Argument(help="Folder of class folders with tiles.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must be new.")],
    groups: Annotated[
        Path | None, typer.Option(help="CSV of known groups to compare with (path, group).")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="A folder name that is a class, where tiles lie deeper; repeatable."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print audit.json on standard output.")
    ] = False,
) -> None:
    """Find near copies among labelled tiles, and what else is odd about them. Research use only."""
    from edgelung.core import terminal
    from edgelung.core.errors import EdgelungError, ExitCode

    try:
        from edgelung.train.audit import audit_folder
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"audit needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error
    found = audit_folder(data, out, groups, terminal.note, classes or ())
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(found, out)
    if found["unreadable"]:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _print(found: dict[str, object], folder: Path) -> None:
    from edgelung.core.terminal import out

    for key in ("tiles", "groups", "single_tiles", "largest_group", "identical_files"):
        out.print(f"{key.replace('_', ' '):22}{found[key]}")
    for key in ("groups_across_classes", "too_plain_to_compare", "unreadable"):
        name = "files left out" if key == "unreadable" else key.replace("_", " ")
        out.print(f"{name:22}{len(found[key])}")  # type: ignore[arg-type]
    known = found.get("known")
    if isinstance(known, dict):

        def percent(name: str) -> str:
            return "–" if known[name] is None else f"{100 * known[name]:.2f} %"

        out.print(
            f"against {known['groups']} known groups, pairs of tiles: recall {percent('recall')}, "
            f"precision {percent('precision_as_published')} ({percent('precision')} if the strong "
            f"ones of the {len(known['links'])} links between known groups are right)"
        )
    out.print(f"groups  {folder / 'groups.csv'}\nreport  {folder / 'report.html'}", markup=False)
