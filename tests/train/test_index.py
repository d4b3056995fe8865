"""Classes come from folders, groups from a CSV; what is unclear is refused."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.train.index import IndexedTile, index_tiles, read_groups


def tile(path: str, label: str = "a", sha: str = "") -> IndexedTile:
    return IndexedTile(path, label, 10, 10, sha or path)


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
        ("path,class\na/1.jpg,a\n", "expected group or cluster too"),
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


@pytest.mark.parametrize("name", ["b\u200b", "b\u202ec", "b" * 129])
def test_a_class_folder_with_a_name_that_a_bundle_cannot_hold_is_refused(
    tiles: Path, tmp_path: Path, name: str
) -> None:
    image = next(tiles.rglob("*.jpeg"))
    for folder in ("a", name):
        (tmp_path / folder).mkdir()
        shutil.copy(image, tmp_path / folder)
    with pytest.raises(EdgelungError, match="rename the class folder"):
        index_tiles(tmp_path)


@pytest.mark.parametrize("name", ["Dru\u0308se", "Drüse", "肺癌", "scc (grade 2)"])
def test_class_folders_in_any_script_are_classes(tiles: Path, tmp_path: Path, name: str) -> None:
    image = next(tiles.rglob("*.jpeg"))
    for folder in ("a", name):
        (tmp_path / folder).mkdir()
        shutil.copy(image, tmp_path / folder)
    assert {tile.label for tile in index_tiles(tmp_path)} == {"a", name}


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


@pytest.mark.parametrize("name", ["NA", "nan", "NaN", "#N/A", "None", "null", "<NA>", " n/a "])
def test_what_programs_write_for_an_empty_cell_is_no_group(tmp_path: Path, name: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"path,group\na/1.png,s1\na/2.png,{name}\n")
    with pytest.raises(EdgelungError, match=r"names no group.* for 1 of 2 tiles, a/2\.png"):
        read_groups(path, [tile("a/1.png"), tile("a/2.png")])


@pytest.mark.parametrize(
    ("first", "second"), [("P1", "p1"), ("P 1", "P  1"), ("P 1", "P\u00a01"), ("1", "1.0")]
)
def test_two_groups_that_may_be_one_are_refused(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"path,group\na/1.png,{first}\na/2.png,{second}\n", encoding="utf-8")
    with pytest.raises(
        EdgelungError, match=r"differ only in case, blanks or \.0; write one group"
    ) as error:
        read_groups(path, [tile("a/1.png"), tile("a/2.png")])
    assert repr(first) in str(error.value)
    assert repr(second).replace("  ", " ") in str(error.value)  # a message has single blanks


@pytest.mark.parametrize(("first", "second"), [("1", "10"), ("1.1", "1.10"), ("p1", "p2")])
def test_groups_of_other_names_are_other_groups(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"path,group\na/1.png,{first}\na/2.png,{second}\n")
    assert read_groups(path, [tile("a/1.png"), tile("a/2.png")]) == [first, second]


@pytest.mark.parametrize("header", ["path,group,Group", "path,group,cluster"])
def test_of_two_group_columns_none_is_chosen(tmp_path: Path, header: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"{header}\na/1.png,1,2\n")
    with pytest.raises(EdgelungError, match="expected one of them: remove or rename"):
        read_groups(path, [tile("a/1.png")])


@pytest.mark.parametrize("encoding", ["cp1252", "cp850", "mac_roman"])
@pytest.mark.parametrize("row", ["a/ä.png,g", "a/1.png,ä"])
def test_groups_of_another_encoding_are_to_be_saved_as_utf_8(
    tmp_path: Path, encoding: str, row: str
) -> None:
    path = tmp_path / "groups.csv"
    path.write_text(f"path,group\n{row}\n", encoding=encoding)
    with pytest.raises(EdgelungError, match=r"not UTF-8.*save it as UTF-8"):
        read_groups(path, [tile(row.partition(",")[0])])


def test_groups_that_contradict_each_other_or_are_of_another_folder(tmp_path: Path) -> None:
    csv = tmp_path / "g.csv"
    csv.write_text("path,group\na/1.jpg,1\na/1.jpg,2\n")
    with pytest.raises(EdgelungError, match=r"puts a/1\.jpg into two groups, 1 and 2"):
        read_groups(csv, [tile("a/1.jpg")])
    csv.write_text("path,group\nold/a/1.jpg,1\n")
    with pytest.raises(EdgelungError, match="names no group"):
        read_groups(csv, [tile("new/a/1.jpg")])
    assert read_groups(csv, [tile("a/1.jpg")]) == ["1"]
