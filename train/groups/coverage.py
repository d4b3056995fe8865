"""Choose the tiles of a group that together cover most of its field of tissue.

The links of a group place its tiles in one plane. The tiles that reach furthest can overlap other
groups' fields; a tile that was rotated or cropped has lost the margins that overlap.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.geometry import Proof
from edgelung.train.groups.keypoints import SIZE

CELL = 8  # pixels along a side of a grid cell, which is covered or not
MAX_CELLS = 1 << 22  # of a field; a larger one comes from wrong links and is not laid out

Floats = npt.NDArray[np.float64]
_CORNERS = np.array([[0, SIZE, SIZE, 0], [0, 0, SIZE, SIZE], [1, 1, 1, 1]], float)
_MIRROR = np.array([[-1, 0, SIZE - 1], [0, 1, 0], [0, 0, 1]], float)


def lay_out(members: Sequence[int], links: Iterable[tuple[int, int, Proof]]) -> dict[int, Floats]:
    """Place the tiles of a group: the four corners, float (4, 2), of each tile that links reach.

    `links` holds (first, second, proof) between members. Corners are in pixels of the first member.
    """
    neighbours: dict[int, list[tuple[int, Floats]]] = defaultdict(list)
    for first, second, proof in links:
        to_first = np.vstack([proof.matrix, [0, 0, 1]])  # pixels of the second → of the first
        if proof.mirrored:
            to_first = to_first @ _MIRROR
        neighbours[first].append((second, to_first))
        neighbours[second].append((first, np.linalg.inv(to_first)))
    transforms = {members[0]: np.eye(3)}
    queue = deque(transforms)
    while queue:
        tile = queue.popleft()
        for neighbour, to_tile in neighbours[tile]:
            if neighbour not in transforms:
                transforms[neighbour] = transforms[tile] @ to_tile
                queue.append(neighbour)
    return {tile: (matrix @ _CORNERS)[:2].T for tile, matrix in transforms.items()}


def cover(fields: dict[int, Floats], limit: int) -> list[int]:
    """Pick up to `limit` tiles greedily: each covers the largest area not covered so far."""
    tiles, limit = list(fields), min(limit, len(fields))
    corners = np.stack(list(fields.values())) / CELL  # (n, 4, 2)
    low = corners.min(axis=(0, 1))
    width, height = corners.max(axis=(0, 1)) - low
    if not (width + 2) * (height + 2) <= MAX_CELLS:  # also if it is not finite
        return [tiles[i * len(tiles) // limit] for i in range(limit)]
    corners = np.rint(corners - low).astype(np.int32)
    uncovered = np.ones((int(height) + 2, int(width) + 2), np.uint8)
    masks = [_mask(field) for field in corners]

    def gain(i: int) -> int:
        """Cells that tile i would newly cover."""
        box, mask = masks[i]
        return int((uncovered[box] & mask).sum())

    selected: list[int] = []
    # Lazy greedy: a gain only shrinks, so it is computed again only when its tile comes first.
    # Random order among equal gains spreads the selection over the field.
    tiebreak = np.random.default_rng(0).permutation(len(tiles)).tolist()
    heap = [(-gain(i), tiebreak[i], i) for i in range(len(tiles))]
    heapq.heapify(heap)
    while len(selected) < limit:
        old_gain, _, i = heap[0]
        new_gain = gain(i)
        if new_gain != -old_gain:
            heapq.heapreplace(heap, (-new_gain, tiebreak[i], i))
        elif new_gain:
            heapq.heappop(heap)
            selected.append(i)
            box, mask = masks[i]
            uncovered[box] &= 1 - mask
        else:  # everything is covered: start a second layer
            uncovered[:] = 1
            heap = [(-gain(i), tiebreak[i], i) for *_, i in heap]
            heapq.heapify(heap)
    return [tiles[i] for i in selected]


def _mask(field: npt.NDArray[np.int32]) -> tuple[tuple[slice, slice], npt.NDArray[np.uint8]]:
    """A tile's bounding box on the grid and the cells it covers there; `field` (4, 2) in cells."""
    left, top = field.min(axis=0)
    right, bottom = field.max(axis=0) + 1
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillConvexPoly(mask, field - (left, top), 1)
    return (slice(top, bottom), slice(left, right)), mask
