"""Groups of tiles that show one piece of tissue: candidates, proofs, and what they connect."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

from threadpoolctl import threadpool_limits

from edgelung.train.groups.candidates import Voting, find_candidates
from edgelung.train.groups.coverage import furthest, lay_out
from edgelung.train.groups.disjoint_set import DisjointSet
from edgelung.train.groups.geometry import Proof, prove
from edgelung.train.groups.keypoints import CLOSE, FEW, MANY, Bytes, Keypoints, find_keypoints

LINK = 12  # inliers that connect two tiles; of 12,000 pairs refused none had over 5
DOUBT = 6  # inliers from which more keypoints are asked …
SURE = 20  # … up to these
MIN_VOTES = 4
# A tile's neighbours in the first round are the twenty of its source; in the second there are none.
VOTING = Voting(indexed=128, asking=64, neighbours=32)
NEIGHBOURS = 16
# In the second round all of MANY vote, fewer where there are thousands of groups: memory and time.
MOST_VOTERS = 2_500_000
TRIES = (4, 24)  # failed proofs that a tile may ask for in either round
REPRESENTATIVES = 2  # tiles that stand for a group in the second round
_BATCH = 64

Groups = tuple[int, int]
Pair = tuple[int, int, bool]  # places of two tiles, and whether the second is turned over


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

    Tiles with equal `identical[i]` (a hash) are one group from the start. Two rounds: every tile
    with few keypoints, then a few tiles of each group with many, which finds what the neighbours
    within a group kept out of sight.
    """
    found = Grouping()
    if not count:
        return found
    sets = DisjointSet(count)
    first: dict[object, int] = {}
    for i, key in enumerate(identical):
        sets.union(first.setdefault(key, i), i)
    search = _Search(read, sets, found)
    alone = sorted({sets.find(i) for i in range(count)})
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def keypoints(tile: int) -> Keypoints:
            points = find_keypoints(read(tile))
            advance(1)
            return points

        few = list(pool.map(keypoints, alone))
        found.plain = [i for i, points in zip(alone, few, strict=True) if len(points) < LINK]
        search.connect(pool, alone, few, VOTING, TRIES[0])
        del few
        chosen = _representatives([sets.find(i) for i in range(count)], found.links)
        each = min(MANY, max(FEW, MOST_VOTERS // len(chosen)))
        many = list(pool.map(lambda tile: search.many(tile).strongest(each), chosen))
        search.connect(pool, chosen, many, Voting(each, each, NEIGHBOURS), TRIES[1])
    numbers: dict[int, int] = {}
    found.group = [numbers.setdefault(sets.find(i), len(numbers)) for i in range(count)]
    found.refused.sort(key=lambda link: -link.proof.inliers)
    best: dict[Groups, Link] = {}  # of a pair that was tried more than once
    for link in found.refused:
        best.setdefault((min(link.first, link.second), max(link.first, link.second)), link)
    found.refused = list(best.values())
    return found


class _Search:
    """Proves candidates, most votes first, and joins what they connect."""

    def __init__(self, read: Callable[[int], Bytes], sets: DisjointSet, found: Grouping) -> None:
        self._sets = sets
        self._found = found
        self.many = lru_cache(maxsize=2048)(lambda tile: find_keypoints(read(tile), MANY))
        self._close = lru_cache(maxsize=128)(lambda tile: find_keypoints(read(tile), CLOSE))

    def connect(
        self,
        pool: ThreadPoolExecutor,
        tiles: Sequence[int],
        keypoints: Sequence[Keypoints],
        voting: Voting,
        tries: int,
    ) -> None:
        """Join the groups of `tiles` that are proven to show one piece of tissue.

        A pair is looked at while either tile has failed less than `tries` times, so that the work
        is bounded by the number of tiles, however much they look alike.
        """
        candidates = find_candidates(keypoints, voting)
        enough = candidates.votes >= MIN_VOTES
        columns = (candidates.first, candidates.second, candidates.mirrored)
        pairs = zip(*(column[enough].tolist() for column in columns), strict=True)
        failed: Counter[int] = Counter()

        def between(pair: Pair) -> Groups:
            low, high = sorted(self._sets.find(tiles[i]) for i in pair[:2])
            return low, high

        def is_open(pair: Pair) -> bool:
            low, high = between(pair)
            return low != high and min(failed[pair[0]], failed[pair[1]]) < tries

        def proof(pair: Pair) -> Proof | None:
            i, j, mirrored = pair
            found = prove(keypoints[i], keypoints[j], mirrored)
            for closer in (self.many, self._close):
                if found is None or not DOUBT <= found.inliers < SURE:
                    break
                again = prove(closer(tiles[i]), closer(tiles[j]), mirrored)
                found = max(found, again or found, key=lambda proof: proof.inliers)
            return found

        # Threads share the work pair by pair; numpy's own within a pair would be in their way.
        with threadpool_limits(1, "blas"):
            for batch in _batches(pairs, is_open, between):
                for pair, result in zip(batch, pool.map(proof, batch), strict=True):
                    i, j, _ = pair
                    if result is not None and result.inliers >= LINK:
                        low, high = between(pair)
                        if low != high:
                            self._found.links.append(Link(tiles[i], tiles[j], result))
                        self._sets.union(tiles[i], tiles[j])
                        continue
                    failed.update((i, j))
                    if result is not None:
                        self._found.refused.append(Link(tiles[i], tiles[j], result))


def _batches(
    pairs: Iterable[Pair], is_open: Callable[[Pair], bool], between: Callable[[Pair], Groups]
) -> Iterator[list[Pair]]:
    """Pairs to be proven side by side, one of each two groups: the others wait for its answer."""
    source, waiting, more = iter(pairs), list[Pair](), True
    while more or waiting:
        batch: dict[Groups, Pair] = {}
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


def _representatives(roots: Sequence[int], links: Sequence[Link]) -> list[int]:
    """A few tiles of every group, those that show most of it; all of a small one."""
    members: dict[int, list[int]] = {}
    for tile, root in enumerate(roots):
        members.setdefault(root, []).append(tile)
    within: dict[int, list[tuple[int, int, Proof]]] = {root: [] for root in members}
    for link in links:
        within[roots[link.first]].append((link.first, link.second, link.proof))
    chosen: list[int] = []
    for root, tiles in members.items():
        # A group joined of many fields needs more to stand for it.
        most = max(REPRESENTATIVES, len(tiles) // 15)
        if within[root]:
            linked = {tile for first, second, _ in within[root] for tile in (first, second)}
            tiles = furthest(lay_out(sorted(linked), within[root]), most)
        chosen += tiles[:most]
    return sorted(chosen)
