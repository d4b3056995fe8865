"""Outlines of a mask as polygons with holes, exactly along the edges of its pixels.

`cv2.findContours` leads through the centres of pixels: its polygons are too small. These have the
area of the mask to the last pixel, and follow the rules for valid polygons: no ring touches itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgelung.core.extras import load_extra

BAND = 256  # rows of corners that are found at once: bounds memory
MAX_CORNERS = 2_000_000  # bounds time and memory; a cleaned mask of a slide has thousands
Point = tuple[int, int]  # x, y; corners of pixels


@dataclass
class Piece:
    """One piece of the mask. Rings are not closed: the first point is not repeated.

    Attributes:
        shell: the outline; positive area (x to the right, y down).
        holes: outlines of the holes; negative area.
    """

    shell: list[Point]
    holes: list[list[Point]] = field(default_factory=list)


def outlines(mask: npt.NDArray[np.bool_]) -> tuple[list[Piece], int]:
    """The pieces of a mask (h, w), from the top; pixels belong together if they share an edge.

    Returns:
        The pieces, and how many pixels of the mask one unit of their points is: 1, or more where
        a mask with very many corners was reduced first.
    """
    factor = 1
    while sum(np.count_nonzero(bits) for _, bits in _corners(mask)) > MAX_CORNERS:
        mask, factor = _halved(mask), factor * 2
    cv2 = load_extra("cv2", "the outline of the tissue")
    labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]
    pieces: dict[int, Piece] = {}
    holes: list[tuple[int, list[Point]]] = []
    for ring in _rings(mask):
        x, y = min(ring, key=lambda point: (point[1], point[0]))
        if mask[y, x]:  # below the top edge lies the piece
            pieces[int(labels[y, x])] = Piece(_turned(ring, positive=True))
        else:  # below lies the hole, above the piece around it
            holes.append((int(labels[y - 1, x]), _turned(ring, positive=False)))
    for label, ring in holes:
        pieces[label].holes.append(ring)
    return list(pieces.values()), factor


def area(ring: list[Point]) -> float:
    """Signed area of a ring; positive if it turns from x to y."""
    x, y = np.array(ring, np.int64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _corners(mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """In bands of rows: the four pixels around each corner as bits where the outline turns, else 0.

    1: upper left, 2: upper right, 4: lower left, 8: lower right. Yields the first row of corners,
    and the bits (rows, w + 1); there are h + 1 rows in all.
    """
    turns = np.ones(16, bool)
    turns[[0b0000, 0b1111, 0b0011, 0b1100, 0b0101, 0b1010]] = False
    height, width = mask.shape
    for top in range(0, height + 1, BAND):
        rows = min(BAND, height + 1 - top)
        padded = np.zeros((rows + 1, width + 2), np.uint8)
        above = max(top - 1, 0)
        pixels = mask[above : top + rows]
        padded[above - top + 1 :][: len(pixels), 1:-1] = pixels
        bits = padded[:-1, :-1].copy()
        for bit, part in ((2, padded[:-1, 1:]), (4, padded[1:, :-1]), (8, padded[1:, 1:])):
            bits += np.uint8(bit) * part
        bits[~turns[bits]] = 0
        yield top, bits


def _rings(mask: npt.NDArray[np.bool_]) -> Iterator[list[Point]]:
    """All rings. In each row and each column, corners are joined in pairs.

    Where two pixels touch only at a corner, it stands twice: each pixel has its own.
    """
    found = []
    for top, bits in _corners(mask):
        rows, columns = np.nonzero(bits)
        found.append((rows + top, columns, bits[rows, columns]))
    y, x, kind = map(np.concatenate, zip(*found, strict=True))
    twice = (kind == 0b1001) | (kind == 0b0110)
    y, x, kind = np.repeat(y, 1 + twice), np.repeat(x, 1 + twice), np.repeat(kind, 1 + twice)
    # In a row, the copy that ends the edge from the left comes first; it belongs to the left
    # pixel, which lies above (0b1001) or below (0b0110) the corner.
    copy = np.zeros(len(x), np.int8)
    copy[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    below = np.where(kind == 0b0110, 1 - copy, copy)
    along_row = _partners(np.lexsort((copy, x, y)))
    along_column = _partners(np.lexsort((below, y, x)))
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    seen = bytearray(len(points))
    for start in range(len(points)):
        path: list[int] = []
        at = start
        while not seen[at]:
            for partner in (along_row, along_column):
                seen[at] = 1
                path.append(at)
                at = partner[at]
        if path:
            yield from _split([points[index] for index in path])


def _partners(order: npt.NDArray[np.intp]) -> list[int]:
    partners = np.empty(len(order), np.int64)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners.tolist()


def _split(ring: list[Point]) -> Iterator[list[Point]]:
    """Split a ring that touches itself into rings that do not."""
    if len(set(ring)) == len(ring):
        yield ring
        return
    path: list[Point] = []
    place: dict[Point, int] = {}
    for point in ring:
        if point in place:
            loop = path[place[point] :]
            yield loop
            for passed in loop:
                del place[passed]
            del path[len(path) - len(loop) :]
        place[point] = len(path)
        path.append(point)
    yield path


def _turned(ring: list[Point], *, positive: bool) -> list[Point]:
    return ring if (area(ring) > 0) == positive else [ring[0], *ring[:0:-1]]


def _halved(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Half the resolution; a pixel is tissue if at least two of its four were."""
    even = np.pad(mask, [(0, size % 2) for size in mask.shape]).astype(np.uint8)
    sums = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return sums >= 2
