"""Heat maps and labels lie over the slide, to the pixel."""

import dataclasses
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image

from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.slides import heatmap
from edgelung.slides.colours import NO_LABEL, class_colour, css, probability_colours
from edgelung.slides.ome_overlay import overlay_raster, write_overlay
from edgelung.slides.tile_raster import Raster, TileRaster


def row_of_tiles(step: float, side: int = 100) -> SlideTiles:
    """Four tiles in a row: sure of class a, unsure, damaged, sure of class b."""
    return SlideTiles(
        classes=("a", "b"),
        x=np.rint(np.arange(4) * step).astype(np.int64),
        y=np.zeros(4, np.int64),
        side=side,
        step=step,
        probabilities=np.array([[1, 0], [0.5, 0.5], [np.nan, np.nan], [0, 1]], np.float32),
        statuses=["ok", "review", "corrupt", "ok"],
        errors=[""] * 4,
    )


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))


def test_a_heat_map_shows_each_tile_where_it_is_and_nothing_elsewhere() -> None:
    on = TileRaster(row_of_tiles(100.0), Raster(50, 15, 10.0))
    pixels = pixels_of(heatmap.heat_map(on, 0))
    assert pixels.shape == (15, 50, 4)
    colours = probability_colours(255)
    for left, probability in ((0, 1.0), (10, 0.5), (30, 0.0)):
        tile = pixels[:10, left : left + 10]
        assert (tile[..., :3] == colours[round(254 * probability)]).all()
        assert (tile[..., 3] == heatmap.SEE_THROUGH).all()
    assert not pixels[:, 20:30, 3].any()  # damaged
    assert not pixels[10:, :, 3].any()
    assert not pixels[:, 40:, 3].any()


def test_overlapping_tiles_are_averaged() -> None:
    on = TileRaster(row_of_tiles(50.0), Raster(25, 10, 10.0))
    mean = on.picture((100 * np.nan_to_num(on.mean(on.tiles.probabilities[:, 0]))).astype(np.uint8))
    assert mean[0].tolist() == [100] * 5 + [75] * 5 + [50] * 5 + [0] * 10


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.6])
def test_a_pixel_is_the_mean_of_all_tiles_over_its_centre(make_slide, overlap: float) -> None:
    tiles = make_slide(6_000, 4_000, overlap=overlap).tiles
    raster = Raster.of_slide(6_000, 4_000, 37.0)
    on = TileRaster(tiles, raster)
    means = on.mean(tiles.probabilities[:, 0])
    picture = on.picture(np.nan_to_num(np.rint(1 + 254 * means)).astype(np.uint8))
    for row in range(0, raster.height, 7):
        for column in range(0, raster.width, 7):
            x, y = (column + 0.5) * 37, (row + 0.5) * 37
            over = (tiles.x <= x) & (x < tiles.x + tiles.side)
            over &= (tiles.y <= y) & (y < tiles.y + tiles.side)
            values = tiles.probabilities[over & tiles.predicted, 0].astype(float)
            expected = round(1 + 254 * values.mean()) if len(values) else 0
            assert abs(int(picture[row, column]) - expected) <= 1


def test_bands_make_the_whole_picture(make_slide) -> None:
    on = TileRaster(make_slide(6_000, 4_000, overlap=0.5).tiles, Raster.of_slide(6_000, 4_000, 17))
    cells = heatmap.probability_values(on, 1)
    np.testing.assert_array_equal(np.vstack(list(on.bands(cells, 64))), on.picture(cells))


def test_a_tile_without_a_label_is_grey() -> None:
    pixels = pixels_of(heatmap.label_map(TileRaster(row_of_tiles(100.0), Raster(40, 10, 10.0))))
    colours = [tuple(pixels[5, at, :3].tolist()) for at in (5, 15, 25, 35)]
    assert colours == [class_colour(0), NO_LABEL, NO_LABEL, class_colour(1)]


