"""Tissue: found by colour, whatever the glass, the levels and the pens."""

from pathlib import Path

import numpy as np
import pytest

from edgelung.core.errors import EdgelungError
from edgelung.slides import outline
from edgelung.slides.base import Grid, Overview
from edgelung.slides.mask import TissueMask, find_tissue, whole_slide

PINK, PALE, VIOLET = (226, 150, 190), (240, 214, 228), (120, 70, 150)
GLASS = (243, 240, 238)
MPP, DOWNSAMPLE = 0.5, 16.0  # a pixel of the picture has 8 µm


def picture(glass: tuple[int, int, int] = GLASS, noise: float = 3.0) -> np.ndarray:
    """Glass of 3 × 3 mm."""
    values = np.random.default_rng(0).normal(0, noise, (375, 375, 3)) + np.array(glass)
    return values.clip(0, 255).astype(np.uint8)


def paint(pixels: np.ndarray, x: int, y: int, w: int, h: int, colour: tuple[int, int, int]) -> None:
    pixels[y : y + h, x : x + w] = colour


def found(pixels: np.ndarray) -> np.ndarray:
    mask = find_tissue(Overview(pixels, DOWNSAMPLE), MPP)
    assert mask.downsample == DOWNSAMPLE
    return mask.pixels


@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (235, 225, 210), (222, 228, 240)])
def test_glass_of_any_tint_is_no_tissue(glass: tuple[int, int, int]) -> None:
    assert not found(picture(glass)).any()


@pytest.mark.parametrize("colour", [PINK, PALE, VIOLET])
@pytest.mark.parametrize("glass", [GLASS, (235, 225, 210)])
def test_stained_tissue_is_found(colour: tuple[int, int, int], glass: tuple[int, int, int]) -> None:
    pixels = picture(glass)
    paint(pixels, 100, 100, 150, 150, colour)
    mask = found(pixels)
    assert mask[110:240, 110:240].all()
    assert mask.sum() == pytest.approx(150 * 150, rel=0.05)


def test_pale_tissue_beside_dark_tissue_is_kept() -> None:
    """Plain Otsu takes the middle of the two for its threshold."""
    pixels = picture()
    paint(pixels, 20, 20, 160, 300, VIOLET)
    paint(pixels, 200, 20, 160, 300, PALE)
    assert found(pixels)[30:310, 210:350].all()


def test_a_slide_that_is_all_tissue_is_all_tissue() -> None:
    pixels = np.full((300, 300, 3), PINK, np.uint8)
    paint(pixels, 0, 0, 150, 300, PALE)
    assert found(pixels).all()


@pytest.mark.parametrize(
    "pen", [(40, 160, 70), (30, 60, 170), (20, 20, 25), (230, 30, 40), (60, 180, 190)]
)
def test_pen_marks_are_taken_out(pen: tuple[int, int, int]) -> None:
    pixels = picture()
    paint(pixels, 20, 20, 120, 40, pen)
    paint(pixels, 200, 150, 150, 150, PINK)
    mask = found(pixels)
    assert not mask[:140, :160].any()
    assert mask[160:290, 210:340].all()


def test_dust_is_dropped_and_small_holes_are_filled() -> None:
    pixels = picture()
    paint(pixels, 100, 100, 150, 150, PINK)
    paint(pixels, 170, 170, 8, 8, GLASS)
    paint(pixels, 20, 20, 6, 6, PINK)
    mask = found(pixels)
    assert mask[110:240, 110:240].all()
    assert not mask[:60, :60].any()


def test_the_same_tissue_is_found_in_a_picture_of_any_resolution() -> None:
    small = picture(noise=0)
    paint(small, 100, 100, 150, 150, PINK)
    large = small.repeat(4, 0).repeat(4, 1)
    one = find_tissue(Overview(small, DOWNSAMPLE), MPP)
    other = find_tissue(Overview(large, DOWNSAMPLE / 4), MPP)
    assert other.downsample == DOWNSAMPLE
    assert (one.pixels == other.pixels).mean() > 0.999


def test_the_share_of_a_tile_is_that_of_its_square() -> None:
    pixels = np.zeros((40, 40), bool)
    pixels[:, :15] = True
    mask = TissueMask(pixels, 16.0, "drawn")
    cells = np.array([[0, 0], [1, 0], [2, 1]], np.int32)
    grid = Grid(0, 8, 160, 160, 1.0, cells)  # ten pixels of the mask a side
    assert mask.shares(grid).tolist() == [1.0, 0.5, 0.0]
    assert mask.area_mm2(0.5) == pytest.approx(40 * 15 * 0.008**2)


