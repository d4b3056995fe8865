"""Which pairs of tiles are worth a look: votes of keypoints for their nearest in an index.

A bag of single keypoints, not of words. A vote also says how far one tile is turned against the
other, and only votes that say the same count (weak geometric consistency, Jégou et al. 2008). So
pairs that share a strip of their fields come before those that merely look alike, and the geometry
has little left to refuse.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from edgelung.train.groups.keypoints import MIRROR, Bytes, Floats, Keypoints, unit

NEAR = 0.25  # squared distance of descriptors that may vote
STRETCH = 1.6  # factor by which the sizes of the two keypoints of a vote may differ
TURNS = 30  # directions that are told apart …
SHIFTS = (0.0, 0.5)  # … twice, half a step apart: no turn is at the edge both times
DIMENSIONS = 48  # left of 128: distances survive, and everything is three times as fast
EXACT = 1e9  # descriptors times those that ask, up to which the index is searched in full
_CHUNK = 50_000

Ints = npt.NDArray[np.int64]
_LOWER = np.flatnonzero(np.arange(128) < MIRROR)  # mirroring swaps these bins with the rest


@dataclass(frozen=True)
class Voting:
    """How many of a tile's keypoints can be found, how many ask, and for how many each votes."""

    indexed: int
    asking: int
    neighbours: int


@dataclass(frozen=True)
class Candidates:
    """Pairs of tiles, first < second, most votes first: int64 (n,) each.

    A pair can be here twice, with the second tile as it is and `mirrored` (bool).
    """

    first: Ints
    second: Ints
    mirrored: npt.NDArray[np.bool_]
    votes: Ints


def find_candidates(tiles: Sequence[Keypoints], voting: Voting) -> Candidates:
    """Every pair of tiles of which a keypoint of one has one of the other among its nearest.

    The index is inverted lists (faiss IVF), √n of them, so the work grows with n·√n.
    """
    counts = [min(len(tile), voting.indexed) for tile in tiles]
    owner = np.repeat(np.arange(len(tiles)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    place = np.concatenate([tile.place[: voting.indexed] for tile in tiles])
    descriptors = np.concatenate([tile.descriptors[: voting.indexed] for tile in tiles])
    asking = np.flatnonzero(rank < voting.asking)
    index, reduce = _build(descriptors, len(descriptors) * len(asking) <= EXACT)
    found, counted = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    step = max(1, _CHUNK // voting.asking)  # whole tiles: all of one's keypoints vote at once
    for start in range(0, len(tiles), step):
        ask = asking[slice(*np.searchsorted(owner[asking], (start, start + step)))]
        if not len(ask):
            continue
        answers = min(voting.neighbours, len(owner))
        distance, nearest = index.search(reduce(descriptors[ask]), answers)
        near = (nearest >= 0) & (distance < NEAR)
        asked = np.repeat(ask, near.sum(axis=1))
        keys, votes = _count(len(tiles), owner, place, asked, nearest[near])
        found.append(keys)
        counted.append(votes)
    # Each tile of a pair has asked; what either found adds up.
    keys, same = np.unique(np.concatenate(found), return_inverse=True)
    votes = np.bincount(same, np.concatenate(counted), len(keys)).astype(np.int64)
    order = np.argsort(-votes, kind="stable")
    pairs, mirrored = np.divmod(keys[order], 2)
    return Candidates(*np.divmod(pairs, len(tiles)), mirrored.astype(bool), votes[order])


def _count(tiles: int, owner: Ints, place: Floats, asking: Ints, answer: Ints) -> tuple[Ints, Ints]:
    """The pairs that keypoints vote for, and the most votes of each that agree on the turn.

    A pair's key is 2 · (first · tiles + second), one more with the second tile turned over.
    """
    size, angle = place[:, 2], place[:, 3]
    fits = np.abs(np.log(size[asking] / size[answer])) < np.log(STRETCH)
    fits &= owner[asking] != owner[answer]
    asking, answer = asking[fits], answer[fits]
    pairs, pair = np.unique(owner[asking] * tiles + owner[answer], return_inverse=True)
    here, there = np.divmod(pairs, tiles)
    pairs = np.minimum(here, there) * tiles + np.maximum(here, there)
    keys, counts = [], []
    for mirrored, other in enumerate((angle[answer], 180 - angle[answer])):  # Keypoints.mirrored
        turn = (angle[asking] - other) % 360 * (TURNS / 360)
        most = np.zeros(len(pairs), np.int64)
        for shift in SHIFTS:
            bins = pair * TURNS + (turn + shift).astype(np.int64) % TURNS
            agreeing = np.bincount(bins, minlength=len(pairs) * TURNS).reshape(-1, TURNS)
            np.maximum(most, agreeing.max(axis=1), out=most)
        keys.append((2 * pairs + mirrored)[most > 1])  # one alone agrees with nobody
        counts.append(most[most > 1])
    return np.concatenate(keys), np.concatenate(counts)


def _build(descriptors: Bytes, in_full: bool) -> tuple[faiss.Index, Callable[[Bytes], Floats]]:
    """An index of all descriptors, and what makes a descriptor fit it."""
    if in_full:
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

    Of each two bins that mirroring swaps, the sum and the size of the difference, both over √2: the
    distance is never more than that of the descriptors or of one and the mirrored other.
    """
    values = unit(descriptors)
    a, b = values[:, _LOWER], values[:, MIRROR[_LOWER]]
    folded: Floats = np.concatenate([a + b, np.abs(a - b)], axis=1)
    folded /= np.float32(2**0.5)
    return folded
