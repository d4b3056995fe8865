"""The result of an audit as typed values, and the writer of its files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edgelung.core.csv_cells import write_safely
from edgelung.core.files import atomic_folder, write_json
from edgelung.core.own_folders import AUDIT_FIGURES, AUDIT_LINKS, GROUPS, REPORT_PAGE
from edgelung.report.pages import audit_page
from edgelung.train.audit_pictures import AuditPictures
from edgelung.train.audit_split import SplitLeak
from edgelung.train.groups.grouping import Link
from edgelung.train.index import IndexedTile

AUDIT, LINKS, REPORT = AUDIT_FIGURES, AUDIT_LINKS, REPORT_PAGE
SCHEMA_VERSION = 1  # audit.json of edgelung 0.1 has no version; it has the same fields


class ClassSummary(msgspec.Struct, frozen=True):
    """The tiles of one class; colours are means over each tile, 0…255."""

    tiles: int
    groups: int
    left_out: int  # files that cannot be read
    mean_rgb: list[float]  # empty without tiles
    std_rgb: list[float]


class Copy(msgspec.Struct, frozen=True):
    """One of several identical files."""

    path: str
    label: str = msgspec.field(name="class")


class KnownLink(msgspec.Struct, frozen=True):
    """Two known groups that a link connects, and the inliers of the strongest one."""

    first: str
    second: str
    inliers: int


class KnownGroups(msgspec.Struct, frozen=True):
    """The groups compared with known ones, over pairs of tiles; None if there is no pair."""

    groups: int
    corrected_groups: int  # after proven links joined known groups
    recall: float | None
    precision_as_published: float | None
    precision: float | None  # with proven links counted as right
    links: list[KnownLink]


class Audit(msgspec.Struct, frozen=True, omit_defaults=True):
    """audit.json."""

    edgelung: str
    notice: str
    tiles: int
    groups: int
    single_tiles: int
    largest_group: int
    identical_files: int  # how many could be removed
    identical: list[list[Copy]]
    groups_across_classes: dict[str, list[str]]  # group → paths
    too_plain_to_compare: list[str]
    unreadable: dict[str, str]  # path → reason
    sizes: dict[str, int]  # the ten most frequent, "<width>x<height>" → tiles
    other_sizes: int
    sides: tuple[int, int]  # the shortest and the longest, pixels
    classes: dict[str, ClassSummary]
    weakest_link: int | None  # inliers
    strongest_refused: int | None
    schema_version: int
    known: KnownGroups | None = None  # left out of the JSON if nothing was compared
    against: SplitLeak | None = None  # left out too


def write_audit(
    out: Path,
    name: str,
    audit: Audit,
    tiles: Sequence[IndexedTile],
    groups: Sequence[str],
    links: Sequence[Link],
    pictures: AuditPictures,
) -> None:
    """Write the folder of an audit: groups.csv, links.csv, audit.json and report.html."""
    values = msgspec.to_builtins(audit)
    rows = zip(tiles, groups, strict=True)
    with atomic_folder(out) as folder:
        _write_csv(
            folder / GROUPS,
            ["path", "class", "group"],
            ((tile.path, tile.label, group) for tile, group in rows),
        )
        _write_csv(
            folder / LINKS,
            ["first", "second", "inliers", "mirrored"],
            (_link_row(tiles, link) for link in links),
        )
        write_json(folder / AUDIT, values)
        (folder / REPORT).write_text(audit_page(name, values, vars(pictures)), "utf-8")


def _link_row(tiles: Sequence[IndexedTile], link: Link) -> tuple[object, ...]:
    mirrored = "yes" if link.proof.mirrored else "no"
    return tiles[link.first].path, tiles[link.second].path, link.proof.inliers, mirrored


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        write_safely(writer, rows)