def test_shares_are_counts_of_pixels_whatever_the_grid() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.random((37, 53)) < 0.4
    cells = rng.integers(0, 9, (40, 2)).astype(np.int32)  # in no order, some beyond the edge
    grid = Grid(0, 8, 13, 9, 1.0, cells)  # overlapping, whole pixels of the mask
    counted = [
        (
            part.sum() / part.size
            if (part := pixels[9 * y : 9 * y + 13, 9 * x : 9 * x + 13]).size
            else 0
        )
        for x, y in cells
    ]
    mask = TissueMask(pixels, 1.0, "drawn")
    assert mask.shares(grid).tolist() == counted
    assert len(mask.shares(Grid(0, 8, 13, 9, 1.0, cells[:0]))) == 0


def test_the_whole_slide_counts_as_tissue_where_no_mask_is_wanted() -> None:
    cells = np.array([[0, 0], [20, 30]], np.int32)
    mask = whole_slide(5000, 7000)
    assert mask.shares(Grid(0, 8, 224, 224, 1.0, cells)).tolist() == [1.0, 1.0]
    assert not mask.is_drawn


def test_an_outline_of_the_user_is_the_mask(tmp_path: Path) -> None:
    from edgelung.slides.outline import read_outline

    path = tmp_path / "outline.geojson"
    path.write_text(
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":'
        '{"type":"MultiPolygon","coordinates":[[[[0,0],[500,0],[500,400],[0,400],[0,0]],'
        "[[100,100],[200,100],[200,200],[100,200],[100,100]]],"
        "[[[600,0],[900,0],[900,100],[600,0]]]]}}]}"
    )
    mask = read_outline(path, 1000, 800)
    assert mask.is_drawn
    assert mask.downsample == 1.0
    assert mask.pixels.sum() == pytest.approx(500 * 400 - 100 * 100 + 300 * 100 / 2, rel=0.01)
    assert not mask.pixels[110:190, 110:190].any()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "cannot read"),
        ("[1, 2]", "cannot read"),
        ('{"type":"FeatureCollection","features":[]}', "no polygon"),
        ('{"type":"Point","coordinates":[1,2]}', "no polygon"),
        ('{"type":"Polygon","coordinates":[[[0,0],[1,1]]]}', "three points"),
        ('{"type":"Polygon","coordinates":[[[0,0],[1,NaN],[2,2]]]}', "three points"),
        ('{"type":"Polygon","coordinates":[[[0,0],["a",1],[2,2]]]}', "cannot read"),
        ('{"type":"Polygon","coordinates":[[[9e3,9e3],[9e3,9e4],[9e4,9e4]]]}', "cover nothing"),
        ('{"type":"Polygon","coordinates":[[[-1e30,0],[-1e30,9],[-9e30,9]]]}', "cover nothing"),
        ("[" * 100_000, "cannot read"),
        ('{"type":"Polygon","coordinates":[]}', "without an outline"),
        ('{"type":"Polygon","coordinates":[[[1%s,0],[1,1],[2,2]]]}' % ("0" * 400), "cannot read"),
    ],
)
def test_an_outline_that_is_none_is_refused_in_one_line(
    tmp_path: Path, content: str, word: str
) -> None:
    path = tmp_path / "outline.geojson"
    path.write_text(content)
    with pytest.raises(EdgelungError, match=word) as caught:
        outline.read_outline(path, 1000, 800)
    assert "GeoJSON" in str(caught.value) or "positions in pixels" in str(caught.value)


def test_polygons_without_end_over_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline, "MOST_DRAWN", 10 * 1000 * 800)
    whole = '{"type":"Polygon","coordinates":[[[0,0],[1000,0],[1000,800],[0,800]]]}'
    path = tmp_path / "outline.geojson"
    path.write_text(f"[{','.join([whole] * 10)}]")
    assert outline.read_outline(path, 1000, 800).pixels.all()
    path.write_text(f"[{','.join([whole] * 11)}]")
    with pytest.raises(EdgelungError, match="merge them"):
        outline.read_outline(path, 1000, 800)
