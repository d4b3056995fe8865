"""`edgelung audit`: describe a folder of labelled tiles, and find near copies in it."""

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.core.errors import EdgelungError
from edgelung.core.files import new_folder
from edgelung.core.terminal import progress as progress_bar
from edgelung.core.workers import Workers
from edgelung.tiles.reader import TileError
from edgelung.train.audit_pictures import draw_pictures, read_pixels
from edgelung.train.audit_report import (
    SCHEMA_VERSION,
    Audit,
    ClassSummary,
    Copy,
    KnownGroups,
    KnownLink,
    write_audit,
)
from edgelung.train.audit_split import (
    SplitLeak,
    example_links,
    measure_leak,
    read_published_split,
)
from edgelung.train.groups.disjoint_set import DisjointSet
from edgelung.train.groups.grouping import Grouping, Link
from edgelung.train.groups.near_copies import find_groups, group_names
from edgelung.train.index import IndexedTile, index_tiles, label_of, read_groups

logger = logging.getLogger(__name__)

Colour = npt.NDArray[np.float64]  # mean R, G, B of a tile, (3,)

PROVEN = 20  # inliers from which a link between known groups counts as proven (issue 3)


def audit_folder(
    data: Path,
    out: Path,
    known: Path | None = None,
    classes: Sequence[str] = (),
    *,
    follow_links: bool = False,
    against: Path | None = None,
) -> Audit:
    """Group the tiles of `data` and write groups.csv, links.csv, audit.json and report.html.

    A file that cannot be read is reported and left out. `known` is a CSV of groups to compare with;
    `classes` and `follow_links` are as in `index_tiles`; `against` is a published split (see
    `read_published_split`). Raises EdgelungError for anything that the user can correct.
    """
    new_folder(out, "audit")
    unreadable: dict[str, str] = {}
    with progress_bar("index") as advance:
        tiles = index_tiles(
            data,
            classes,
            advance,
            on_error=unreadable.__setitem__,
            follow_links=follow_links,
        )
    colours = _mean_colours(data, tiles, unreadable)
    tiles = [tile for tile in tiles if tile.path in colours]
    if not tiles:
        path, reason = next(iter(unreadable.items()))
        raise EdgelungError(f"no file in {data} can be read, for example {path}: {reason}")
    # Read before the long work, so that a mistake in a file is reported at once.
    known_names = read_groups(known, tiles) if known else []
    subsets = read_published_split(against, tiles) if against else []
    grouping = find_groups(data, tiles)
    names = group_names(tiles, grouping)
    links = _links_between(grouping, known_names) if known else []
    audit = _summarise(
        tiles,
        grouping,
        names,
        _summarise_classes(tiles, names, colours, [label_of(p, classes) for p in unreadable]),
        unreadable,
        _compare(names, known_names, links) if known else None,
        measure_leak(against.name, tiles, names, subsets) if against else None,
    )
    examples = [
        (f"{subsets[link.first]} and {subsets[link.second]}", link)
        for link in (example_links(grouping.links, names, subsets) if against else [])
    ]
    pictures = draw_pictures(data, tiles, grouping, names, links, examples)
    write_audit(out, data.name, audit, tiles, names, grouping.links, pictures)
    logger.info("%d tiles in %d groups", len(tiles), audit.groups)
    return audit


def _mean_colours(
    data: Path, tiles: Sequence[IndexedTile], unreadable: dict[str, str]
) -> dict[str, Colour]:
    """Mean colour of each tile by path; adds tiles that cannot be decoded to `unreadable`."""
    colours: dict[str, Colour] = {}
    with progress_bar("decode", len(tiles)) as advance, Workers() as pool:

        def decode(tile: IndexedTile) -> None:
            try:
                colours[tile.path] = read_pixels(data, tile).mean(axis=(0, 1))
            except TileError as error:
                unreadable[tile.path] = error.reason
            advance(1)

        list(pool.map(decode, tiles))
    return colours


