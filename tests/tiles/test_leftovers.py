"""What systems and edgelung itself leave in folders is no data; everything else is."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.core.errors import EdgelungError
from edgelung.tiles.find import class_of, find_files
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile
from edgelung.train.index import index_tiles

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)


def write_tile(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of two tiles, with what a Mac, Windows and a NAS leave beside them."""
    folder = tmp_path / "data"
    for number, name in enumerate(("a/1.png", "a/2.png", "b/1.png", "b/2.png")):
        write_tile(folder / name, number)
    for name in ("a/._1.png", "__MACOSX/a/._1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(APPLE_DOUBLE)
    write_tile(folder / "__MACOSX" / "a" / "1.png", 9)
    write_tile(folder / "a" / "@eaDir" / "1.png" / "SYNOPHOTO_THUMB_M.png", 9)
    (folder / "lost+found").mkdir()
    return folder


def test_leftovers_of_systems_are_no_classes_and_no_tiles(data: Path) -> None:
    tiles = index_tiles(data)
    assert [tile.path for tile in tiles] == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


def test_leftovers_are_told_by_folder_or_content(data: Path) -> None:
    left = {file.path for file in find_files(data) if file.leftover_of}
    assert left == {
        "__MACOSX/a/._1.png",
        "__MACOSX/a/1.png",
        "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.png",
    }
    with pytest.raises(TileError, match="AppleDouble") as error:
        read_tile(data / "a" / "._1.png", ReaderSpec(size=16))
    assert error.value.status == "skipped"


def test_a_file_that_was_named_is_never_a_leftover(data: Path) -> None:
    (file,) = find_files(data / "__MACOSX" / "a" / "1.png")
    assert not file.leftover_of


@pytest.mark.parametrize(
    "names",
    [("run.json", "split.csv"), ("bundle.json", "bundle.json.sha256"), ("audit.json", "links.csv")],
)
def test_edgelungs_own_folders_are_skipped_inside_data(
    data: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    own = data / "a" / "own"
    write_tile(own / "golden" / "00.png")
    (own / names[0]).write_text(json.dumps({"edgelung": "0.2.0"}))
    (own / names[1]).touch()
    assert not [file for file in find_files(data) if "own" in file.path]
    assert "own" in caplog.text
    assert [file.path for file in find_files(own / "golden")] == ["00.png"], "named: searched"
    assert [file.path for file in find_files(own) if file.is_image] == ["golden/00.png"]


@pytest.mark.parametrize("content", ["", "{}", '{"name": "mine"}'])
def test_folders_of_other_programs_are_data(data: Path, content: str) -> None:
    write_tile(data / "a" / "mine" / "3.png")
    (data / "a" / "mine" / "run.json").write_text(content)
    (data / "a" / "mine" / "split.csv").touch()
    assert "a/mine/3.png" in [file.path for file in find_files(data)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("lung_n", "Lung_N"),
        (unicodedata.normalize("NFC", "gesünd"), unicodedata.normalize("NFD", "gesünd")),
    ],
)
def test_two_spellings_of_one_class_are_refused(tmp_path: Path, first: str, second: str) -> None:
    for name in (first, second, "other"):
        write_tile(tmp_path / "data" / name / "1.png")
    if len(os.listdir(tmp_path / "data")) < 3:
        pytest.skip("this file system knows one name of the two")
    with pytest.raises(EdgelungError, match=r"the class names .* and .* look alike"):
        index_tiles(tmp_path / "data")


def test_a_class_that_is_not_there_names_the_folders_that_are(data: Path) -> None:
    with pytest.raises(EdgelungError, match=r"no tiles of class c .*the folders there are .*a, b"):
        index_tiles(data, ["a", "c"])


def test_a_class_is_known_in_either_unicode_form() -> None:
    composed, decomposed = (unicodedata.normalize(form, "gesünd") for form in ("NFC", "NFD"))
    assert class_of(f"x/{decomposed}/1.png", ["a", composed]) == 1
    assert class_of(f"x/{composed}/1.png", ["a", decomposed]) == 1
