"""Finding files: each once, in order, nothing lost in silence."""

import os
from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write
from edgelung.tiles.find import class_of, find_files


def test_files_come_sorted_within_folders_with_relative_paths(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/10.jpg", "a.jpg", "b/deep/er/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list(find_files(tmp_path))
    paths = [file.path for file in found]
    assert paths == ["a.jpg", "b/10.jpg", "b/2.jpg", "b/deep/er/x.png", "notes.txt"]
    assert [file.is_image for file in found] == [True, True, True, True, False]


def test_a_folder_named_like_a_tile_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "x.jpg" / "1.jpg").touch()
    assert [file.path for file in find_files(tmp_path)] == ["x.jpg/1.jpg"]


def test_links_are_followed_and_loops_cut(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "elsewhere")
    found = list(find_files(tmp_path))
    assert [file.path for file in found] == ["linked/1.jpg", "other"]
    assert not any(file.leads_out for file in found)


def test_folders_nest_deeper_than_pythons_stack(tmp_path: Path) -> None:
    home = os.open(".", os.O_RDONLY)
    os.chdir(tmp_path)  # by steps, down and up: shutil.rmtree is recursive too
    depth = 0
    try:
        while depth < 1100:
            os.mkdir("d")
            os.chdir("d")
            depth += 1
        Path("1.jpg").touch()
        found = list(find_files(tmp_path))
        Path("1.jpg").unlink()
    finally:
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        os.fchdir(home)
        os.close(home)
    assert len(found) == 1


def test_temporary_files_of_a_run_under_way_are_passed_over(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "p.csv"):
        assert len(list(tmp_path.iterdir())) == 1
        assert list(find_files(tmp_path)) == []


def test_a_single_file_is_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    assert [file.path for file in find_files(tmp_path / "1.jpg")] == ["1.jpg"]


def test_a_missing_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="does not exist"):
        list(find_files(tmp_path / "gone"))


def test_the_class_is_the_nearest_folder_of_that_name() -> None:
    classes = ["lung_aca", "lung_n"]
    assert class_of("data/lung_n/deep/1.jpg", classes) == 1
    assert class_of("lung_n/lung_aca/1.jpg", classes) == 0
    assert class_of("other/lung_n.jpg", classes) is None
