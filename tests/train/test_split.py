"""Groups before splits."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from edgelung.artifacts.run import Counts, SplitRow, split_counts
from edgelung.core.errors import EdgelungError
from edgelung.train.index import IndexedTile, index_tiles, read_groups
from edgelung.train.recipe import Split
from edgelung.train.split import (
    SplitTile,
    far_from_shares,
    join_duplicates,
    mates_in_training,
    of_two_classes,
    split_at_random,
    split_by_group,
)


def counts_of(split: list[SplitTile]) -> Counts:
    rows = [SplitRow(s.tile.path, s.tile.label, s.group, s.subset, s.tile.sha256) for s in split]
    return split_counts(rows)


def tile(path: str, label: str = "a", sha: str = "") -> IndexedTile:
    return IndexedTile(path, label, 10, 10, sha or path)


def many(groups: int, per_group: int, label: str) -> tuple[list[IndexedTile], list[str]]:
    tiles = [tile(f"{label}/{g}_{i}", label) for g in range(groups) for i in range(per_group)]
    return tiles, [f"{label}:{g}" for g in range(groups) for _ in range(per_group)]


@pytest.mark.parametrize("seed", range(5))
def test_no_group_straddles_and_shares_are_near(seed: int) -> None:
    tiles, groups = [], []
    for label, count in (("a", 40), ("b", 25), ("c", 60)):
        more, names = many(count, 7, label)
        tiles += more
        groups += names
    split = split_by_group(tiles, groups, Split(seed=seed))
    subsets: dict[str, set[str]] = {}
    for row in split:
        subsets.setdefault(row.group, set()).add(row.subset)
    assert all(len(found) == 1 for found in subsets.values())
    for label in "abc":
        counts = Counter(row.subset for row in split if row.tile.label == label)
        total = sum(counts.values())
        assert counts["train"] / total == pytest.approx(0.70, abs=0.05)
        assert counts["val"] / total == pytest.approx(0.15, abs=0.05)
        assert counts["test"] / total == pytest.approx(0.15, abs=0.05)


def test_the_split_is_a_function_of_the_seed() -> None:
    tiles, groups = many(20, 2, "a")
    first = split_by_group(tiles, groups, Split(seed=1))
    assert first == split_by_group(tiles, groups, Split(seed=1))
    assert first != split_by_group(tiles, groups, Split(seed=2))


def test_three_groups_reach_three_subsets_and_two_are_refused() -> None:
    tiles, groups = many(3, 50, "a")
    counts = counts_of(split_by_group(tiles, groups, Split()))
    assert all(counts[subset]["a"].groups == 1 for subset in ("train", "val", "test"))
    with pytest.raises(EdgelungError, match="class a has 2 group"):
        split_by_group(tiles[:100], groups[:100], Split())


def test_a_huge_group_is_trained_on() -> None:
    for seed in range(8):
        tiles, groups = many(3, 1, "a")
        tiles += [tile(f"a/{i}") for i in range(40)]
        groups += ["huge"] * 40
        split = split_by_group(tiles, groups, Split(seed=seed))
        assert {row.subset for row in split if row.group == "huge"} == {"train"}
        counts = counts_of(split)
        assert all(counts[subset]["a"].groups for subset in counts)
        assert [entry[:2] for entry in far_from_shares(split, Split())] == [
            ("a", "val"),
            ("a", "test"),
        ]
    even = split_by_group(*many(20, 3, "a"), Split())
    assert not list(far_from_shares(even, Split()))


@pytest.mark.parametrize("shares", [(0.65, 0.05, 0.30), (0.5, 0.03, 0.47)])
def test_a_group_that_fits_one_of_two_goes_there(shares: tuple[float, float, float]) -> None:
    tiles, groups = many(30, 20, "a")
    train, val, test = shares
    split = split_by_group(tiles, groups, Split(train=train, val=val, test=test))
    found = Counter(row.subset for row in split)
    assert found["test"] / len(tiles) == pytest.approx(test, abs=0.04)
    assert found["val"] >= 20


def test_a_patient_who_is_half_of_a_class_is_trained_on() -> None:
    """However few tiles of a rarer class, which is split first, that patient has."""
    tiles, groups = many(20, 4, "a")
    more, names = many(25, 8, "b")
    tiles += [*more, *(tile(f"b/{i}", "b") for i in range(200))]
    groups += [*names, *["a:0"] * 200]
    for seed in range(6):
        counts = counts_of(split_by_group(tiles, groups, Split(seed=seed)))
        assert counts["train"]["b"].tiles >= 200
        assert all(counts[subset][label].groups for subset in counts for label in "ab")


def test_a_group_of_several_classes_stays_whole() -> None:
    """Groups by patient: most hold two classes."""
    tiles, groups = [], []
    for patient in range(20):
        for label in "ab" if patient % 4 else "a":
            tiles += [tile(f"{patient}{label}{i}", label) for i in range(5)]
            groups += [f"p{patient}"] * 5
    split = split_by_group(tiles, groups, Split())
    found: dict[str, set[str]] = {}
    for row in split:
        found.setdefault(row.group, set()).add(row.subset)
    assert all(len(subsets) == 1 for subsets in found.values())
    counts = counts_of(split)
    assert all(counts[s][label].tiles for s in counts for label in "ab")


def test_at_random_gives_the_papers_table_and_counts_the_leak() -> None:
    """Table I: 3,500 / 750 / 750 of 5,000 a class, whatever groups the tiles come from."""
    tiles, groups = many(250, 20, "a")
    more, names = many(250, 20, "b")
    split = split_at_random(tiles + more, groups + names, Split())
    counts = counts_of(split)
    for label in "ab":
        found = [counts[s][label].tiles for s in ("train", "val", "test")]
        assert found == [3500, 750, 750]
    assert mates_in_training(split) > 0.99 * 1500  # FACTS: 99 % have a near copy
    assert mates_in_training(split_by_group(tiles, groups, Split())) == 0
    assert split == split_at_random(tiles + more, groups + names, Split())
    assert split != split_at_random(tiles + more, groups + names, Split(seed=1))
    with pytest.raises(EdgelungError, match="class a has 3 tile"):
        split_at_random(tiles[:3], groups[:3], Split())


def test_mates_are_counted_by_hand() -> None:
    rows = [("1", "g", "train"), ("2", "g", "test"), ("3", "h", "test"), ("4", "h", "val")]
    assert mates_in_training([SplitTile(tile(p), g, s) for p, g, s in rows]) == 1


def test_identical_files_join_their_groups() -> None:
    tiles = [tile("1", sha="x"), tile("2"), tile("3", sha="x"), tile("4")]
    assert join_duplicates(tiles, None) == ["1", "2", "1", "4"]
    assert join_duplicates(tiles, ["g1", "g1", "g2", "g2"]) == ["g1", "g1", "g1", "g1"]


def test_groups_are_read_by_path_however_data_nests(tmp_path: Path) -> None:
    csv = tmp_path / "clusters.csv"
    csv.write_text("path,class,cluster\na/1.jpg,a,a:7\nb/2.jpg,b,b:1\n")
    tiles = [tile("sets/a/1.jpg"), tile("b/2.jpg", "b")]
    assert read_groups(csv, tiles) == ["a:7", "b:1"]
    csv.write_text("\ufeffpath,cluster\n./a/1.jpg,7\nb/2.jpg,1\n", encoding="utf-8")  # Excel's
    assert read_groups(csv, tiles) == ["7", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\na/1.jpg,a\n", "expected path and group"),
        ("path,group\na/1.jpg,g\n", "names no group, or more than one, for 1 of 2"),
        ("path,group\na/1.jpg,g\nb/2.jpg,\n", "for 1 of 2 tiles, b/2.jpg for one"),
        ("path,group\nx/a/1.jpg,g\ny/a/1.jpg,h\nb/2.jpg,g\n", "for 1 of 2 tiles, a/1.jpg"),
    ],
)
def test_bad_group_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.csv").write_text(text)
    with pytest.raises(EdgelungError, match=message):
        read_groups(tmp_path / "g.csv", [tile("a/1.jpg"), tile("b/2.jpg", "b")])


def test_index_finds_nested_classes_and_their_sizes(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "lung_image_sets").symlink_to(tiles)
    found = index_tiles(tmp_path)
    assert {t.label for t in found} == {"lung_aca", "lung_n", "lung_scc"}
    assert len(found) == 108
    assert {(t.width, t.height) for t in found} == {(96, 96)}
    assert {t.label for t in index_tiles(tmp_path, ["lung_n", "lung_scc"])} == {
        "lung_n",
        "lung_scc",
    }


def test_bad_data_folders_are_explained(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="is no folder"):
        index_tiles(tmp_path / "gone")
    with pytest.raises(EdgelungError, match="holds no image"):
        index_tiles(tmp_path)
    with pytest.raises(EdgelungError, match="is it the folder above"):
        index_tiles(tiles / "lung_n")
    (tmp_path / "alone").symlink_to(tiles / "lung_n")
    with pytest.raises(EdgelungError, match="holds one class"):
        index_tiles(tmp_path)
    (tmp_path / "alone").unlink()
    with pytest.raises(EdgelungError, match="no tiles of class lung_x"):
        index_tiles(tiles, ["lung_n", "lung_x"])
    (tmp_path / "loose.jpg").touch()
    with pytest.raises(EdgelungError, match="lies in no class folder"):
        index_tiles(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "loose.jpg").rename(tmp_path / "a" / "1.jpg")
    (tmp_path / "b" / "2.jpg").write_text("no")
    with pytest.raises(EdgelungError, match="cannot read the training tile"):
        index_tiles(tmp_path)


def test_folders_below_the_classes(tiles: Path, tmp_path: Path) -> None:
    """By patient: the classes are named further up, and have to be said."""
    for label, patient in (("a", "p1"), ("b", "p1"), ("b", "p2")):
        folder = tmp_path / label / patient
        folder.mkdir(parents=True)
        source = next((tiles / "lung_n").glob("*.jpeg"))
        (folder / "1.jpeg").write_bytes(source.read_bytes() + label.encode() + patient.encode())
    with pytest.raises(EdgelungError, match=r"folders named p1 in several places.*classes="):
        index_tiles(tmp_path)
    found = {t.path: t.label for t in index_tiles(tmp_path, ["a", "b"])}
    assert found == {"a/p1/1.jpeg": "a", "b/p1/1.jpeg": "b", "b/p2/1.jpeg": "b"}
    (tmp_path / "a" / "p1").rename(tmp_path / "a" / "p2")
    (tmp_path / "a" / "p1").mkdir()
    (tmp_path / "a" / "p2" / "1.jpeg").rename(tmp_path / "a" / "p1" / "1.jpeg")
    (tmp_path / "b" / "p2" / "1.jpeg").unlink()  # a/p1, b/p1: as like as train/p1, val/p1
    with pytest.raises(EdgelungError, match="folders named p1 in several places"):
        index_tiles(tmp_path)


def test_a_folder_of_tiles_within_a_class_is_no_class_unasked(tiles: Path, tmp_path: Path) -> None:
    for label in ("lung_n", "lung_scc"):
        shutil.copytree(tiles / label, tmp_path / label)
    shutil.copytree(tiles / "lung_n", tmp_path / "lung_n" / ".ipynb_checkpoints")
    (tmp_path / "lung_n" / "._1.jpeg").write_bytes(b"a resource fork")
    assert {t.label for t in index_tiles(tmp_path)} == {"lung_n", "lung_scc"}
    assert len(index_tiles(tmp_path)) == 72
    shutil.copytree(tiles / "lung_n", tmp_path / "lung_n" / "batch2")
    for on_error in (None, print):
        with pytest.raises(EdgelungError, match=r"lung_n holds tiles and a folder.*batch2"):
            index_tiles(tmp_path, on_error=on_error)
    found = index_tiles(tmp_path, ["lung_n", "lung_scc"])
    assert Counter(t.label for t in found) == {"lung_n": 72, "lung_scc": 36}


def test_an_audit_takes_one_class_and_names_what_lies_beside(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "lung_n").symlink_to(tiles / "lung_n")
    shutil.copy(next((tiles / "lung_n").iterdir()), tmp_path / "preview.jpeg")
    told: dict[str, str] = {}
    found = index_tiles(tmp_path, on_error=told.__setitem__)
    assert {t.label for t in found} == {"lung_n"}
    index_tiles(tmp_path, ["lung_n"], on_error=told.__setitem__)
    assert told == {"preview.jpeg": "lies in no class folder"}


def test_the_same_classes_in_several_folders(tiles: Path, tmp_path: Path) -> None:
    for subset in ("Train and Validation Set", "Test Set"):
        (tmp_path / subset).mkdir()
        for label in ("lung_n", "lung_scc"):
            folder = tmp_path / subset / label
            folder.mkdir()
            name = f"{subset}.jpeg"
            (folder / name).write_bytes(next((tiles / label).glob("*.jpeg")).read_bytes())
    assert {t.label for t in index_tiles(tmp_path)} == {"lung_n", "lung_scc"}


def test_an_empty_class_and_a_name_that_is_no_utf_8(tiles: Path, tmp_path: Path) -> None:
    for label in ("lung_n", "lung_scc"):
        (tmp_path / label).symlink_to(tiles / label)
    (tmp_path / "lung_aca").mkdir()
    with pytest.raises(EdgelungError, match="lung_aca is empty"):
        index_tiles(tmp_path)
    name = b"t\xe9.jpeg".decode(errors="surrogateescape")
    (tmp_path / "lung_aca" / name).write_bytes(next((tiles / "lung_n").glob("*.jpeg")).read_bytes())
    with pytest.raises(EdgelungError, match=r"t\\xe9\.jpeg: its name is not UTF-8"):
        index_tiles(tmp_path)
    told: dict[str, str] = {}
    index_tiles(tmp_path, on_error=told.__setitem__)
    assert told == {"lung_aca/t\\xe9.jpeg": "its name is not UTF-8"}


def test_groups_may_come_from_windows(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("path,group\na\\1.jpg,g\nb\\2.jpg,h\n")
    assert read_groups(tmp_path / "g.csv", [tile("a/1.jpg"), tile("b/2.jpg", "b")]) == ["g", "h"]


def test_a_space_behind_a_group_makes_no_other_group(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("path,group\na/1.png,s1\na/2.png,s1 \n")
    assert read_groups(path, [tile("a/1.png"), tile("a/2.png")]) == ["s1", "s1"]


def test_one_file_under_two_labels_is_named() -> None:
    tiles = [tile("a/1", "a", "x"), tile("a/2", "a", "x"), tile("b/1", "b", "x"), tile("b/2", "b")]
    assert list(of_two_classes(tiles)) == [("a/1", "b/1")]


def test_groups_that_contradict_each_other_or_are_of_another_folder(tmp_path: Path) -> None:
    csv = tmp_path / "g.csv"
    csv.write_text("path,group\na/1.jpg,1\na/1.jpg,2\n")
    with pytest.raises(EdgelungError, match=r"puts a/1\.jpg into two groups, 1 and 2"):
        read_groups(csv, [tile("a/1.jpg")])
    csv.write_text("path,group\nold/a/1.jpg,1\n")
    with pytest.raises(EdgelungError, match="names no group"):
        read_groups(csv, [tile("new/a/1.jpg")])
    assert read_groups(csv, [tile("a/1.jpg")]) == ["1"]
