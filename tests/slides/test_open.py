"""Which reader a slide gets, what the file says of its scale, and what is refused by name."""

import os
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import Page, aperio, cut, halve, jpeg_page, tissue, write_svs, write_tiff
from slide_reading import open_one, region

from edgelung.core import extras
from edgelung.core.errors import EdgelungError
from edgelung.slides import levels
from edgelung.slides.base import Grid, StatedScale
from edgelung.slides.levels import positive
from edgelung.slides.open import open_slides
from edgelung.slides.openslide_reader import OpenSlideSlide
from edgelung.slides.segments import LevelSegments

MICRON = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}


def write_ome(path: Path, *images: np.ndarray, **metadata: object) -> Path:
    """An OME-TIFF of RGB pictures, each with a level of half its size."""
    options = {"tile": (128, 128), "compression": "jpeg", "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True) as file:
        for number, pixels in enumerate(images):
            described = {"axes": "YXS", "Name": f"scan {number + 1}", **metadata}
            file.write(pixels, subifds=1, metadata=described, **options)
            file.write(halve(pixels, 2), subfiletype=1, **options)
    return path


@pytest.fixture
def without_openslide(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)


def refused(path: Path) -> str:
    with pytest.raises(EdgelungError) as error:
        open_slides(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("without_openslide")
def test_without_openslide_the_direct_reader_says_that_it_was_not_compared(tmp_path: Path) -> None:
    slide = open_one(write_svs(tmp_path / "a.svs"))
    assert slide.kind == (
        "Aperio SVS; JPEG tiles read directly, not compared: OpenSlide is not installed"
    )


@pytest.mark.usefixtures("without_openslide")
def test_a_slide_that_needs_openslide_names_the_extra_where_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"no matter what")
    assert "pip install 'edgelung[slides]'" in refused(tmp_path / "a.mrxs")
    assert "pip install 'edgelung[slides]'" in refused(tmp_path)


@pytest.mark.parametrize("level", [0, 1])
def test_where_the_pixels_differ_openslide_reads(
    level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_svs(tmp_path / "a.svs")
    right, read = open_one(path), LevelSegments.read

    def wrong(self: LevelSegments, number: int, eighths: int = 8) -> np.ndarray:
        pixels = read(self, number, eighths)
        differs = (self.layout.width == 1100) == (level == 0)
        return np.roll(pixels, 3, axis=0) if differs else pixels

    monkeypatch.setattr(LevelSegments, "read", wrong)
    slide = open_one(path)
    assert slide.reader == "openslide"
    assert "whose pixels differ from those of the direct reader" in slide.kind
    assert slide.scale == right.scale
    monkeypatch.undo()
    assert np.array_equal(region(slide, 3, 5, 600), region(right, 3, 5, 600))


def test_rgb_read_as_ycbcr_is_noticed_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = write_svs(tmp_path / "a.svs"), LevelSegments.read

    def as_ycc(self: LevelSegments, number: int, eighths: int = 8) -> np.ndarray:
        return np.asarray(Image.fromarray(read(self, number, eighths), "YCbCr").convert("RGB"))

    monkeypatch.setattr(LevelSegments, "read", as_ycc)
    assert open_one(path).reader == "openslide"


@pytest.mark.parametrize(
    ("rest", "scale"),
    [
        ("AppMag = 20|MPP = 0.4990", (0.499, 20, "aperio.MPP")),
        ("MPP = 0.2498", (0.2498, None, "aperio.MPP")),
        ("AppMag = 40|Left = 1", (None, 40, "")),
        ("MPP = 0,25|AppMag = 40", (0.25, 40, "aperio.MPP")),
        ("MPP = nan|AppMag = -20", (None, None, "")),
        ("MPP = 0|AppMag = 20x", (None, None, "")),
        ("Date = 1", (None, None, "")),
    ],
)
def test_the_scale_of_an_svs_is_what_its_description_says(
    rest: str, scale: tuple[float | None, float | None, str], tmp_path: Path
) -> None:
    mpp, objective, source = scale
    found = open_one(write_svs(tmp_path / "a.svs", 300, 300, factors=(), rest=rest)).scale
    assert found == StatedScale(mpp, mpp, objective, source)


@pytest.mark.parametrize(
    ("unit", "resolution", "mpp"), [(3, 20_000, 0.5), (2, 50_800, 0.5), (1, 20_000, None)]
)
def test_the_resolution_tags_are_a_stated_scale_with_their_source(
    unit: int, resolution: int, mpp: float | None, tmp_path: Path
) -> None:
    options = {"resolution": (resolution, resolution), "resolutionunit": unit, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", tissue(300, 300), tile=(128, 128), **options)
    source = "the TIFF's resolution tags" if mpp else ""
    assert open_one(tmp_path / "a.tif").scale == StatedScale(mpp, mpp, None, source)


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [
        (0.25, "µm", 0.25),
        (250, "nm", 0.25),
        (0.00025, "mm", 0.25),
        (0.25, None, 0.25),
        (1, "pixel", None),
        (0, "µm", None),
    ],
)
def test_the_scale_of_an_ome_tiff_is_read_with_its_unit(
    size: float, unit: str | None, mpp: float | None, tmp_path: Path
) -> None:
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    sizes = {"PhysicalSizeX": size, "PhysicalSizeY": size}
    slide = open_one(write_ome(tmp_path / "a.ome.tif", tissue(300, 260), **sizes, **units))
    assert slide.scale.mpp_x == slide.scale.mpp_y == (mpp and pytest.approx(mpp))
    assert slide.scale.source == ("PhysicalSizeX in the OME-XML" if mpp else "")


def test_the_pixels_of_an_ome_tiff_are_those_of_tifffile(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", tissue(700, 500), **MICRON)
    slide = open_one(path)
    assert [(one.width, one.height) for one in slide.levels] == [(700, 500), (350, 250)]
    with tifffile.TiffFile(path) as file:
        for level, stored in enumerate(file.series[0].levels):
            whole, side = stored.asarray(), 250
            for x, y in ((0, 0), (77, 0), (100, 0)):
                found = region(slide, x, y, side, level)
                assert np.array_equal(found, whole[y : y + side, x : x + side])


def test_planes_of_an_ome_tiff_are_one_picture(tmp_path: Path) -> None:
    pixels = tissue(300, 260)
    options = {"tile": (128, 128), "photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(
        tmp_path / "a.ome.tif", pixels.transpose(2, 0, 1), metadata={"axes": "SYX"}, **options
    )
    slide = open_one(tmp_path / "a.ome.tif")
    assert np.array_equal(region(slide, 20, 10, 250), pixels[10:260, 20:270])


def test_the_series_of_an_ome_tiff_are_slides_of_their_own(tmp_path: Path) -> None:
    pictures = tissue(400, 300, 1), tissue(300, 300, 2)
    first, second = open_slides(write_ome(tmp_path / "a.ome.tif", *pictures, **MICRON))
    assert (first.scene, second.scene) == ("scan 1", "scan 2")
    first.close()
    assert (second.levels[0].width, second.levels[0].height) == (300, 300)
    for slide, pixels in ((second, pictures[1]),):
        close = np.abs(region(slide, 0, 0, 300).astype(int) - pixels).mean()
        assert close < 6


def test_a_label_beside_the_scan_is_no_slide(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", tissue(300, 300), tissue(300, 200))
    data = path.read_bytes()
    path.write_bytes(data.replace(b'Name="scan 2"', b'Name="label "'))
    assert open_one(path).scene == "scan 1"


FLUORESCENCE = {
    "an OME-TIFF of uint16 samples": (np.zeros((3, 300, 300), np.uint16), "CYX", {}),
    "3 channels, 1 focal planes and 1 times, 1 samples": (
        np.zeros((3, 300, 300), np.uint8),
        "CYX",
        {"photometric": "minisblack"},
    ),
    "3 channels, 4 focal planes and 1 times": (
        np.zeros((4, 300, 300, 3), np.uint8),
        "ZYXS",
        {"photometric": "rgb"},
    ),
}


@pytest.mark.parametrize("reason", FLUORESCENCE)
def test_an_ome_tiff_of_another_kind_is_refused_with_the_reason(
    reason: str, tmp_path: Path
) -> None:
    pixels, axes, options = FLUORESCENCE[reason]
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), metadata={"axes": axes}, **options)
    assert reason in refused(path)


def test_a_stack_of_full_pages_is_refused(tmp_path: Path) -> None:
    page = jpeg_page(tissue(600, 500))
    path = write_tiff(tmp_path / "a.tif", [page, page, page])
    assert "3 pages of its full size" in refused(path)


def test_a_page_of_another_shape_is_no_level(tmp_path: Path) -> None:
    pixels = tissue(600, 500)
    macro, small = jpeg_page(tissue(500, 200), reduced=True), jpeg_page(halve(pixels, 2))
    slide = open_one(write_tiff(tmp_path / "a.tif", [jpeg_page(pixels), macro, small]))
    assert [(one.width, one.height) for one in slide.levels] == [(600, 500), (300, 250)]


def test_a_level_of_which_nothing_can_be_decoded_is_left_out(tmp_path: Path) -> None:
    pixels = tissue(600, 500)
    small = jpeg_page(halve(pixels, 2), reduced=True)
    small.segments = [b"\xff\xd8 noise"] * len(small.segments)
    slide = open_one(write_tiff(tmp_path / "a.tif", [jpeg_page(pixels), small]))
    assert len(slide.levels) == 1


def test_what_is_no_slide_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(tissue(300, 200)).save(tmp_path / "a.jpg")
    assert "an ordinary image, not a slide; run `edgelung infer`" in refused(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "a.tif", tissue(300, 200))
    assert "an ordinary TIFF of 300 × 200 px that is not tiled" in refused(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "grey.tif", tissue(300, 300)[..., 0], tile=(128, 128))
    assert "a slide is 8-bit RGB" in refused(tmp_path / "grey.tif")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((300, 300, 3), np.uint16), tile=(128, 128))
    assert "samples of 16 bits; a slide is 8-bit RGB" in refused(tmp_path / "deep.tif")
    (tmp_path / "notes.txt").write_text("no slide")
    assert "is no slide that OpenSlide reads" in refused(tmp_path / "notes.txt")
    (tmp_path / "empty.svs").touch()
    assert "holds no bytes" in refused(tmp_path / "empty.svs")
    assert "No such file" in refused(tmp_path / "missing.svs")
    assert "a folder without a DICOM slide" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.svs")
    assert "not a regular file" in refused(tmp_path / "pipe.svs")


def test_a_large_tiff_in_strips_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "SLIDE_PIXELS", 600 * 700 - 1)
    pixels = tissue(600, 700)
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=64, compression="lzw", metadata=None)
    slide = open_one(tmp_path / "a.tif")
    assert "LZW strips read directly" in slide.kind
    assert np.array_equal(region(slide, 500, 590, 100), pixels[590:690, 500:600])


