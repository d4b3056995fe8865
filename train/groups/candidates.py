"""Candidate pairs of tiles: keypoints vote for their nearest neighbours in an index.

The index holds single keypoints, not visual words. A vote also gives the rotation between the two
tiles, and only votes for the same rotation are counted together (weak geometric consistency, Jégou
et al. 2008). So pairs that share a strip of tissue rank before pairs that only look alike, and few
candidates fail the geometric proof.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.keypoints import MIRROR, Bytes, Floats, Keypoints, unit

NEAR = 0.25  # largest squared distance of descriptors that vote
STRETCH = 1.6  # largest ratio of the sizes of the two keypoints of a vote
ROTATION_BINS = 30  # rotations that are told apart …
SHIFTS = (0.0, 0.5)  # … in two histograms, half a bin apart: no rotation is at an edge in both
DIMENSIONS = 48  # of 128, by PCA: distances are kept well enough, and search is three times faster
EXACT = 1e9  # descriptors times queries, up to which the search is exhaustive
_CHUNK = 50_000  # queries at once; bounds memory

Ints = npt.NDArray[np.int64]
_LOWER = np.flatnonzero(np.arange(128) < MIRROR)  # mirroring swaps these bins with the rest


@dataclass(frozen=True)
class Voting:
    """How many keypoints of a tile are indexed, how many are queries, and the votes of each."""

    indexed: int
    queries: int
    neighbours: int


@dataclass(frozen=True)
class Candidates:
    """Pairs of tiles, first < second, most votes first: int64 (n,) each.

    A pair can occur twice: with the second tile as it is, and `mirrored` (bool).
    """

    first: Ints
    second: Ints
    mirrored: npt.NDArray[np.bool_]
    votes: Ints


def find_candidates(tiles: Sequence[Keypoints], voting: Voting) -> Candidates:
    """Find the pairs of tiles whose keypoints are among each other's nearest neighbours.

    Large sets are searched in about √n inverted lists (faiss IVF), so the work grows with n·√n.
    """
    counts = [min(len(tile), voting.indexed) for tile in tiles]
    owner = np.repeat(np.arange(len(tiles)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    geometry = np.concatenate([tile.geometry[: voting.indexed] for tile in tiles])
    descriptors = np.concatenate([tile.descriptors[: voting.indexed] for tile in tiles])
    queries = np.flatnonzero(rank < voting.queries)
    index, reduce = _build(descriptors, len(descriptors) * len(queries) <= EXACT)
    all_keys, all_votes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    step = max(1, _CHUNK // voting.queries)  # whole tiles: all keypoints of one vote together
    for start in range(0, len(tiles), step):
        query = queries[slice(*np.searchsorted(owner[queries], (start, start + step)))]
        if not len(query):
            continue
        neighbours = min(voting.neighbours, len(owner))
        distance, nearest = index.search(reduce(descriptors[query]), neighbours)
        near = (nearest >= 0) & (distance < NEAR)
        voters = np.repeat(query, near.sum(axis=1))
        keys, votes = _count(len(tiles), owner, geometry, voters, nearest[near])
        all_keys.append(keys)
        all_votes.append(votes)
    # Both tiles of a pair were queried: add up their votes.
    keys, same = np.unique(np.concatenate(all_keys), return_inverse=True)
    votes = np.bincount(same, np.concatenate(all_votes), len(keys)).astype(np.int64)
    order = np.argsort(-votes, kind="stable")
    pairs, mirrored = np.divmod(keys[order], 2)
    return Candidates(*np.divmod(pairs, len(tiles)), mirrored.astype(bool), votes[order])


def _count(
    tiles: int, owner: Ints, geometry: Floats, voters: Ints, neighbours: Ints
) -> tuple[Ints, Ints]:
    """Pairs of tiles and the largest number of their votes that agree on the rotation.

    `voters` and `neighbours` (n,) are keypoints that match. The key of a pair is
    2 · (first · tiles + second), plus one if the second tile is mirrored.
    """
    size, angle = geometry[:, 2], geometry[:, 3]
    valid = np.abs(np.log(size[voters] / size[neighbours])) < np.log(STRETCH)
    valid &= owner[voters] != owner[neighbours]
    voters, neighbours = voters[valid], neighbours[valid]
    pairs, pair = np.unique(owner[voters] * tiles + owner[neighbours], return_inverse=True)
    one, other = np.divmod(pairs, tiles)
    pairs = np.minimum(one, other) * tiles + np.maximum(one, other)
    keys, counts = [], []
    angles = (angle[neighbours], 180 - angle[neighbours])  # as it is, and as Keypoints.mirrored
    for mirrored, neighbour_angle in enumerate(angles):
        rotation = (angle[voters] - neighbour_angle) % 360 * (ROTATION_BINS / 360)
        most = np.zeros(len(pairs), np.int64)
        for shift in SHIFTS:
            bins = pair * ROTATION_BINS + (rotation + shift).astype(np.int64) % ROTATION_BINS
            histogram = np.bincount(bins, minlength=len(pairs) * ROTATION_BINS)
            np.maximum(most, histogram.reshape(-1, ROTATION_BINS).max(axis=1), out=most)
        keys.append((2 * pairs + mirrored)[most > 1])  # a single vote agrees with no other
        counts.append(most[most > 1])
    return np.concatenate(keys), np.concatenate(counts)


def _build(descriptors: Bytes, exhaustive: bool) -> tuple[faiss.Index, Callable[[Bytes], Floats]]:
    """An index of all descriptors, and the function that converts descriptors for it."""
    if exhaustive:
        exact = faiss.IndexFlatL2(128)
        exact.add(fold(descriptors))
        return exact, fold
    rng = np.random.default_rng(0)
    lists = int(2 * len(descriptors) ** 0.5)
    sample = fold(descriptors[rng.permutation(len(descriptors))[: 40 * lists]])
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

    For each two bins that mirroring swaps: their sum and their absolute difference, divided by √2.
    The distance of two folded descriptors is at most the distance of the descriptors, and at most
    that of one and the mirrored other.
    """
    values = unit(descriptors)
    a, b = values[:, _LOWER], values[:, MIRROR[_LOWER]]
    folded: Floats = np.concatenate([a + b, np.abs(a - b)], axis=1)
    folded /= np.float32(2**0.5)
    return folded
