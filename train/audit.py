"""`edgelung audit`: what a folder of labelled tiles holds, and which tiles are copies of which."""

import base64
import csv
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder, new_folder, write_json
from edgelung.core.terminal import progress as progress_bar
from edgelung.report.pages import audit_page
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile
from edgelung.train.groups.disjoint_set import Forest
from edgelung.train.groups.grouping import Grouping, Link, group_tiles
from edgelung.train.groups.keypoints import SIZE
from edgelung.train.index import IndexedTile, index_tiles, label_of, read_groups

Pixels = npt.NDArray[np.uint8]

SHOWN_GROUPS, SHOWN_PAIRS, SHOWN_TILES = 8, 10, 20  # on the page
SHOWN_KNOWN = 100  # pictures of links between known groups, which may be as many as tiles
PROVEN = 20  # inliers from which a link between known groups counts as proven (issue 3)


def audit_folder(
    data: Path,
    out: Path,
    known: Path | None,
    say: Callable[[str], None],
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Group the tiles of `data` and write groups.csv, links.csv, audit.json and report.html.

    A file that cannot be read is reported and left out. `known` is a CSV of groups to compare with;
    `classes` are as in `index_tiles`. Raises EdgelungError for anything a user can mend.
    """
    new_folder(out, "audit")
    unreadable: dict[str, str] = {}
    with progress_bar("index") as advance:
        tiles = index_tiles(data, classes, advance, on_error=unreadable.__setitem__)
    spec = ReaderSpec(size=SIZE)
    colours: dict[str, npt.NDArray[np.float64]] = {}
    with progress_bar("decode", len(tiles)) as advance, ThreadPoolExecutor() as pool:

        def decode(tile: IndexedTile) -> None:
            try:
                colours[tile.path] = read_tile(data / tile.path, spec).mean(axis=(0, 1))
            except TileError as error:
                unreadable[tile.path] = error.reason
            advance(1)

        list(pool.map(decode, tiles))
    tiles = [tile for tile in tiles if tile.path in colours]
    if not tiles:
        path, reason = next(iter(unreadable.items()))
        raise EdgelungError(f"no file in {data} can be read: {path}: {reason}, for one")
    theirs = read_groups(known, tiles) if known else []  # a wrong file is told before the work
    grouping = find_groups(data, tiles)
    names = group_names(tiles, grouping)
    left_out = Counter(label_of(path, classes) for path in unreadable)
    figures = _describe(tiles, grouping, names, colours, unreadable, left_out)
    links: list[tuple[str, str, Link]] = []
    if known:
        links = _links_between(grouping, theirs)
        figures["known"] = _compare(names, theirs, links)
    pictures = _pictures(data, tiles, grouping, names, links)
    with atomic_folder(out) as folder:
        _write(folder / "groups.csv", ["path", "class", "group"], _rows(tiles, names))
        header = ["first", "second", "inliers", "mirrored"]
        _write(folder / "links.csv", header, (_link(tiles, link) for link in grouping.links))
        write_json(folder / "audit.json", figures)
        (folder / "report.html").write_text(audit_page(data.name, figures, pictures), "utf-8")
    say(f"{len(tiles)} tiles in {figures['groups']} groups")
    return figures


def find_groups(data: Path, tiles: Sequence[IndexedTile]) -> Grouping:
    """Group readable tiles by what they show; raises EdgelungError for one that cannot be read."""
    spec = ReaderSpec(size=SIZE)

    def read(index: int) -> Pixels:
        try:
            return read_tile(data / tiles[index].path, spec)
        except TileError as error:
            raise EdgelungError(
                f"cannot read the training tile {data / tiles[index].path}: {error.reason}; "
                "mend or remove it"
            ) from error

    with progress_bar("group", len(tiles)) as advance:
        return group_tiles(len(tiles), read, [tile.sha256 for tile in tiles], advance)


def group_names(tiles: Sequence[IndexedTile], grouping: Grouping) -> list[str]:
    """`<class>-0001` for each tile, numbered in path order; `mixed-…` where classes share one."""
    classes: dict[int, set[str]] = {}
    for tile, number in zip(tiles, grouping.group, strict=True):
        classes.setdefault(number, set()).add(tile.label)
    digits = max(4, len(str(len(classes))))

    def name(number: int) -> str:
        labels = classes[number]
        return f"{min(labels) if len(labels) == 1 else 'mixed'}-{number + 1:0{digits}}"

    return [name(number) for number in grouping.group]


def _describe(
    tiles: Sequence[IndexedTile],
    grouping: Grouping,
    names: Sequence[str],
    colours: dict[str, npt.NDArray[np.float64]],
    unreadable: dict[str, str],
    left_out: Counter[str],
) -> dict[str, Any]:
    sizes = Counter(names)
    labels: dict[str, set[str]] = {}
    for tile, name in zip(tiles, names, strict=True):
        labels.setdefault(name, set()).add(tile.label)
    mixed = sorted(name for name, own in labels.items() if len(own) > 1)
    files: dict[str, list[dict[str, str]]] = {}
    for tile in tiles:
        files.setdefault(tile.sha256, []).append({"path": tile.path, "class": tile.label})
    pixels = Counter((tile.width, tile.height) for tile in tiles)
    classes = {}
    for label in sorted({tile.label for tile in tiles} | set(left_out) - {""}):
        own = [tile for tile in tiles if tile.label == label]
        mean = np.array([colours[tile.path] for tile in own])  # (n, 3)
        classes[label] = {
            "tiles": len(own),
            "groups": len({n for t, n in zip(tiles, names, strict=True) if t.label == label}),
            "left_out": left_out[label],
            "mean_rgb": mean.mean(axis=0).round(1).tolist() if own else [],
            "std_rgb": mean.std(axis=0).round(1).tolist() if own else [],
        }
    return {
        "edgelung": __version__,
        "notice": RESEARCH_USE_ONLY,
        "tiles": len(tiles),
        "groups": len(sizes),
        "single_tiles": sum(n == 1 for n in sizes.values()),
        "largest_group": max(sizes.values()),
        "identical_files": len(tiles) - len(files),  # how many could be left out
        "identical": [copies for copies in files.values() if len(copies) > 1],
        "groups_across_classes": {
            name: [t.path for t, n in zip(tiles, names, strict=True) if n == name] for name in mixed
        },
        "too_plain_to_compare": [tiles[i].path for i in grouping.plain],
        "unreadable": unreadable,
        "sizes": {f"{w}x{h}": n for (w, h), n in pixels.most_common(10)},
        "other_sizes": max(len(pixels) - 10, 0),
        "sides": [min(map(min, pixels)), max(map(max, pixels))],  # shortest and longest
        "classes": classes,
        "weakest_link": min((k.proof.inliers for k in grouping.links), default=None),
        "strongest_refused": max((k.proof.inliers for k in grouping.refused), default=None),
    }


def _links_between(grouping: Grouping, known: Sequence[str]) -> list[tuple[str, str, Link]]:
    """The strongest link between each two known groups that are one here, most inliers first."""
    best: dict[tuple[str, str], Link] = {}
    for link in grouping.links:
        first, second = sorted((known[link.first], known[link.second]))
        other = best.get((first, second))
        if first != second and (other is None or other.proof.inliers < link.proof.inliers):
            best[first, second] = link
    found = [(first, second, link) for (first, second), link in best.items()]
    return sorted(found, key=lambda entry: -entry[2].proof.inliers)


def _compare(
    names: Sequence[str], known: Sequence[str], links: Sequence[tuple[str, str, Link]]
) -> dict[str, Any]:
    """Pairs of tiles: recall of the known groups', precision with proven links counted as right."""
    number = {name: i for i, name in enumerate(sorted(set(known)))}
    forest = Forest(len(number))
    for first, second, link in links:
        if link.proof.inliers >= PROVEN:
            forest.join(number[first], number[second])
    corrected = [forest.root(number[name]) for name in known]
    return {
        "groups": len(set(known)),
        "corrected_groups": len(set(corrected)),
        "recall": _share(_pairs(zip(names, known, strict=True)), _pairs(known)),
        "precision_as_published": _share(_pairs(zip(names, known, strict=True)), _pairs(names)),
        "precision": _share(_pairs(zip(names, corrected, strict=True)), _pairs(names)),
        "links": [
            {"first": first, "second": second, "inliers": link.proof.inliers}
            for first, second, link in links
        ],
    }


def _pairs(labels: Any) -> int:
    """Pairs of tiles with one label."""
    return sum(n * (n - 1) // 2 for n in Counter(labels).values())


def _share(part: int, whole: int) -> float | None:
    """None of nothing: groups of one tile each have no pair to find."""
    return part / whole if whole else None


def _pictures(
    data: Path,
    tiles: Sequence[IndexedTile],
    grouping: Grouping,
    names: Sequence[str],
    links: Sequence[tuple[str, str, Link]],
) -> dict[str, list[dict[str, Any]]]:
    """Contact sheets and aligned pairs as JPEG data URIs with their captions."""
    spec = ReaderSpec(size=SIZE)

    def read(index: int) -> Pixels:
        return read_tile(data / tiles[index].path, spec)

    def sheet(name: str) -> Pixels:
        members = [i for i, own in enumerate(names) if own == name]
        labels = Counter(tiles[i].label for i in members)
        members.sort(key=lambda i: labels[tiles[i].label])  # whoever stands in the wrong class
        members = members[:SHOWN_TILES]
        small = [cv2.resize(read(i), (96, 96), interpolation=cv2.INTER_AREA) for i in members]
        small += [np.full((96, 96, 3), 255, np.uint8)] * (-len(small) % 10)
        return np.vstack([np.hstack(small[i : i + 10]) for i in range(0, len(small), 10)])

    def pair(link: Link, text: str = "") -> dict[str, Any]:
        return {
            "picture": _data_uri(aligned(read(link.first), read(link.second), link)),
            "text": text,
            "inliers": link.proof.inliers,
            "paths": [tiles[link.first].path, tiles[link.second].path],
        }

    def described(name: str, count: int) -> str:
        shown = f", {SHOWN_TILES} of them here" if count > SHOWN_TILES else ""
        return f"{name}: {count} tiles{shown}"

    weakest = sorted(grouping.links, key=lambda link: link.proof.inliers)
    across = [k for k in weakest if tiles[k.first].label != tiles[k.second].label]
    return {
        "groups": [
            {"picture": _data_uri(sheet(name)), "text": described(name, count)}
            for name, count in Counter(names).most_common(SHOWN_GROUPS)
            if count > 1
        ],
        "across": [pair(link) for link in across[::-1][:SHOWN_PAIRS]],
        "known": [pair(k, f"{first} and {second}") for first, second, k in links[-SHOWN_KNOWN:]],
        "weakest": [pair(link) for link in weakest[:SHOWN_PAIRS]],
        "refused": [pair(link) for link in grouping.refused[:SHOWN_PAIRS]],
    }


def aligned(first: Pixels, second: Pixels, link: Link) -> Pixels:
    """Three panels uint8 [224, 672, 3]: a tile, the other laid upon it, both in a chequerboard."""
    other = second[:, ::-1].copy() if link.proof.mirrored else second
    box = (SIZE, SIZE)
    laid = cv2.warpAffine(other, link.proof.matrix, box, borderValue=(255, 255, 255))
    inside = cv2.warpAffine(np.ones(box, np.uint8), link.proof.matrix, box) > 0
    cell = np.arange(SIZE) // (SIZE // 8)
    odd = (cell[:, None] + cell[None]) % 2 == 1
    return np.hstack([first, laid, np.where((odd & inside)[..., None], laid, first)])


def _data_uri(pixels: Pixels) -> str:
    ok, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _rows(tiles: Sequence[IndexedTile], names: Sequence[str]) -> Any:
    return ((t.path, t.label, name) for t, name in zip(tiles, names, strict=True))


def _link(tiles: Sequence[IndexedTile], link: Link) -> tuple[object, ...]:
    mirrored = "yes" if link.proof.mirrored else "no"
    return tiles[link.first].path, tiles[link.second].path, link.proof.inliers, mirrored


def _write(path: Path, header: list[str], rows: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
