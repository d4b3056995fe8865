"""Which tiles of a group show most of its field.

The similarities that connect a group lay its tiles upon one another. Those that reach furthest meet
the neighbouring fields: a tile that was turned or cropped has lost the margins that overlap them.
"""

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
    corners = np.stack(list(fields.values())) / CELL  # (n, 4, 2)
    low = corners.min(axis=(0, 1))
    width, height = (np.ceil(corners.max(axis=(0, 1)) - low) + 1).astype(int)
    if width * height > MOST_CELLS:
        return list(fields)[:most]
    masks = np.zeros((len(fields), height, width), np.uint8)
    for mask, field in zip(masks, corners, strict=True):
        cv2.fillConvexPoly(mask, np.rint(field - low).astype(np.int32), 1)
    chosen: list[int] = []
    bare = np.ones((height, width), np.uint8)
    while len(chosen) < min(most, len(fields)):
        new = (masks & bare).sum(axis=(1, 2), dtype=np.int64)
        if not new.max():
            bare[:] = 1  # all is shown: begin a second layer
            continue
        chosen.append(int(new.argmax()))
        bare &= 1 - masks[chosen[-1]]
        masks[chosen[-1]] = 0
    tiles = list(fields)
    return [tiles[i] for i in chosen]
