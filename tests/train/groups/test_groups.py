"""Near copies are found, strangers are not joined."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from edgelung.train.groups import grouping
from edgelung.train.groups.candidates import Voting, find_candidates, fold
from edgelung.train.groups.coverage import cover, lay_out
from edgelung.train.groups.geometry import Proof, prove
from edgelung.train.groups.grouping import LINK, VOTING, group_tiles
from edgelung.train.groups.keypoints import MANY, MIRROR, SIZE, find_keypoints


def test_a_mirrored_patch_permutes_its_descriptor(sources) -> None:
    plain = find_keypoints(sources[0])
    turned = find_keypoints(np.ascontiguousarray(sources[0][:, ::-1])).mirrored()
    cosine = plain.descriptors.astype(float) @ turned.descriptors.astype(float).T
    nearest = cosine.argmax(axis=1)
    there = np.hypot(*(plain.geometry[:, :2] - turned.geometry[nearest, :2]).T) < 2
    assert there.mean() > 0.7
    np.testing.assert_array_equal(MIRROR[MIRROR], np.arange(128))


def test_folded_descriptors_do_not_know_left_from_right(sources) -> None:
    descriptors = find_keypoints(sources[0]).descriptors
    np.testing.assert_allclose(fold(descriptors), fold(descriptors[:, MIRROR]), atol=1e-6)


@pytest.mark.parametrize(
    ("angle", "scale", "mirror"), [(25, 1.0, False), (-25, 1.15, True), (90, 0.9, False)]
)
def test_the_similarity_is_the_one_that_was_applied(sources, changed, angle, scale, mirror) -> None:
    first, second = sources[1], changed(sources[1], angle, scale, mirror)
    proof = prove(find_keypoints(second), find_keypoints(first), mirror)
    assert proof is not None
    assert proof.inliers >= LINK
    assert proof.mirrored == mirror
    wrong = prove(find_keypoints(second), find_keypoints(first), not mirror)
    assert wrong is None or wrong.inliers < LINK
    expected = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, scale)
    size = np.hypot(proof.matrix[0, 0], proof.matrix[1, 0])
    assert size == pytest.approx(scale, rel=0.02)
    if not mirror:
        np.testing.assert_allclose(proof.matrix[:, :2], expected[:, :2], atol=0.03)


def test_copies_are_grouped_and_strangers_are_not(sources, changed) -> None:
    copies = [(25, 1.0, False), (-20, 1.1, True), (10, 0.9, False)]
    tiles = [t for tile in sources for t in (tile, *(changed(tile, *how) for how in copies))]
    found = group_tiles(len(tiles), tiles.__getitem__, range(len(tiles)))
    expected = [i // 4 for i in range(len(tiles))]
    assert found.group == expected
    assert len(found.links) == len(tiles) - len(sources)  # a forest
    assert all(link.proof.inliers < LINK for link in found.refused)


def test_an_overlap_in_another_colour_is_found(sources, changed) -> None:
    wide = cv2.resize(np.hstack([sources[2], sources[3]]), (2 * SIZE, SIZE))
    left, right = wide[:, :SIZE], changed(np.ascontiguousarray(wide[:, 110 : 110 + SIZE]), 0, 1, 0)
    assert group_tiles(2, [left, right].__getitem__, "ab").group == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_strip_in_common_is_enough(sources, changed, seed: int) -> None:
    """Two fields that share a seventh of their width, each with turned and cropped copies."""
    rng = np.random.default_rng(seed)
    wide = np.hstack([sources[3 * seed], sources[3 * seed + 1]])
    fields = [wide[:, 64 : 64 + SIZE], wide[:, 64 + SIZE - 32 :]]
    wide_enough = [np.ascontiguousarray(cv2.resize(field, (SIZE, SIZE))) for field in fields]
    others = [tile for i, tile in enumerate(sources) if i // 3 != seed]
    tiles = [
        changed(tile, angle, 1 + abs(angle) / 60, bool(rng.integers(2)))
        for tile in (*wide_enough, *others)
        for angle in (0.0, *rng.uniform(8, 25, 5) * rng.choice([-1, 1], 5))
    ]
    found = group_tiles(len(tiles), tiles.__getitem__, range(len(tiles)))
    assert found.group == [max(0, i // 6 - 1) for i in range(len(tiles))]


def test_the_tiles_that_cover_most_of_a_field_represent_it() -> None:
    """Crops of one field, one of them mirrored, and a neighbour half a tile to the right."""

    def crop(x: float, y: float, scale: float, mirrored: bool = False) -> Proof:
        return Proof(50, mirrored, np.array([[scale, 0, x], [0, scale, y]], float))

    links = [(3, 5, crop(20, 30, 0.5)), (5, 6, crop(-60, -60, 1.6, True)), (3, 9, crop(112, 0, 1))]
    fields = lay_out([3, 5, 6, 9], links)
    np.testing.assert_allclose(fields[5], [[20, 30], [132, 30], [132, 142], [20, 142]])
    # 6 in pixels of 5: x' = 1.6 · (223 − x) − 60; in those of 3: 20 + x' / 2.
    assert fields[6][:, 0] == pytest.approx([168.4, -10.8, -10.8, 168.4])
    assert fields[6][:, 1] == pytest.approx([0, 0, 179.2, 179.2])
    assert sorted(cover(fields, 2)) == [3, 9]
    assert sorted(cover(fields, 4)) == [3, 5, 6, 9]
    assert sorted(cover(fields, 9)[:2]) == [3, 9]
    roots = [0, 1, 0, 3, 4, 3, 3, 0, 0, 3]  # 3, 5, 6, 9 and others without a link
    found = grouping._representatives(roots, [grouping.Link(*link) for link in links])
    assert found == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize("place", [0, 5, 12])
def test_blank_tiles_are_in_nobodys_way(sources, changed, place: int) -> None:
    """Wherever they stand: also last, where no keypoint tells how many tiles there are."""
    tiles = [*sources[:6], *(changed(tile, 12, 1.0, False) for tile in sources[:6])]
    tiles[place:place] = [np.full((SIZE, SIZE, 3), grey, np.uint8) for grey in (240, 250)]
    found = group_tiles(len(tiles), tiles.__getitem__, range(len(tiles)))
    of_sources = found.group[:place] + found.group[place + 2 :]
    assert of_sources[:6] == of_sources[6:]
    assert len(set(found.group)) == 6 + 2


def test_large_fields_are_covered_in_good_time() -> None:
    """2,000 tiles cut from a slide, each overlapping its neighbours: evenly spread, in seconds."""
    square = np.array([[0, 0], [224, 0], [224, 224], [0, 224]], float)
    places = [(168 * column, 168 * row) for row in range(20) for column in range(100)]
    fields = {tile: square + place for tile, place in enumerate(places)}
    chosen = cover(fields, 133)
    assert len(set(chosen)) == 133
    assert len({tile // 100 for tile in chosen}) >= 10
    far = {tile: field * (1e6 if tile else 1) for tile, field in fields.items()}
    assert len(set(cover(far, 133))) == 133  # links that err: spread over the list


def test_plain_tiles_join_only_identical_files() -> None:
    white = np.full((SIZE, SIZE, 3), 240, np.uint8)
    found = group_tiles(3, lambda index: white, ["same", "other", "same"])
    assert found.group == [0, 1, 0]
    assert found.plain == [0, 1]


def test_the_order_of_pairs_is_by_votes(sources, changed) -> None:
    tiles = [sources[0], sources[4], changed(sources[0], 5, 1.0, False)]
    found = find_candidates([find_keypoints(tile) for tile in tiles], VOTING)
    assert (found.first[0], found.second[0], found.mirrored[0]) == (0, 2, False)
    assert (np.diff(found.votes) <= 0).all()


def test_only_votes_for_one_turn_count(sources, changed) -> None:
    """Strangers share many a keypoint, but each at an angle of its own."""
    tiles = [*sources, changed(sources[0], 20, 1.2, True)]
    found = find_candidates([find_keypoints(tile, MANY) for tile in tiles], Voting(1000, 1000, 16))
    assert (found.first[0], found.second[0], found.mirrored[0]) == (0, 12, True)
    strangers = found.votes[(found.second != 12) | (found.first != 0)]
    assert strangers[0] < found.votes[0] / 4


def test_each_stage_has_a_bar_that_reaches_its_total(
    sources, changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: dict[str, list[int]] = {}

    @contextmanager
    def record(text: str, total: int) -> Iterator[Callable[[int], None]]:
        bars[text] = [0, total]

        def advance(n: int) -> None:
            bars[text][0] += n

        yield advance

    monkeypatch.setattr(grouping, "progress", record)
    tiles = [t for tile in sources for t in (tile, changed(tile, 25, 1.0, False))]
    # The first two are identical files: looked at once.
    group_tiles(len(tiles), tiles.__getitem__, ["same", "same", *range(2, len(tiles))])
    assert list(bars) == ["key points", "pairs", "key points, round 2", "pairs, round 2"]
    assert bars["key points"][1] == len(tiles) - 1
    for text, (done, total) in bars.items():
        assert done == total, text
