"""Labelled tiles: found in class folders, or named by a list in any spelling; none is lost."""

from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.inference.labelled import NO_CLASS, NO_VALUE, NOT_LISTED, labelled_files

CLASSES = ("lung_aca", "lung_n")
ODD = 'a, b=1 ü [x]%20"q".png'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("lung_aca/1.png", f"lung_n/{ODD}", "colon/3.png", "lung_n/.hidden.png"):
        (tmp_path / "tiles" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiles" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path / "tiles"


def listed(folder: Path, text: str) -> Path:
    path = folder.parent / "g.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_nearest_folder_names_the_class_and_other_images_are_counted(folder: Path) -> None:
    found = labelled_files(folder, CLASSES)
    assert [(one.file.path, one.truth) for one in found.files] == [
        ("lung_aca/1.png", 0),
        (f"lung_n/{ODD}", 1),
    ]
    assert len({one.group for one in found.files}) == 2
    assert not found.grouped
    assert found.left_out == {NO_CLASS: 1}


def test_a_list_names_tiles_classes_groups_and_further_columns(folder: Path) -> None:
    quoted = ODD.replace('"', '""')
    groups = listed(
        folder,
        "Image Path;Class;Cluster;Site;Stain\n"
        "D:\\data\\colon\\3.png;lung_n;g1;north;\n"
        f'"lung_n/{quoted}";lung_aca;g2;south;HE\n',
    )
    found = labelled_files(folder, CLASSES, groups, ["site", "Stain"])
    assert found.columns == ("site", "stain")
    assert [(one.file.path, one.truth, one.group, one.columns) for one in found.files] == [
        ("colon/3.png", 1, "g1", ("north", NO_VALUE)),
        (f"lung_n/{ODD}", 0, "g2", ("south", "HE")),
    ]
    assert found.left_out == {NOT_LISTED: 1}


def test_a_row_without_a_file_is_a_tile_that_cannot_be_read(folder: Path) -> None:
    groups = listed(folder, "path,group\nlung_aca/1.png,g1\nlung_n/gone.png,g2\n")
    gone = labelled_files(folder, CLASSES, groups).files[1]
    assert (gone.file.path, gone.truth) == ("lung_n/gone.png", 1)
    assert "no such file" in gone.file.reason


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("path,site\nlung_aca/1.png,x\n", (), "expected group or cluster too"),
        ("path,group\nlung_aca/1.png,g\n", ("site",), "expected site too"),
        ("path,group\nlung_aca/1.png,NA\n", (), "names no group for lung_aca/1.png"),
        ("path,group,class\nlung_aca/1.png,g,colon\n", (), "has the class 'colon'"),
        ("path,group,class\nlung_aca/1.png,g,\n", (), "has the class ''"),
        ("path,group\nlung_aca/1.png,g\nlung_aca/1.png,h\n", (), "two rows for lung_aca/1.png"),
        ("path,group\nlung_aca/1.png,G1\nlung_n/x.png,g1\n", (), "differ only in case"),
        ("path,group\nx/1.png,g\n", (), "no row of"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(
    folder: Path, text: str, columns: tuple[str, ...], message: str
) -> None:
    with pytest.raises(EdgelungError, match=message):
        labelled_files(folder, CLASSES, listed(folder, text), columns)


def test_a_folder_without_labelled_tiles_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match=r"none of the 3 images .* named x, y"):
        labelled_files(folder, ("x", "y"))
    with pytest.raises(EdgelungError, match="is no folder"):
        labelled_files(tmp_path / "gone", CLASSES)
    with pytest.raises(EdgelungError, match="name it with --groups"):
        labelled_files(folder, CLASSES, None, ["site"])
