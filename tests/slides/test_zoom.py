"""The Deep Zoom pyramid: every level is the whole slide, made from the level above."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.core.errors import EdgelungError
from edgelung.slides.zoom import FOLDER, SIDE, SlideBands, write_zoom


def gradient(width: int, height: int) -> np.ndarray:
    """Smooth colours, so that JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    third = 128 + 100 * np.sin((x + y) / 80)
    return np.stack([x * 200 // width, y * 200 // height, third], axis=-1).astype(np.uint8)


def assembled(folder: Path, level: int) -> np.ndarray:
    """A level from its tiles, all of which but the last of a row or column must be whole."""
    files = {tuple(map(int, p.stem.split("_"))): p for p in (folder / str(level)).iterdir()}
    columns, rows = (max(axis) + 1 for axis in zip(*files, strict=True))
    assert len(files) == columns * rows
    lines = []
    for row in range(rows):
        tiles = [np.asarray(Image.open(files[column, row])) for column in range(columns)]
        assert all(tile.shape[1] == SIDE for tile in tiles[:-1])
        assert row == rows - 1 or tiles[0].shape[0] == SIDE
        lines.append(np.hstack(tiles))
    return np.vstack(lines)


@pytest.mark.parametrize(
    ("width", "height"),
    [(1300, 700), (700, 1300), (512, 512), (1, 1), (3, 700), (700, 100), (257, 255)],
)
def test_every_level_is_the_whole_slide(
    tmp_path: Path, array_slide, width: int, height: int
) -> None:
    pixels = gradient(width, height)
    slide = array_slide(pixels)
    made = write_zoom(tmp_path, slide)
    assert (made.width, made.height, made.damaged, slide.closed) == (width, height, 0, 1)
    assert sorted(int(p.name) for p in (tmp_path / FOLDER).iterdir()) == list(range(made.levels))
    for level in range(made.levels - 1, -1, -1):
        found = assembled(tmp_path / FOLDER, level)
        shrink = 2 ** (made.levels - 1 - level)
        assert found.shape[:2] == (-(-height // shrink), -(-width // shrink))
        expected = np.asarray(Image.fromarray(pixels).reduce(shrink)) if shrink > 1 else pixels
        if min(found.shape[:2]) > 64:  # JPEG changes the colours of a few steep pixels
            assert np.abs(found.astype(int) - expected).mean() < 5
    assert found.shape[:2] == (1, 1)


@pytest.mark.parametrize(("width", "height"), [(1300, 700), (100, 700), (700, 100), (600, 513)])
def test_bands_are_the_slide_to_the_pixel(array_slide, width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    bands = [band.copy() for band in SlideBands(array_slide(pixels))]
    assert [len(band) for band in bands[:-1]] == [SIDE] * (len(bands) - 1)
    np.testing.assert_array_equal(np.vstack(bands), pixels)


def test_a_damaged_part_is_white_and_counted(tmp_path: Path, array_slide) -> None:
    slide = array_slide(np.zeros((600, 600, 3), np.uint8), damaged=(300, 300))
    made = write_zoom(tmp_path, slide)
    assert made.damaged == 1
    picture = assembled(tmp_path / FOLDER, made.levels - 1)
    assert picture[300, 300].min() > 250
    assert picture[:250].max() < 5


def test_the_pyramid_is_the_same_every_time(tmp_path: Path, array_slide) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_zoom(tmp_path / name, array_slide(gradient(700, 600)))
    files = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) > 10
    for path in files:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def test_an_error_leaves_no_half_pyramid(tmp_path: Path, array_slide) -> None:
    slide = array_slide(gradient(700, 600))

    def fail(rows: int) -> None:
        raise EdgelungError("stop")

    with pytest.raises(EdgelungError, match="stop"):
        write_zoom(tmp_path, slide, fail)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_height_of_the_slide(tmp_path: Path, array_slide) -> None:
    peaks = []
    for height in (2_000, 8_000):
        pixels = np.broadcast_to(np.uint8(200), (height, 300, 3))
        (tmp_path / str(height)).mkdir()
        tracemalloc.start()
        write_zoom(tmp_path / str(height), array_slide(pixels))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_the_description_is_that_of_deep_zoom(tmp_path: Path, array_slide) -> None:
    write_zoom(tmp_path, array_slide(gradient(700, 600)))
    text = (tmp_path / "zoom.dzi").read_text()
    assert 'Format="jpeg" Overlap="0" TileSize="256"' in text
    assert '<Size Width="700" Height="600"/>' in text
