"""`audit --against`: which test tiles of a published split show tissue of its training tiles."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.core.errors import EdgelungError
from edgelung.evaluation.shares import interval_of_tiles
from edgelung.train.audit_split import measure_leak, read_published_split
from edgelung.train.index import IndexedTile

SPLIT = {
    "a/0.png": "train",
    "a/0-copy.png": "test",
    "a/1.png": "test",
    "a/1-copy.png": "test",
    "b/2.png": "train",
    "b/2-copy.png": "valid",
    "b/3.png": "Training",
    "b/3-copy.png": "test",
}


@pytest.fixture
def folder(sources, changed, tmp_path: Path) -> Path:
    """Four sources with a changed copy each; one more file is not in the split."""
    for number, (label, tile) in enumerate(zip("aabb", sources[:4], strict=True)):
        place = tmp_path / "data" / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number}.png")
        Image.fromarray(changed(tile, 15, 1.0, True)).save(place / f"{number}-copy.png")
    Image.fromarray(sources[4]).save(tmp_path / "data/b/other.png")
    return tmp_path / "data"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return written(tmp_path / "split.csv", SPLIT)


def written(path: Path, split: dict[str, str], header: str = "Filename;Split") -> Path:
    lines = [header, *(f"data/{name};{subset}" for name, subset in split.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def tile(path: str, sha: str = "") -> IndexedTile:
    return IndexedTile(path, path[0], 10, 10, sha or path)


TILES = [tile(path) for path in [*SPLIT, "b/other.png"]]


def test_an_audit_counts_and_shows_test_tiles_that_show_tissue_of_training(
    folder: Path, split: Path, tmp_path: Path, cli
) -> None:
    done = cli("audit", folder, "--against", split, "--out", "audit", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)["against"]
    counts = ("train", "val", "test", "not_in_split", "test_groups", "shown_in_training")
    assert [found[name] for name in counts] == [3, 1, 4, 1, 3, 2]
    assert (found["share"], found["identical_in_training"]) == (0.5, 0)
    assert found["classes"] == {"a": [3, 1], "b": [1, 1]}
    low, high = found["interval"]
    assert low < 0.5 < high
    page = (tmp_path / "audit/report.html").read_text("utf-8")
    assert "Do not trust this split: 2 of 4 test tiles (50.0 %) show tissue of training" in page
    section = page[page.index("The split split.csv") : page.index("<h2>Contents</h2>")]
    assert section.count("<img") == 2
    assert "a/0-copy.png" in section
    assert "a/1.png" not in section


def test_a_folder_of_subsets_says_the_same_as_a_list(split: Path, tmp_path: Path) -> None:
    for path, subset in SPLIT.items():
        place = tmp_path / "published" / {"Training": "train"}.get(subset, subset) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place)
    expected = ["train", "test", "test", "test", "train", "val", "train", "test", ""]
    assert read_published_split(tmp_path / "published", TILES) == expected
    assert read_published_split(split, TILES) == expected
    shutil.rmtree(tmp_path / "published" / "test")
    with pytest.raises(EdgelungError, match=r"no folder test with images; expected .*train/"):
        read_published_split(tmp_path / "published", TILES)


@pytest.mark.parametrize(
    ("split", "header", "message"),
    [
        ({"a/0.png": "fold3"}, "path;subset", r"the subset 'fold3' for data/a/0\.png; expected"),
        ({"a/0.png": "train"}, "path;class", r"expected subset or split or set or partition"),
        ({"a/0.png": "train"}, "path;set", "names no test tile of this folder: 1 of 9"),
        ({"x/7.png": "train"}, "path;set", r"names no train tile.*found data/x/7\.png"),
        (
            {"a/0.png": "train", "./a/0.png": "test", "a/1.png": "test"},
            "path;set",
            r"puts data/a/0\.png into train and test",
        ),
    ],
)
def test_a_split_that_says_nothing_clear_is_refused(
    tmp_path: Path, split: dict[str, str], header: str, message: str
) -> None:
    with pytest.raises(EdgelungError, match=message):
        read_published_split(written(tmp_path / "s.csv", split, header), TILES)


def test_a_copy_byte_for_byte_is_counted() -> None:
    tiles = [tile("a/1", "same"), tile("a/2", "same"), tile("a/3"), tile("a/4")]
    leak = measure_leak("s", tiles, ["g", "g", "h", "i"], ["train", "test", "test", "val"])
    assert (leak.shown_in_training, leak.identical_in_training, leak.test) == (1, 1, 2)
    clean = measure_leak("s", tiles[1:], ["g", "h", "h"], ["test", "train", "train"])
    assert (clean.share, clean.interval[0]) == (0.0, 0.0)
    assert clean.interval[1] > 0.9  # one group says next to nothing


def test_the_interval_resamples_groups_and_weighs_tiles() -> None:
    flags = np.array([True] * 90 + [False] * 10)
    groups = ["big"] * 90 + [str(i) for i in range(10)]
    low, high = interval_of_tiles(flags, groups)
    assert low == 0.0  # resamples without the big group
    assert high > 0.9
