"""Group tiles that show one piece of tissue: propose pairs, prove them, join what they connect."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from threadpoolctl import threadpool_limits

from edgelung.core.progress import Advance
from edgelung.core.terminal import progress
from edgelung.core.workers import Workers
from edgelung.train.groups.candidates import Voting, find_candidates
from edgelung.train.groups.coverage import cover, lay_out
from edgelung.train.groups.disjoint_set import DisjointSet
from edgelung.train.groups.geometry import Proof, prove
from edgelung.train.groups.keypoints import CLOSE, FEW, MANY, Bytes, Keypoints, find_keypoints

LINK = 12  # inliers that connect two tiles; none of 12,000 refused pairs had more than 5
DOUBT = 6  # from this number of inliers a pair is tried again with more keypoints …
SURE = 20  # … up to this number
MIN_VOTES = 4
# In the first round a tile's nearest neighbours are the twenty of its source; in the second round
# there are none.
VOTING = Voting(indexed=128, queries=64, neighbours=32)
NEIGHBOURS = 16
# In the second round all MANY keypoints vote; fewer with thousands of groups, to bound memory.
MAX_VOTERS = 2_500_000
TRIES = (4, 24)  # failed proofs per tile in the first and in the second round
REPRESENTATIVES = 2  # tiles per group in the second round
_BATCH = 64  # pairs that are proven in parallel

Groups = tuple[int, int]
Pair = tuple[int, int, bool]  # positions of two tiles, and whether the second is mirrored


@dataclass(frozen=True, slots=True)
class Link:
    """Two tiles and the similarity between them; `first` and `second` index the tiles."""

    first: int
    second: int
    proof: Proof


@dataclass(frozen=True)
class Grouping:
    """The groups of tiles and why they are so.

    `group[i]` is the number of tile i's group; groups are numbered in order of their first tiles.
    `links` connect each group. `refused` are pairs that looked alike but were not proven, most
    inliers first. `plain` are tiles with too few keypoints to prove anything; only identical files
    can join them.
    """

    group: list[int] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    refused: list[Link] = field(default_factory=list)
    plain: list[int] = field(default_factory=list)


def group_tiles(
    count: int,
    read: Callable[[int], Bytes],
    identical: Sequence[object],
) -> Grouping:
    """Group `count` tiles by what they show.

    The first round compares all tiles, with few keypoints each. The second compares a few tiles of
    each group, with many keypoints: it finds overlaps of groups that were hidden in the first round
    because the nearest neighbours of a tile all came from its own group.

    Args:
        count: number of tiles.
        read: returns tile i as uint8 (224, 224, 3); called from several threads.
        identical: a hash of each tile; tiles with equal hashes are one group from the start.
    """
    if not count:
        return Grouping()
    sets = DisjointSet(count)
    first: dict[object, int] = {}
    for i, key in enumerate(identical):
        sets.union(first.setdefault(key, i), i)
    search = _Search(read, sets)
    distinct = sorted({sets.find(i) for i in range(count)})
    with Workers(os.cpu_count()) as pool:
        few = _map(pool, "key points", lambda tile: find_keypoints(read(tile)), distinct)
        plain = [i for i, points in zip(distinct, few, strict=True) if len(points) < LINK]
        search.connect(pool, "pairs", distinct, few, VOTING, TRIES[0])
        del few
        selected = _representatives([sets.find(i) for i in range(count)], search.links)
        limit = min(MANY, max(FEW, MAX_VOTERS // len(selected)))
        many = _map(
            pool, "key points, round 2", lambda tile: search.many(tile).strongest(limit), selected
        )
        voting = Voting(limit, limit, NEIGHBOURS)
        search.connect(pool, "pairs, round 2", selected, many, voting, TRIES[1])
    numbers: dict[int, int] = {}
    group = [numbers.setdefault(sets.find(i), len(numbers)) for i in range(count)]
    return Grouping(group, search.links, _best_of_each_pair(search.refused), plain)


def _map(
    pool: Workers,
    text: str,
    function: Callable[[int], Keypoints],
    tiles: Sequence[int],
) -> list[Keypoints]:
    """The function of each tile, computed in parallel under a progress bar of its own."""
    with progress(text, len(tiles)) as advance:

        def counted(tile: int) -> Keypoints:
            keypoints = function(tile)
            advance(1)
            return keypoints

        return list(pool.map(counted, tiles))


class _Search:
    """Proves candidate pairs, those with most votes first, and joins the sets they connect."""

    def __init__(self, read: Callable[[int], Bytes], sets: DisjointSet) -> None:
        self._sets = sets
        self.links: list[Link] = []
        self.refused: list[Link] = []
        self.many = lru_cache(maxsize=2048)(lambda tile: find_keypoints(read(tile), MANY))
        self._close = lru_cache(maxsize=128)(lambda tile: find_keypoints(read(tile), CLOSE))

    def connect(
        self,
        pool: Workers,
        text: str,
        tiles: Sequence[int],
        keypoints: Sequence[Keypoints],
        voting: Voting,
        tries: int,
    ) -> None:
        """Join the groups of `tiles` that are proven to show one piece of tissue.

        A pair is tried while either of its tiles has failed less than `tries` times. So the work is
        bounded by the number of tiles, however much they look alike. `text` names the progress bar,
        which counts the pairs that are proven, refused or no longer open.
        """
        candidates = find_candidates(keypoints, voting)
        enough = candidates.votes >= MIN_VOTES
        columns = (candidates.first, candidates.second, candidates.mirrored)
        pairs = list(zip(*(column[enough].tolist() for column in columns), strict=True))
        failures: Counter[int] = Counter()

        def groups_of(pair: Pair) -> Groups:
            low, high = sorted(self._sets.find(tiles[i]) for i in pair[:2])
            return low, high

        def is_open(pair: Pair) -> bool:
            low, high = groups_of(pair)
            return low != high and min(failures[pair[0]], failures[pair[1]]) < tries

        def try_proof(pair: Pair) -> Proof | None:
            return self._prove(tiles, keypoints, pair)

        # The threads share the pairs; BLAS threads within a pair would compete with them.
        with threadpool_limits(1, "blas"), progress(text, len(pairs)) as advance:
            for batch in _batches(_counted(pairs, advance), is_open, groups_of):
                for pair, proof in zip(batch, pool.map(try_proof, batch), strict=True):
                    i, j, _ = pair
                    if proof is not None and proof.inliers >= LINK:
                        low, high = groups_of(pair)
                        if low != high:
                            self.links.append(Link(tiles[i], tiles[j], proof))
                        self._sets.union(tiles[i], tiles[j])
                        continue
                    failures.update((i, j))
                    if proof is not None:
                        self.refused.append(Link(tiles[i], tiles[j], proof))

    def _prove(
        self, tiles: Sequence[int], keypoints: Sequence[Keypoints], pair: Pair
    ) -> Proof | None:
        """Prove a pair; a doubtful result is tried again with more keypoints."""
        i, j, mirrored = pair
        proof = prove(keypoints[i], keypoints[j], mirrored)
        for more_keypoints in (self.many, self._close):
            if proof is None or not DOUBT <= proof.inliers < SURE:
                break
            again = prove(more_keypoints(tiles[i]), more_keypoints(tiles[j]), mirrored)
            proof = max(proof, again or proof, key=lambda p: p.inliers)
        return proof


def _counted(pairs: Iterable[Pair], advance: Advance) -> Iterator[Pair]:
    for pair in pairs:
        yield pair
        advance(1)


def _batches(
    pairs: Iterable[Pair], is_open: Callable[[Pair], bool], groups_of: Callable[[Pair], Groups]
) -> Iterator[list[Pair]]:
    """Batches of pairs to prove in parallel, at most one for each two groups.

    The other pairs of two groups wait for the result of the first.
    """
    source, waiting, more = iter(pairs), list[Pair](), True
    while more or waiting:
        batch: dict[Groups, Pair] = {}
        postponed: list[Pair] = []
        for pair in waiting:
            if is_open(pair):
                if len(batch) < _BATCH and groups_of(pair) not in batch:
                    batch[groups_of(pair)] = pair
                else:
                    postponed.append(pair)
        waiting = postponed
        while len(batch) < _BATCH and (new := next(source, None)) is not None:
            if is_open(new):
                if groups_of(new) in batch:
                    waiting.append(new)
                else:
                    batch[groups_of(new)] = new
        more = len(batch) == _BATCH
        if batch:
            yield list(batch.values())


def _best_of_each_pair(refused: Sequence[Link]) -> list[Link]:
    """Refused pairs, most inliers first; of a pair that was tried several times the best one."""
    best: dict[Groups, Link] = {}
    for link in sorted(refused, key=lambda link: -link.proof.inliers):
        best.setdefault((min(link.first, link.second), max(link.first, link.second)), link)
    return list(best.values())


def _representatives(roots: Sequence[int], links: Sequence[Link]) -> list[int]:
    """A few tiles of every group: those that together cover most of it; all of a small group."""
    members: dict[int, list[int]] = {}
    for tile, root in enumerate(roots):
        members.setdefault(root, []).append(tile)
    links_of: dict[int, list[tuple[int, int, Proof]]] = {root: [] for root in members}
    for link in links:
        links_of[roots[link.first]].append((link.first, link.second, link.proof))
    selected: list[int] = []
    for root, tiles in members.items():
        # A group that joins many fields needs more representatives.
        limit = max(REPRESENTATIVES, len(tiles) // 15)
        if links_of[root]:
            linked = {tile for first, second, _ in links_of[root] for tile in (first, second)}
            tiles = cover(lay_out(sorted(linked), links_of[root]), limit)
        selected += tiles[:limit]
    return sorted(selected)
