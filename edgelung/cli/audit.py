"""`edgelung audit`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgelung.train.audit_report import Audit


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
    from edgelung.core.errors import EdgelungError, ExitCode
    from edgelung.core.typed_json import plain

    try:
        from edgelung.train.audit import audit_folder
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"audit needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error
    result = audit_folder(data, out, groups, classes or ())
    if as_json:
        print(json.dumps(plain(result), indent=2))
    else:
        _print(result, out)
    if result.unreadable:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _print(audit: "Audit", folder: Path) -> None:
    from edgelung.core.terminal import out
    from edgelung.train.audit_report import GROUPS, REPORT

    counts = {
        "tiles": audit.tiles,
        "groups": audit.groups,
        "single tiles": audit.single_tiles,
        "largest group": audit.largest_group,
        "identical files": audit.identical_files,
        "groups across classes": len(audit.groups_across_classes),
        "too plain to compare": len(audit.too_plain_to_compare),
        "files left out": len(audit.unreadable),
    }
    for name, count in counts.items():
        out.print(f"{name:22}{count}")
    if known := audit.known:
        out.print(
            f"against {known.groups} known groups, pairs of tiles: recall {_percent(known.recall)}, "
            f"precision {_percent(known.precision_as_published)} ({_percent(known.precision)} if "
            f"the strong ones of the {len(known.links)} links between known groups are right)"
        )
    out.print(f"groups  {folder / GROUPS}\nreport  {folder / REPORT}", markup=False)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"
