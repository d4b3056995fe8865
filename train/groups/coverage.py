"""Which tiles of a group show most of its field.

The similarities that connect a group lay its tiles upon one another. Those that reach furthest meet
the neighbouring fields: a tile that was turned or cropped has lost the margins that overlap them.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.geometry import Proof
from edgelung.train.groups.keypoints import SIZE

CELL = 8  # pixels along a side of what is counted as covered or not
MOST_CELLS = 1 << 22  # of a field; chains of links that err beyond it are not laid out

Floats = npt.NDArray[np.float64]
_CORNERS = np.array([[0, SIZE, SIZE, 0], [0, 0, SIZE, SIZE], [1, 1, 1, 1]], float)
_MIRROR = np.array([[-1, 0, SIZE - 1], [0, 1, 0], [0, 0, 1]], float)


def lay_out(members: Sequence[int], links: Iterable[tuple[int, int, Proof]]) -> dict[int, Floats]:
    """Where the tiles of a group lie: for each that links reach, its four corners, float (4, 2).

    `links` holds (first, second, proof) between members. All in pixels of the first member.
    """
    beside: dict[int, list[tuple[int, Floats]]] = defaultdict(list)
    for first, second, proof in links:
        forth = np.vstack([proof.matrix, [0, 0, 1]])  # the second's pixels → the first's
        if proof.mirrored:
            forth = forth @ _MIRROR
        beside[first].append((second, forth))
        beside[second].append((first, np.linalg.inv(forth)))
    placed = {members[0]: np.eye(3)}
    waiting = deque(placed)
    while waiting:
        tile = waiting.popleft()
        for other, towards in beside[tile]:
            if other not in placed:
                placed[other] = placed[tile] @ towards
                waiting.append(other)
    return {tile: (matrix @ _CORNERS)[:2].T for tile, matrix in placed.items()}


def furthest(fields: dict[int, Floats], most: int) -> list[int]:
    """At most `most` tiles: again and again the one that shows most of what no other yet does."""
    tiles, most = list(fields), min(most, len(fields))
    corners = np.stack(list(fields.values())) / CELL  # (n, 4, 2)
    low = corners.min(axis=(0, 1))
    width, height = corners.max(axis=(0, 1)) - low
    if not (width + 2) * (height + 2) <= MOST_CELLS:
        return [tiles[i * len(tiles) // most] for i in range(most)]
    corners = np.rint(corners - low).astype(np.int32)
    bare = np.ones((int(height) + 2, int(width) + 2), np.uint8)
    masks = [_mask(field) for field in corners]

    def shows(i: int) -> int:
        place, mask = masks[i]
        return int((bare[place] & mask).sum())

    chosen: list[int] = []
    # What a tile shows anew only shrinks: looked at again when it comes first (lazy greedy). Where
    # many show as much, chance spreads the choice over the field.
    chance = np.random.default_rng(0).permutation(len(tiles)).tolist()
    waiting = [(-shows(i), chance[i], i) for i in range(len(tiles))]
    heapq.heapify(waiting)
    while len(chosen) < most:
        promised, _, i = waiting[0]
        now = shows(i)
        if now != -promised:
            heapq.heapreplace(waiting, (-now, chance[i], i))
        elif now:
            heapq.heappop(waiting)
            chosen.append(i)
            place, mask = masks[i]
            bare[place] &= 1 - mask
        else:  # all is shown: begin a second layer
            bare[:] = 1
            waiting = [(-shows(i), chance[i], i) for *_, i in waiting]
            heapq.heapify(waiting)
    return [tiles[i] for i in chosen]


def _mask(field: npt.NDArray[np.int32]) -> tuple[tuple[slice, slice], npt.NDArray[np.uint8]]:
    """Where on the grid a tile lies, and which cells there it covers; `field` (4, 2) in cells."""
    left, top = field.min(axis=0)
    right, bottom = field.max(axis=0) + 1
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillConvexPoly(mask, field - (left, top), 1)
    return (slice(top, bottom), slice(left, right)), mask
