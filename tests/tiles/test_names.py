"""Names as Windows, macOS and programs write them, matched to the files that are there."""

import unicodedata
from pathlib import Path

import pytest

from edgelung.tiles.names import find, lookup, match_key, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("lung_n/1.jpeg", "lung_n/ä.JPG", "b/ .png", "b/a\\b.png", "c/d/e.tif"):
        path = tmp_path / "tiles" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "tiles"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lung_n/1.jpeg", "lung_n/1.jpeg"),
        ("lung_n\\1.jpeg", "lung_n/1.jpeg"),
        (".\\lung_n\\1.jpeg", "./lung_n/1.jpeg"),
        ("D:\\data\\tiles\\lung_n\\1.jpeg", "lung_n/1.jpeg"),
        ("C:/data/tiles/lung_n/1.jpeg", "lung_n/1.jpeg"),
        ("\\\\server\\share\\tiles\\lung_n\\1.jpeg", "lung_n/1.jpeg"),
        ("tiles/c/d/e.tif", "c/d/e.tif"),
        ('"lung_n/1.jpeg"', "lung_n/1.jpeg"),
        ("lung_n/1.jpeg  ", "lung_n/1.jpeg"),
        ("lung_n/1.JPEG", "lung_n/1.jpeg"),
        ("lung_n/ä.jpg", "lung_n/ä.JPG"),
        (unicodedata.normalize("NFD", "lung_n/ä.JPG"), "lung_n/ä.JPG"),
        ("b/ .png", "b/ .png"),
        ("b/a\\b.png", "b/a\\b.png"),
        ("lung_n/none.jpeg", "lung_n/none.jpeg"),
        ("1.jpeg", "1.jpeg"),
        ("a\0b", "a\0b"),
    ],
)
def test_a_name_is_matched_to_the_file_it_means(folder: Path, name: str, expected: str) -> None:
    assert resolve(folder, name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "patient/lung_n/1.jpeg",
        "../other/lung_n/1.jpeg",
        "/mnt/gone/cohort/lung_n/1.jpeg",
        "D:\\1.jpeg",
    ],
)
def test_a_file_of_another_folder_is_never_taken(folder: Path, name: str) -> None:
    assert resolve(folder, name) == name


def test_a_name_that_repeats_the_path_of_the_folder_is_found(folder: Path) -> None:
    assert resolve(folder, f"{folder.parent.name}/tiles/lung_n/1.jpeg") == "lung_n/1.jpeg"


def test_a_file_that_is_there_wins_over_other_readings(folder: Path) -> None:
    (folder / "lung_n" / "1.JPEG").touch()
    assert resolve(folder, "lung_n/1.JPEG") == "lung_n/1.JPEG"


def test_one_name_has_one_key() -> None:
    names = ["a/ä.jpg", "a\\ä.JPG", unicodedata.normalize("NFD", "./a/ä.jpg"), '"a/ä.jpg" ']
    assert len({match_key(name) for name in names}) == 1
    assert match_key("a/1.jpg") != match_key("b/1.jpg")


def test_a_name_is_found_by_its_last_parts() -> None:
    table = lookup(["a/1.JPG", "a/1.jpg"])
    assert find("a/1.jpg", table) == ["a/1.jpg"]
    assert find("a/1.JPG", table) == ["a/1.JPG"]
    table = lookup(["lung_image_sets\\lung_aca\\1.JPEG", "lung_n/1.jpeg", "x/lung_n/2.jpeg"])
    assert find("lung_aca/1.jpeg", table) == ["lung_image_sets\\lung_aca\\1.JPEG"]
    assert find("deep/lung_n/1.jpeg", table) == ["lung_n/1.jpeg"]
    assert find("y/lung_n/2.jpeg", table) == []
    assert find("other/1.jpeg", table) == []
