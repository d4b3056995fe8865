"""`edgelung audit`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import print_next, report
from edgelung.cli.options import INPUT, OUTPUT, FollowLinksOption, training_extra

if TYPE_CHECKING:
    from edgelung.train.audit_report import Audit


def audit(
    data: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of class folders with tiles.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", rich_help_panel=OUTPUT, help="New folder to write.")
    ],
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            rich_help_panel=INPUT,
            help="Known groups to compare with: a CSV with the columns path and group.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="SPLIT",
            rich_help_panel=INPUT,
            help="A published split to check: a CSV with the columns path and subset, or a folder "
            "with train/ and test/ in it.",
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            rich_help_panel=INPUT,
            help="A folder name that is a class, if tiles lie in folders below it; repeatable.",
        ),
    ] = None,
    follow_links: FollowLinksOption = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=OUTPUT, help="Print audit.json on standard output."),
    ] = False,
) -> None:
    """What does a folder of labelled tiles hold? Which are copies?

    Near copies are found by what the tiles show. Writes groups.csv for `edgelung train --groups`,
    the links between tiles and a page with pictures of them. --against says how many test tiles of
    a split show tissue of its training tiles. Research use only.
    """
    from edgelung.core.errors import ExitCode
    from edgelung.core.own_folders import GROUPS
    from edgelung.core.typed_json import plain
    from edgelung.tiles.find import LEADS_OUT

    with training_extra("audit"):
        from edgelung.train.audit import audit_folder
    result = audit_folder(
        data, out, groups, classes or (), follow_links=follow_links, against=against
    )
    if as_json:
        print(json.dumps(plain(result), indent=2))
    else:
        _print(result, out)
        chosen = json.dumps(list(classes), ensure_ascii=False) if classes else ""
        named = ["--set", f"classes={chosen}"] if chosen else []
        named += ["--follow-links"] if follow_links else []
        run = out.with_name(f"{out.name}-run")
        print_next("train", data, "--groups", out / GROUPS, "--out", run, *named)
    if LEADS_OUT in result.unreadable.values():
        report("links that lead out of %s were left out; --follow-links follows them", data)
    if result.unreadable:
        raise typer.Exit(ExitCode.SOME_FAILED)


def _print(audit: "Audit", folder: Path) -> None:
    from edgelung.core.own_folders import GROUPS
    from edgelung.core.terminal import out
    from edgelung.train.audit_report import REPORT

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
        out().print(f"{name:22}{count}")
    if known := audit.known:
        out().print(f"compared with the {known.groups} groups of --groups, over pairs of tiles:")
        if known.recall is not None:
            out().print(f"  recall    {_percent(known.recall)} of their pairs are found")
        if known.precision_as_published is not None:
            out().print(
                f"  precision {_percent(known.precision_as_published)} of the pairs found are "
                "theirs"
            )
        if known.links and known.precision is not None:
            out().print(
                f"            {_percent(known.precision)} if the strong ones of {len(known.links)} "
                "links between their groups are true copies"
            )
    if split := audit.against:
        low, high = (f"{100 * end:.2f}" for end in split.interval)
        out().print(
            f"split {split.split}: {split.shown_in_training:,} of {split.test:,} test tiles show "
            f"tissue of its training tiles: {_percent(split.share)}, 95 % interval {low} to {high} "
            f"over {split.test_groups} groups",
            markup=False,
        )
    out().print(f"groups  {folder / GROUPS}\nreport  {folder / REPORT}")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