def test_all_pictures_have_the_size_of_the_overview(tmp_path: Path, make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    names = heatmap.write_pictures(tmp_path, slide.tiles, slide.overview, slide.mask)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    height, width, _ = slide.overview.pixels.shape
    for name in names:
        with Image.open(tmp_path / name) as image:
            if name.startswith(("heat", "labels")):
                assert image.size == (width, height)
                assert image.info["transparency"][0] == 0
            if name == heatmap.MASK:
                np.testing.assert_array_equal(np.asarray(image) > 0, slide.mask)


def test_pictures_are_the_same_every_time(tmp_path: Path, make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        heatmap.write_pictures(tmp_path / name, slide.tiles, slide.overview, slide.mask)
        write_overlay(tmp_path / name / "o.tif", slide.tiles, "s", (6_000, 4_000), 0.5)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["../../x", "a/b", "CON:", "", "a\x00b", "肺", "=1+1"])
def test_the_file_of_a_heat_map_stays_in_its_folder(name: str) -> None:
    made = heatmap.heat_map_name(0, name)
    assert made.startswith("heat-01")
    assert set(made.removesuffix(".png")) <= set("abcdefghijklmnopqrstuvwxyzABCON0123456789-_")


def test_many_classes_have_colours_and_one_legend() -> None:
    classes = [f"class {index}" for index in range(256)]
    colours = {class_colour(index) for index in range(254)}
    assert len(colours) > 240
    assert pixels_of(heatmap.legend(classes)).shape[1] == 480
    assert all(len(css(colour)) == 7 for colour in colours)


def test_the_scale_of_probabilities_rises_in_lightness() -> None:
    lightness = probability_colours(64) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_a_slide_without_tiles_gives_transparent_pictures(make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    tiles = slide.tiles
    none = dataclasses.replace(
        tiles, x=tiles.x[:0], y=tiles.y[:0], probabilities=tiles.probabilities[:0], statuses=[]
    )
    on = TileRaster(none, Raster(30, 20, 200.0))
    assert not pixels_of(heatmap.label_map(on))[..., 3].any()
    assert not pixels_of(heatmap.heat_map(on, 0))[..., 3].any()
    assert heatmap.thumbnail(none, slide.overview)


def test_the_overlay_lies_over_the_slide(tmp_path: Path, make_slide) -> None:
    slide = make_slide()
    size = slide.width, slide.height
    write_overlay(tmp_path / "o.ome.tif", slide.tiles, slide.name, size, slide.mpp)
    raster = overlay_raster(slide.tiles, *size)
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as file:
        levels = [level.asarray() for level in file.series[0].levels]
        pixels = next(
            one
            for one in ElementTree.fromstring(file.ome_metadata).iter()
            if one.tag.endswith("Pixels")
        )
    assert levels[0].shape == (3, raster.height, raster.width)
    assert [level.shape[1:] for level in levels[1:]] == [(141, 188)]
    um = float(pixels.attrib["PhysicalSizeX"])
    assert um == pytest.approx(slide.mpp * raster.downsample)
    assert 0 <= um * raster.width - slide.width * slide.mpp < um  # covers the slide to a pixel
    channels = [one.attrib for one in pixels if one.tag.endswith("Channel")]
    assert [one["Name"] for one in channels] == list(slide.tiles.classes)
    colour = int(channels[0]["Color"]).to_bytes(4, "big", signed=True)
    assert tuple(colour) == (*class_colour(0), 255)
    for level, factor in ((0, 1), (1, 2)):
        down = raster.downsample * factor
        for index in range(0, len(slide.tiles), 50):
            x = int((slide.tiles.x[index] + slide.tiles.side / 2) / down)
            y = int((slide.tiles.y[index] + slide.tiles.side / 2) / down)
            probabilities = slide.tiles.probabilities[index]
            expected = np.nan_to_num(np.rint(1 + 254 * probabilities.astype(float)))
            assert levels[level][:, y, x].tolist() == expected.tolist()


def test_names_do_not_end_the_xml_of_the_overlay(tmp_path: Path, make_slide) -> None:
    names = ('a"/><Image', "b & c", "läng 肺")
    slide = make_slide(6_000, 4_000, classes=names)
    path = tmp_path / "o.ome.tif"
    write_overlay(path, slide.tiles, '</OME>"\x07\udcff.svs', (6_000, 4_000), 0.5)
    with tifffile.TiffFile(path) as file:
        root = ElementTree.fromstring(file.ome_metadata)
    found = [one.attrib["Name"] for one in root.iter() if one.tag.endswith("Channel")]
    assert found == list(names)
    assert len([one for one in root.iter() if one.tag.endswith("}Image")]) == 1