def _summarise(
    tiles: Sequence[IndexedTile],
    grouping: Grouping,
    names: Sequence[str],
    classes: dict[str, ClassSummary],
    unreadable: dict[str, str],
    known: KnownGroups | None,
    against: SplitLeak | None,
) -> Audit:
    group_sizes = Counter(names)
    members: dict[str, list[IndexedTile]] = {}
    for tile, name in zip(tiles, names, strict=True):
        members.setdefault(name, []).append(tile)
    mixed = sorted(name for name, group in members.items() if len({t.label for t in group}) > 1)
    copies: dict[str, list[Copy]] = {}
    for tile in tiles:
        copies.setdefault(tile.sha256, []).append(Copy(tile.path, tile.label))
    sizes = Counter((tile.width, tile.height) for tile in tiles)
    return Audit(
        schema_version=SCHEMA_VERSION,
        edgelung=__version__,
        notice=RESEARCH_USE_ONLY,
        tiles=len(tiles),
        groups=len(group_sizes),
        single_tiles=sum(count == 1 for count in group_sizes.values()),
        largest_group=max(group_sizes.values()),
        identical_files=len(tiles) - len(copies),
        identical=[files for files in copies.values() if len(files) > 1],
        groups_across_classes={name: [tile.path for tile in members[name]] for name in mixed},
        too_plain_to_compare=[tiles[i].path for i in grouping.plain],
        unreadable=unreadable,
        sizes={f"{w}x{h}": count for (w, h), count in sizes.most_common(10)},
        other_sizes=max(len(sizes) - 10, 0),
        sides=(min(map(min, sizes)), max(map(max, sizes))),
        classes=classes,
        weakest_link=min((link.proof.inliers for link in grouping.links), default=None),
        strongest_refused=max((link.proof.inliers for link in grouping.refused), default=None),
        known=known,
        against=against,
    )


def _summarise_classes(
    tiles: Sequence[IndexedTile],
    names: Sequence[str],
    colours: dict[str, Colour],
    unreadable_labels: Sequence[str],
) -> dict[str, ClassSummary]:
    left_out = Counter(unreadable_labels)
    classes = {}
    for label in sorted({tile.label for tile in tiles} | set(left_out) - {""}):
        paths = [tile.path for tile in tiles if tile.label == label]
        rgb = np.array([colours[path] for path in paths])  # (n, 3)
        classes[label] = ClassSummary(
            tiles=len(paths),
            groups=len(
                {name for tile, name in zip(tiles, names, strict=True) if tile.label == label}
            ),
            left_out=left_out[label],
            mean_rgb=rgb.mean(axis=0).round(1).tolist() if paths else [],
            std_rgb=rgb.std(axis=0).round(1).tolist() if paths else [],
        )
    return classes


def _links_between(grouping: Grouping, known: Sequence[str]) -> list[tuple[str, str, Link]]:
    """The strongest link between each pair of known groups, most inliers first."""
    best: dict[tuple[str, str], Link] = {}
    for link in grouping.links:
        first, second = sorted((known[link.first], known[link.second]))
        other = best.get((first, second))
        if first != second and (other is None or other.proof.inliers < link.proof.inliers):
            best[first, second] = link
    links = [(first, second, link) for (first, second), link in best.items()]
    return sorted(links, key=lambda entry: -entry[2].proof.inliers)


def _compare(
    names: Sequence[str], known: Sequence[str], links: Sequence[tuple[str, str, Link]]
) -> KnownGroups:
    """Precision and recall of the groups found, over pairs of tiles in one group."""
    number = {name: i for i, name in enumerate(sorted(set(known)))}
    joined = DisjointSet(len(number))
    for first, second, link in links:
        if link.proof.inliers >= PROVEN:
            joined.union(number[first], number[second])
    corrected = [joined.find(number[name]) for name in known]
    both = _pairs(zip(names, known, strict=True))
    return KnownGroups(
        groups=len(set(known)),
        corrected_groups=len(set(corrected)),
        recall=_ratio(both, _pairs(known)),
        precision_as_published=_ratio(both, _pairs(names)),
        precision=_ratio(_pairs(zip(names, corrected, strict=True)), _pairs(names)),
        links=[KnownLink(first, second, link.proof.inliers) for first, second, link in links],
    )


def _pairs(groups: Iterable[Hashable]) -> int:
    """Count the pairs of tiles that are in one group."""
    return sum(count * (count - 1) // 2 for count in Counter(groups).values())


def _ratio(part: int, whole: int) -> float | None:
    """None for an empty whole: groups of one tile each contain no pair."""
    return part / whole if whole else None
