"""Near copies are found, strangers are not joined."""

import csv
import io
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edgelung.core.errors import EdgelungError
from edgelung.tiles.reader import ReaderSpec, decode_tile, read_tile
from edgelung.train.audit import audit_folder
from edgelung.train.groups import grouping
from edgelung.train.groups.candidates import Voting, find_candidates, fold
from edgelung.train.groups.coverage import furthest, lay_out
from edgelung.train.groups.geometry import Proof, prove
from edgelung.train.groups.grouping import LINK, VOTING, group_tiles
from edgelung.train.groups.keypoints import MANY, MIRROR, SIZE, find_keypoints
from edgelung.train.synthetic import write_dataset


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Twelve tiles of 224 px, each of another piece of (drawn) tissue."""
    folder = write_dataset(
        tmp_path_factory.mktemp("drawn") / "tiles", sources=4, tiles_per_source=1, size=SIZE
    )
    paths = sorted(folder.rglob("*.jpeg"))
    assert len(paths) == 12
    return [read_tile(path, ReaderSpec(size=SIZE)) for path in paths]


def changed(tile: np.ndarray, angle: float, scale: float, mirror: bool) -> np.ndarray:
    """What LC25000's augmentation does, then another white balance and a strong JPEG."""
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, scale)
    turned = cv2.warpAffine(tile, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
    if mirror:
        turned = turned[:, ::-1]
    tinted = np.clip(turned * np.array([1.05, 0.95, 0.9]) + 4, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(tinted).save(buffer, "JPEG", quality=60)
    return decode_tile(buffer.getvalue(), ReaderSpec(size=SIZE))


def test_a_mirrored_patch_permutes_its_descriptor(sources) -> None:
    plain = find_keypoints(sources[0])
    turned = find_keypoints(np.ascontiguousarray(sources[0][:, ::-1])).mirrored()
    cosine = plain.descriptors.astype(float) @ turned.descriptors.astype(float).T
    nearest = cosine.argmax(axis=1)
    there = np.hypot(*(plain.place[:, :2] - turned.place[nearest, :2]).T) < 2
    assert there.mean() > 0.7
    np.testing.assert_array_equal(MIRROR[MIRROR], np.arange(128))


def test_folded_descriptors_do_not_know_left_from_right(sources) -> None:
    descriptors = find_keypoints(sources[0]).descriptors
    np.testing.assert_allclose(fold(descriptors), fold(descriptors[:, MIRROR]), atol=1e-6)


@pytest.mark.parametrize(
    ("angle", "scale", "mirror"), [(25, 1.0, False), (-25, 1.15, True), (90, 0.9, False)]
)
def test_the_similarity_is_the_one_that_was_applied(sources, angle, scale, mirror) -> None:
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


def test_copies_are_grouped_and_strangers_are_not(sources) -> None:
    copies = [(25, 1.0, False), (-20, 1.1, True), (10, 0.9, False)]
    tiles = [t for tile in sources for t in (tile, *(changed(tile, *how) for how in copies))]
    found = group_tiles(len(tiles), tiles.__getitem__, range(len(tiles)))
    expected = [i // 4 for i in range(len(tiles))]
    assert found.group == expected
    assert len(found.links) == len(tiles) - len(sources)  # a forest
    assert all(link.proof.inliers < LINK for link in found.refused)


def test_an_overlap_in_another_colour_is_found(sources) -> None:
    wide = cv2.resize(np.hstack([sources[2], sources[3]]), (2 * SIZE, SIZE))
    left, right = wide[:, :SIZE], changed(np.ascontiguousarray(wide[:, 110 : 110 + SIZE]), 0, 1, 0)
    assert group_tiles(2, [left, right].__getitem__, "ab").group == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_strip_in_common_is_enough(sources, seed: int) -> None:
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


def test_what_shows_most_of_a_field_stands_for_it() -> None:
    """Crops of one field, one of them mirrored, and a neighbour half a tile to the right."""

    def crop(x: float, y: float, scale: float, mirrored: bool = False) -> Proof:
        return Proof(50, mirrored, np.array([[scale, 0, x], [0, scale, y]], float))

    links = [(3, 5, crop(20, 30, 0.5)), (5, 6, crop(-60, -60, 1.6, True)), (3, 9, crop(112, 0, 1))]
    fields = lay_out([3, 5, 6, 9], links)
    np.testing.assert_allclose(fields[5], [[20, 30], [132, 30], [132, 142], [20, 142]])
    # 6 in pixels of 5: x' = 1.6 · (223 − x) − 60; in those of 3: 20 + x' / 2.
    assert fields[6][:, 0] == pytest.approx([168.4, -10.8, -10.8, 168.4])
    assert fields[6][:, 1] == pytest.approx([0, 0, 179.2, 179.2])
    assert sorted(furthest(fields, 2)) == [3, 9]
    assert sorted(furthest(fields, 4)) == [3, 5, 6, 9]
    assert sorted(furthest(fields, 9)[:2]) == [3, 9]
    roots = [0, 1, 0, 3, 4, 3, 3, 0, 0, 3]  # 3, 5, 6, 9 and others without a link
    found = grouping._representatives(roots, [grouping.Link(*link) for link in links])
    assert found == [0, 1, 2, 3, 4, 9]


@pytest.mark.parametrize("place", [0, 5, 12])
def test_blank_tiles_are_in_nobodys_way(sources, place: int) -> None:
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
    chosen = furthest(fields, 133)
    assert len(set(chosen)) == 133
    assert len({tile // 100 for tile in chosen}) >= 10
    far = {tile: field * (1e6 if tile else 1) for tile, field in fields.items()}
    assert len(set(furthest(far, 133))) == 133  # links that err: spread over the list


def test_plain_tiles_join_only_identical_files() -> None:
    white = np.full((SIZE, SIZE, 3), 240, np.uint8)
    found = group_tiles(3, lambda index: white, ["same", "other", "same"])
    assert found.group == [0, 1, 0]
    assert found.plain == [0, 1]


def test_the_order_of_pairs_is_by_votes(sources) -> None:
    tiles = [sources[0], sources[4], changed(sources[0], 5, 1.0, False)]
    found = find_candidates([find_keypoints(tile) for tile in tiles], VOTING)
    assert (found.first[0], found.second[0], found.mirrored[0]) == (0, 2, False)
    assert (np.diff(found.votes) <= 0).all()


def test_only_votes_for_one_turn_count(sources) -> None:
    """Strangers share many a keypoint, but each at an angle of its own."""
    tiles = [*sources, changed(sources[0], 20, 1.2, True)]
    found = find_candidates([find_keypoints(tile, MANY) for tile in tiles], Voting(1000, 1000, 16))
    assert (found.first[0], found.second[0], found.mirrored[0]) == (0, 12, True)
    strangers = found.votes[(found.second != 12) | (found.first != 0)]
    assert strangers[0] < found.votes[0] / 4


@pytest.fixture
def folder(sources, tmp_path: Path) -> Path:
    """Two classes of two sources with a copy each; one more copy stands in the wrong class."""
    for number, (label, tile) in enumerate(zip("aabb", sources[:4], strict=True)):
        place = tmp_path / "data" / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number}.png")
        Image.fromarray(changed(tile, 15, 1.0, True)).save(place / f"{number}-copy.png")
    Image.fromarray(changed(sources[0], -15, 1.0, False)).save(tmp_path / "data/b/wrong.png")
    return tmp_path / "data"


def test_an_audit_names_what_is_odd_and_goes_on(folder: Path, tmp_path: Path) -> None:
    (folder / "c").mkdir()
    for place in ("a", "c"):  # of class c nothing can be read
        (folder / place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    found = audit_folder(folder, tmp_path / "audit", None, lambda text: None)
    assert (found["tiles"], found["groups"], found["single_tiles"]) == (9, 4, 0)
    assert sorted(found["unreadable"]) == ["a/broken.png", "c/broken.png"]
    counts = {name: (c["tiles"], c["left_out"]) for name, c in found["classes"].items()}
    assert counts == {"a": (4, 1), "b": (5, 0), "c": (0, 1)}
    (mixed,) = found["groups_across_classes"].values()
    assert mixed == ["a/0-copy.png", "a/0.png", "b/wrong.png"]
    assert (found["identical_files"], found["identical"]) == (0, [])
    with (tmp_path / "audit/groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert len({row["group"] for row in rows}) == 4
    page = (tmp_path / "audit/report.html").read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "broken.png" in page
    assert "<td>c</td><td>0</td><td>0</td><td>1</td><td>–</td><td>–</td>" in page
    assert sorted(os.listdir(tmp_path / "audit")) == [
        "audit.json",
        "groups.csv",
        "links.csv",
        "report.html",
    ]


def test_an_audit_names_identical_files_and_shows_links_across_classes(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "a" / "1.png", folder / "b" / "same.png")
    found = audit_folder(folder, tmp_path / "audit", None, lambda text: None)
    copies = [{"path": "a/1.png", "class": "a"}, {"path": "b/same.png", "class": "b"}]
    assert (found["identical_files"], found["identical"]) == (1, [copies])
    page = (tmp_path / "audit/report.html").read_text("utf-8")
    assert "a/1.png (a), b/same.png (b)" in page
    across = page[page.index("Links across classes") : page.index("The largest groups")]
    assert "b/wrong.png" in across
    assert "<img" in across


def test_a_refused_pair_is_told_once(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    tiles = [np.asarray(Image.open(path)) for path in paths]
    refused = group_tiles(len(tiles), lambda i: tiles[i], paths).refused
    pairs = [frozenset((link.first, link.second)) for link in refused]
    assert len(pairs) == len(set(pairs))


def test_known_groups_without_a_pair_have_no_recall(folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    known.write_text("path,group\n" + "".join(f"{p},{i}\n" for i, p in enumerate(paths)))
    found = audit_folder(folder, tmp_path / "audit", known, lambda text: None)["known"]
    assert found["recall"] is None
    assert found["precision_as_published"] == 0.0


def test_a_class_may_be_called_mixed(folder: Path, tmp_path: Path) -> None:
    """As the mixed subtype is."""
    (folder / "a").rename(folder / "mixed-type")
    found = audit_folder(folder, tmp_path / "audit", None, lambda text: None)
    assert len(found["groups_across_classes"]) == 1


def test_an_audit_shows_links_between_known_groups(folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    # The known groups miss that 1-copy shows what 1 shows.
    groups = {path: path.split("/")[1][0] for path in paths}
    groups |= {"a/1-copy.png": "other", "b/wrong.png": "0"}
    known.write_text("path,group\n" + "".join(f"{p},{g}\n" for p, g in groups.items()))
    found = audit_folder(folder, tmp_path / "audit", known, lambda text: None)["known"]
    assert [(link["first"], link["second"]) for link in found["links"]] == [("1", "other")]
    assert found["recall"] == found["precision"] == 1.0
    assert found["precision_as_published"] < 1.0
    assert found["corrected_groups"] == found["groups"] - 1


def test_an_audit_writes_over_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "mine.txt").write_text("keep")
    with pytest.raises(EdgelungError, match="already exists"):
        audit_folder(folder, tmp_path / "audit", None, lambda text: None)
