"""Which pairs of tiles are worth a look: votes of keypoints for their nearest in an index.

A bag of single keypoints, not of words: near copies share so many that votes alone rank nearly all
true pairs before the false ones, and the geometry has little left to refuse.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.keypoints import MIRROR, Bytes, Floats, Keypoints, unit

INDEXED = 128  # strongest keypoints per tile that can be found …
ASKING = 64  # … and that ask
NEIGHBOURS = 32  # tiles of one source are about 20
NEAR = 0.25  # squared distance of descriptors that may vote
DIMENSIONS = 48  # left of 128: distances survive, and everything is three times as fast
EXACT = 50_000  # descriptors up to which the index is searched in full
_CHUNK = 50_000

Ints = npt.NDArray[np.int64]
_LOWER = np.flatnonzero(np.arange(128) < MIRROR)  # mirroring swaps these bins with the rest


@dataclass(frozen=True)
class Candidates:
    """Pairs of tiles, first < second, most votes first: int64 (n,) each."""

    first: Ints
    second: Ints
    votes: Ints


def find_candidates(
    tiles: Sequence[Keypoints], advance: Callable[[int], None] = lambda n: None
) -> Candidates:
    """Every pair of tiles of which a keypoint of one has one of the other among its nearest.

    The index is inverted lists (faiss IVF), √n of them, so the work grows with n·√n.
    """
    indexed = [min(len(tile), INDEXED) for tile in tiles]
    owner = np.repeat(np.arange(len(tiles)), indexed)
    rank = np.concatenate([np.arange(n) for n in indexed])
    descriptors = np.concatenate([tile.descriptors[:INDEXED] for tile in tiles])
    index, reduce = _build(descriptors)
    asking = np.flatnonzero(rank < ASKING)
    found = [np.empty(0, np.int64)]
    for start in range(0, len(asking), _CHUNK):
        ask = asking[start : start + _CHUNK]
        distance, nearest = index.search(reduce(descriptors[ask]), min(NEIGHBOURS, len(owner)))
        keypoint = np.repeat(np.arange(len(ask)), nearest.shape[1])
        near = (nearest.ravel() >= 0) & (distance.ravel() < NEAR)
        other = owner[nearest.ravel()[near]]
        # A keypoint has one vote for a tile, however many of that tile's are near it.
        votes = np.unique(keypoint[near] * len(tiles) + other)
        here, there = owner[ask[votes // len(tiles)]], votes % len(tiles)
        apart = here != there
        low, high = np.minimum(here, there)[apart], np.maximum(here, there)[apart]
        found.append(low * len(tiles) + high)
        advance(int(owner[ask[-1]] - (owner[asking[start - 1]] if start else -1)))
    pairs, votes = np.unique(np.concatenate(found), return_counts=True)
    order = np.argsort(-votes, kind="stable")
    pairs = pairs[order]
    return Candidates(pairs // len(tiles), pairs % len(tiles), votes[order])


def _build(descriptors: Bytes) -> tuple[faiss.Index, Callable[[Bytes], Floats]]:
    """An index of all descriptors, and what makes a descriptor fit it."""
    if len(descriptors) <= EXACT:
        exact = faiss.IndexFlatL2(128)
        exact.add(fold(descriptors))
        return exact, fold
    rng = np.random.default_rng(0)
    lists = int(2 * len(descriptors) ** 0.5)
    sample = fold(rng.permutation(descriptors)[: 40 * lists])
    shrink = faiss.PCAMatrix(128, DIMENSIONS)
    shrink.train(sample)

    def reduce(some: Bytes) -> Floats:
        reduced: Floats = shrink.apply(fold(some))
        return reduced

    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(DIMENSIONS), DIMENSIONS, lists)
    index.cp.niter, index.cp.seed, index.nprobe = 8, 0, 2
    index.train(shrink.apply(sample))
    for start in range(0, len(descriptors), _CHUNK):
        index.add(reduce(descriptors[start : start + _CHUNK]))
    return index, reduce


def fold(descriptors: Bytes) -> Floats:
    """Descriptors float32 (n, 128) that are the same for a patch and its mirror image.

    Of each two bins that mirroring swaps, the sum and the size of the difference, both over √2: the
    distance is never more than that of the descriptors or of one and the mirrored other.
    """
    values = unit(descriptors)
    a, b = values[:, _LOWER], values[:, MIRROR[_LOWER]]
    folded: Floats = np.concatenate([a + b, np.abs(a - b)], axis=1)
    folded /= np.float32(2**0.5)
    return folded
