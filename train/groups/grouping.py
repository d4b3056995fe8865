"""Groups of tiles that show one piece of tissue: candidates, proofs, and what they connect."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from edgelung.train.forest import Forest
from edgelung.train.groups.candidates import Candidates, find_candidates
from edgelung.train.groups.geometry import Proof, prove
from edgelung.train.groups.keypoints import MANY, Bytes, Keypoints, find_keypoints

LINK = 12  # inliers that connect two tiles; of 95,000 pairs of strangers none had over 5
DOUBT = 6  # inliers among the few keypoints at which the many are asked
SURE = 20  # inliers among the few that need no second look
MIN_VOTES = 6
TRIES = 4  # failed proofs that a tile may ask for in the first round
NEIGHBOURS = 4  # groups that each group is compared with in the second round …
PAIRS = 2  # … by so many pairs of tiles
_BATCH = 64

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Link:
    """Two tiles and the similarity between them; `first` and `second` index the tiles."""

    first: int
    second: int
    proof: Proof


@dataclass
class Grouping:
    """`group[i]`: number of tile i's group, in order of first tiles; `links` connect each group.

    `refused`: pairs that looked alike and fell short, the nearest to a link first. `plain`: tiles
    with too few keypoints to prove anything; only identical files can join them.
    """

    group: list[int] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    refused: list[Link] = field(default_factory=list)
    plain: list[int] = field(default_factory=list)


def group_tiles(
    count: int,
    read: Callable[[int], Bytes],
    identical: Sequence[object],
    advance: Callable[..., None] = lambda n=1, note="": None,
) -> Grouping:
    """Group `count` tiles; `read(i)` gives tile i as uint8 [224, 224, 3], from any thread.

    Tiles with equal `identical[i]` (a hash) are one group from the start. Two rounds: pairs of
    tiles that many of their few keypoints vote for, then pairs of groups that many pairs of tiles
    vote for faintly, with many keypoints: two fields that overlap in a corner.
    """
    found = Grouping()
    if not count:
        return found
    forest = Forest(count)
    first: dict[object, int] = {}
    for i, key in enumerate(identical):
        forest.join(first.setdefault(key, i), i)
    search = _Search(read, forest, found)
    alone = sorted({forest.root(i) for i in range(count)})
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def keypoints(tile: int) -> Keypoints:
            points = find_keypoints(read(tile))
            advance(1)
            return points

        few = list(pool.map(keypoints, alone))
        found.plain = [i for i, points in zip(alone, few, strict=True) if len(points) < LINK]
        candidates = find_candidates(few)
        search.connect(pool, alone, few, candidates)
        del few
        search.revisit(pool, alone, candidates)
    numbers: dict[int, int] = {}
    found.group = [numbers.setdefault(forest.root(i), len(numbers)) for i in range(count)]
    found.refused.sort(key=lambda link: -link.proof.inliers)
    return found


class _Search:
    """Proves candidates, most votes first, and joins what they connect."""

    def __init__(self, read: Callable[[int], Bytes], forest: Forest, found: Grouping) -> None:
        self._forest = forest
        self._found = found
        self.many = lru_cache(maxsize=2048)(lambda tile: find_keypoints(read(tile), MANY))

    def connect(
        self,
        pool: ThreadPoolExecutor,
        tiles: Sequence[int],
        keypoints: Sequence[Keypoints],
        candidates: Candidates,
    ) -> None:
        """Join tiles that are proven to show one piece of tissue.

        A pair is looked at while either tile has failed less than TRIES times, so that the work
        is bounded by the number of tiles, however much they look alike.
        """
        enough = candidates.votes >= MIN_VOTES
        pairs = zip(
            candidates.first[enough].tolist(), candidates.second[enough].tolist(), strict=True
        )
        failed: Counter[int] = Counter()

        def between(pair: Pair) -> Pair:
            low, high = sorted(self._forest.root(tiles[i]) for i in pair)
            return low, high

        def is_open(pair: Pair) -> bool:
            low, high = between(pair)
            return low != high and min(failed[pair[0]], failed[pair[1]]) < TRIES

        def proof(pair: Pair) -> Proof | None:
            i, j = pair
            found = prove(keypoints[i], keypoints[j])
            if found is None or not DOUBT <= found.inliers < SURE:
                return found
            return prove(self.many(tiles[i]), self.many(tiles[j]))

        # Threads share the work pair by pair; numpy's own within a pair would be in their way.
        with threadpool_limits(1, "blas"):
            for batch in _batches(pairs, is_open, between):
                for (i, j), result in zip(batch, pool.map(proof, batch), strict=True):
                    if result is not None and result.inliers >= LINK:
                        if is_open((i, j)):
                            self._found.links.append(Link(tiles[i], tiles[j], result))
                        self._forest.join(tiles[i], tiles[j])
                        continue
                    failed.update((i, j))
                    if result is not None:
                        self._found.refused.append(Link(tiles[i], tiles[j], result))

    def revisit(
        self, pool: ThreadPoolExecutor, tiles: Sequence[int], candidates: Candidates
    ) -> None:
        """Join groups that overlap too little for any one pair of tiles to stand out by its votes.

        Chance votes are spread over all groups; an overlap gathers them between two.
        """

        def best(pairs: list[Pair]) -> Link | None:
            found = None
            for first, second in pairs:
                proof = prove(self.many(first), self.many(second))
                if proof and (found is None or proof.inliers > found.proof.inliers):
                    found = Link(first, second, proof)
                if found and found.proof.inliers >= LINK:
                    break
            return found

        roots = np.array([self._forest.root(tile) for tile in tiles])
        chosen = _neighbours(roots, candidates)
        with threadpool_limits(1, "blas"):
            for start in range(0, len(chosen), _BATCH):
                batch = [
                    [(tiles[i], tiles[j]) for i, j in pairs]
                    for pairs in chosen[start : start + _BATCH]
                    if self._forest.root(tiles[pairs[0][0]])
                    != self._forest.root(tiles[pairs[0][1]])
                ]
                for link in filter(None, pool.map(best, batch)):
                    if link.proof.inliers < LINK:
                        self._found.refused.append(link)
                    elif self._forest.root(link.first) != self._forest.root(link.second):
                        self._found.links.append(link)
                        self._forest.join(link.first, link.second)


def _neighbours(roots: npt.NDArray[np.int64], candidates: Candidates) -> list[list[Pair]]:
    """For each two groups that are near by the votes of their tiles, the pairs with most votes.

    `roots`: the group of each tile. One vote is chance; what goes beyond it is squared and summed
    over the tiles of two groups, and a group's neighbours are those with the largest sums.
    """
    kept = candidates.votes > 1
    kept &= roots[candidates.first] != roots[candidates.second]
    first, second = candidates.first[kept], candidates.second[kept]
    ends = np.sort([roots[first], roots[second]], axis=0)
    count = int(roots.max()) + 1
    between, pair_of = np.unique(ends[0] * count + ends[1], return_inverse=True)
    weight = np.bincount(pair_of, weights=(candidates.votes[kept] - 1.0) ** 2)
    taken: Counter[int] = Counter()
    wanted: dict[int, list[Pair]] = {}
    for pair in np.argsort(-weight, kind="stable").tolist():
        low, high = divmod(int(between[pair]), count)
        if min(taken[low], taken[high]) < NEIGHBOURS:
            wanted[pair] = []
            taken.update((low, high))
    # Candidates come with most votes first, and so do each two groups' pairs of tiles.
    ours = np.isin(pair_of, list(wanted))
    columns = (pair_of[ours].tolist(), first[ours].tolist(), second[ours].tolist())
    for pair, i, j in zip(*columns, strict=True):
        if len(wanted[pair]) < PAIRS:
            wanted[pair].append((i, j))
    return sorted(wanted.values())


def _batches(
    pairs: Iterable[Pair], is_open: Callable[[Pair], bool], between: Callable[[Pair], Pair]
) -> Iterator[list[Pair]]:
    """Pairs to be proven side by side, one of each two groups: the others wait for its answer."""
    source, waiting, more = iter(pairs), list[Pair](), True
    while more or waiting:
        batch: dict[Pair, Pair] = {}
        still: list[Pair] = []
        for pair in waiting:
            if is_open(pair):
                if len(batch) < _BATCH and between(pair) not in batch:
                    batch[between(pair)] = pair
                else:
                    still.append(pair)
        waiting = still
        while len(batch) < _BATCH and (new := next(source, None)) is not None:
            if is_open(new):
                if between(new) in batch:
                    waiting.append(new)
                else:
                    batch[between(new)] = new
        more = len(batch) == _BATCH
        if batch:
            yield list(batch.values())
