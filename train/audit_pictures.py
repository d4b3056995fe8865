"""Pictures on the page of an audit: contact sheets of groups and aligned pairs of tiles."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgelung.tiles.reader import ReaderSpec, read_tile
from edgelung.train.groups.grouping import Grouping, Link
from edgelung.train.groups.keypoints import SIZE
from edgelung.train.index import IndexedTile

Pixels = npt.NDArray[np.uint8]

SHOWN_GROUPS, SHOWN_PAIRS, SHOWN_TILES = 8, 10, 20
SHOWN_KNOWN = 100  # there can be as many links between known groups as tiles
THUMBNAIL, COLUMNS = 96, 10  # of a contact sheet
GAP = 3  # pixels around each tile of a contact sheet and of an aligned pair


@dataclass(frozen=True)
class GroupPicture:
    """A contact sheet as a data URI."""

    picture: str
    text: str


@dataclass(frozen=True)
class PairPicture:
    """Two aligned tiles as a data URI."""

    picture: str
    text: str
    inliers: int
    paths: list[str]


@dataclass(frozen=True)
class AuditPictures:
    """The pictures by the section that shows them."""

    groups: list[GroupPicture]
    across: list[PairPicture]
    known: list[PairPicture]
    weakest: list[PairPicture]
    refused: list[PairPicture]
    against: list[PairPicture]


def draw_pictures(
    data: Path,
    tiles: Sequence[IndexedTile],
    grouping: Grouping,
    names: Sequence[str],
    known: Sequence[tuple[str, str, Link]],
    shown_in_training: Sequence[tuple[str, Link]],
) -> AuditPictures:
    """Draw the largest groups, and the links and refused pairs that a person should check.

    Args:
        names: the group of each tile.
        known: the links between known groups.
        shown_in_training: links of a test tile with a training tile, with what to say of each.
    """

    def pair(link: Link, text: str = "") -> PairPicture:
        first, second = (read_pixels(data, tiles[i]) for i in (link.first, link.second))
        paths = [tiles[link.first].path, tiles[link.second].path]
        picture = _data_uri(draw_aligned(first, second, link))
        return PairPicture(picture, text, link.proof.inliers, paths)

    weakest = sorted(grouping.links, key=lambda link: link.proof.inliers)
    across = [k for k in weakest if tiles[k.first].label != tiles[k.second].label]
    largest = [
        (name, count) for name, count in Counter(names).most_common(SHOWN_GROUPS) if count > 1
    ]
    return AuditPictures(
        groups=[_group_picture(data, tiles, names, name, count) for name, count in largest],
        across=[pair(link) for link in across[::-1][:SHOWN_PAIRS]],
        known=[pair(link, f"{one} and {other}") for one, other, link in known[-SHOWN_KNOWN:]],
        weakest=[pair(link) for link in weakest[:SHOWN_PAIRS]],
        refused=[pair(link) for link in grouping.refused[:SHOWN_PAIRS]],
        against=[pair(link, text) for text, link in shown_in_training[:SHOWN_PAIRS]],
    )


def read_pixels(data: Path, tile: IndexedTile) -> Pixels:
    """Read a tile at the size used for grouping: uint8 (224, 224, 3)."""
    return read_tile(data / tile.path, ReaderSpec(size=SIZE))


def draw_aligned(first: Pixels, second: Pixels, link: Link) -> Pixels:
    """A tile, the other one warped onto it, a chequerboard: uint8 (224 + 2·GAP, 672 + 6·GAP, 3)."""
    other = second[:, ::-1].copy() if link.proof.mirrored else second
    box = (SIZE, SIZE)
    warped = cv2.warpAffine(other, link.proof.matrix, box, borderValue=(255, 255, 255))
    inside = cv2.warpAffine(np.ones(box, np.uint8), link.proof.matrix, box) > 0
    cell = np.arange(SIZE) // (SIZE // 8)
    odd = (cell[:, None] + cell[None]) % 2 == 1
    board = np.where((odd & inside)[..., None], warped, first)
    return np.hstack([_framed(panel) for panel in (first, warped, board)])


def _group_picture(
    data: Path, tiles: Sequence[IndexedTile], names: Sequence[str], name: str, count: int
) -> GroupPicture:
    """A contact sheet of a group; tiles of its rarer classes come first."""
    members = [tile for tile, group in zip(tiles, names, strict=True) if group == name]
    labels = Counter(tile.label for tile in members)
    members.sort(key=lambda tile: labels[tile.label])
    size = (THUMBNAIL, THUMBNAIL)
    small = [
        _framed(cv2.resize(read_pixels(data, tile), size, interpolation=cv2.INTER_AREA))
        for tile in members[:SHOWN_TILES]
    ]
    columns = min(COLUMNS, len(small))
    small += [np.full_like(small[0], 255)] * (-len(small) % columns)
    rows = [np.hstack(small[i : i + columns]) for i in range(0, len(small), columns)]
    shown = f", {SHOWN_TILES} of them here" if count > SHOWN_TILES else ""
    return GroupPicture(_data_uri(np.vstack(rows)), f"{name}: {count} tiles{shown}")


def _framed(pixels: npt.ArrayLike) -> Pixels:
    """The picture with a white margin of GAP pixels, so that tiles side by side stay apart."""
    margins = ((GAP, GAP), (GAP, GAP), (0, 0))
    return np.pad(np.asarray(pixels, np.uint8), margins, constant_values=255)


def _data_uri(pixels: Pixels) -> str:
    ok, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