@pytest.mark.parametrize("code", [33003, 33005])
def test_a_jpeg_2000_svs_is_read_by_openslide(code: int, tmp_path: Path) -> None:
    pixels = tissue(500, 400)
    segments = [
        imagecodecs.jpeg2k_encode(part, codecformat="J2K", reversible=True, mct=False)
        for part in cut(pixels)
    ]
    page = Page(500, 400, segments, compression=code, description=aperio(500, 400))
    slide = open_one(write_tiff(tmp_path / "a.svs", [page]))
    assert slide.reader == "openslide"
    assert slide.kind == "Aperio SVS; read by OpenSlide"
    assert slide.scale == StatedScale(0.5, 0.5, 20, "aperio.MPP")
    if code == 33005:
        assert np.array_equal(region(slide, 7, 3, 390), pixels[3:393, 7:397])


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    rgba = np.dstack([tissue(300, 260), np.full((260, 300), 255, np.uint8)])
    rgba[:100, :, 3], rgba[100:200, :, 3] = 0, 128
    options = {"tile": (128, 128), "extrasamples": ["unassalpha"], "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", **options)
    slide = open_one(tmp_path / "a.tif")
    found = region(slide, 0, 0, 260).astype(int)
    assert (found[:100] == 255).all()
    half = rgba[100:200, :260, :3] * (128 / 255) + 127
    assert np.abs(found[100:200] - half).max() <= 2
    assert np.array_equal(found[200:], rgba[200:260, :260, :3])


def test_the_small_pictures_of_an_olympus_file_are_not_taken_for_its_slide(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.vsi", [jpeg_page(tissue(600, 500))])
    assert "an Olympus slide" in refused(path)


@pytest.mark.parametrize("suffix", [".ndpi", ".scn", ".bif"])
def test_the_layouts_of_other_scanners_are_left_to_openslide(suffix: str, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / f"a{suffix}", [jpeg_page(tissue(600, 500))])
    assert open_one(path).reader == "openslide"


def test_a_scale_that_a_slide_does_not_have_is_an_error(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", 300, 300, factors=())
    grid = Grid(0, 4, 64, 64, 1.0, np.zeros((1, 2), np.int32))
    open_one(path).open_tiles(grid)
    with pytest.raises(ValueError, match="a grid at 4/8"):
        OpenSlideSlide(path).open_tiles(grid)


def test_a_number_of_a_scale_is_above_zero_and_finite() -> None:
    assert [positive(text) for text in ("0.5", "0,5", "2.5e-1", "4E+1")] == [0.5, 0.5, 0.25, 40]
    for text in ("", "0", "-1", "nan", "inf", "1e999", "0.5 0.6", "٣", "9" * 400):
        assert positive(text) is None
