"""OpenSlide's slides: errors cost their tile only, bounds and scanned parts are respected."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
from slide_files import aperio, jpeg_page, tissue, write_svs, write_tiff
from slide_reading import grid_of, open_one, read_all, region

from edgelung.core.errors import EdgelungError
from edgelung.slides.bounds import Rectangle, find_bounds, find_regions, levels_within
from edgelung.slides.open import open_slides
from edgelung.slides.openslide_reader import OpenSlideSlide, over_white, stated_scale
from edgelung.tiles.errors import Status, TileError

SCN = """<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">
<collection sizeX="{w}" sizeY="{h}"><barcode>x</barcode>
<image><view sizeX="{w}" sizeY="{h}" offsetX="0" offsetY="0"/>
<pixels><dimension sizeX="200" sizeY="200" ifd="0"/></pixels>{settings}</image>{images}
</collection></scn>"""
IMAGE = """<image><view sizeX="{w}" sizeY="{h}" offsetX="{x}" offsetY="{y}"/>
<pixels><dimension sizeX="{pw}" sizeY="{ph}" ifd="{ifd}"/></pixels>{settings}</image>"""
SETTINGS = """<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><illuminationSource>brightfield</illuminationSource>
</illuminationSettings></scanSettings>"""


def damaged(path: Path) -> Path:
    """A slide of 5 × 4 tiles; number 7 is none."""
    page = jpeg_page(tissue(1100, 800), description=aperio(1100, 800))
    page.segments = [*page.segments[:7], b"no JPEG at all", *page.segments[8:]]
    return write_tiff(path, [page])


def test_a_damaged_tile_costs_itself_although_openslides_errors_stick(tmp_path: Path) -> None:
    path = damaged(tmp_path / "a.svs")
    slide, direct = OpenSlideSlide(path), open_one(path)
    grid = grid_of(slide, 128)
    reader, failed = slide.open_tiles(grid), set()
    for index in range(len(grid)):
        x, y = grid.corner(index)
        try:
            tile = reader.read(index)
        except TileError as error:
            failed.add((x // 256, y // 256, error.status))
        else:
            assert np.array_equal(tile, region(direct, x, y, 128))
    assert failed == {(2, 1, Status.CORRUPT)}


def test_threads_lose_no_tile_to_a_neighbour_that_is_damaged(tmp_path: Path) -> None:
    path = damaged(tmp_path / "a.svs")
    slide = OpenSlideSlide(path)
    grid = grid_of(slide, 64, 61)
    reader = slide.open_tiles(grid)

    def outcome(index: int) -> bool:
        try:
            reader.read(index)
        except TileError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(outcome, range(len(grid))))
    for index, success in enumerate(read):
        x, y = grid.corner(index)
        touches = x < 768 and x + 64 > 512 and y < 512 and y + 64 > 256
        assert success is not touches


def test_the_overview_of_a_damaged_slide_is_white_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelung.slides.openslide_reader.BLOCK", 256)
    overview = OpenSlideSlide(damaged(tmp_path / "a.svs")).overview(4_000_000)
    assert overview.damaged == 1
    assert (overview.pixels[256:512, 512:768] == 255).all()
    assert overview.pixels[256:512, 256:512].mean() < 250


def test_openslide_and_the_direct_reader_give_the_same_tiles_and_overview(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", 1096, 800)
    direct, other = open_one(path), OpenSlideSlide(path)
    for level, side in ((0, 224), (1, 96)):
        grid = grid_of(direct, side, level=level)
        pairs = zip(read_all(direct, grid), read_all(other, grid), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    one, two = direct.overview(60_000), other.overview(60_000)
    assert np.abs(one.pixels[:100, :100].astype(int) - two.pixels[:100, :100]).mean() < 60


def write_scn(path: Path, *places: tuple[int, int]) -> Path:
    """A Leica slide with parts of 400 × 300 px scanned at `places` of a canvas of 2000 × 1000 px.

    Four of Leica's units are a pixel.
    """
    images = [
        IMAGE.format(w=1600, h=1200, x=4 * x, y=4 * y, pw=400, ph=300, ifd=n, settings=SETTINGS)
        for n, (x, y) in enumerate(places, 1)
    ]
    text = SCN.format(w=8000, h=4000, images="".join(images), settings=SETTINGS)
    macro = jpeg_page(tissue(200, 200), description=text)
    parts = [jpeg_page(tissue(400, 300, seed)) for seed in range(1, len(places) + 1)]
    return write_tiff(path, [macro, *parts], big=True)


def test_parts_that_were_scanned_by_themselves_are_slides_of_their_own(tmp_path: Path) -> None:
    path = write_scn(tmp_path / "a.scn", (100, 50), (1200, 600))
    slides = open_slides(path)
    assert [(s.scene, s.offset, s.reader) for s in slides] == [
        ("region 1", (100, 50), "openslide"),
        ("region 2", (1200, 600), "openslide"),
    ]
    for seed, slide in enumerate(slides, 1):
        assert (slide.levels[0].width, slide.levels[0].height) == (400, 300)
        whole = region(slide, 0, 0, 300).astype(int)
        assert np.abs(whole - tissue(400, 300, seed)[:, :300]).mean() < 8


def test_one_scanned_part_is_the_slide_within_its_bounds(tmp_path: Path) -> None:
    slide = open_one(write_scn(tmp_path / "a.scn", (100, 50)))
    assert (slide.scene, slide.offset, slide.scale.objective) == ("", (100, 50), 20)
    assert slide.kind == "Leica SCN; read by OpenSlide"
    assert (slide.levels[0].width, slide.levels[0].height) == (400, 300)
    assert slide.overview(1_000_000).pixels.shape == (300, 400, 3)


STRANGE = {
    "beyond the edge": ("10", "0", "995", "800"),
    "negative": ("-1", "0", "500", "500"),
    "empty": ("0", "0", "0", "500"),
    "no number": ("a", "0", "500", "500"),
    "huge": ("0", "0", "9" * 5000, "500"),
    "missing in part": ("0", None, "500", "500"),
}


def bounds_of(values: tuple[str | None, ...]) -> dict[str, str]:
    names = ("x", "y", "width", "height")
    pairs = zip(names, values, strict=True)
    return {f"openslide.bounds-{name}": value for name, value in pairs if value is not None}


@pytest.mark.parametrize("strange", STRANGE)
def test_bounds_outside_of_the_slide_are_refused_in_one_line(strange: str) -> None:
    with pytest.raises(EdgelungError, match="states bounds outside of its 1000 × 800 px") as error:
        find_bounds(Path("a.mrxs"), bounds_of(STRANGE[strange]), (1000, 800))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_slide_without_pixels_is_refused() -> None:
    with pytest.raises(EdgelungError, match="a slide of 0 × 800 px"):
        find_bounds(Path("a.mrxs"), {}, (0, 800))


def test_levels_lie_within_the_bounds_and_the_canvas() -> None:
    part = find_bounds(Path("a"), bounds_of(("101", "50", "899", "750")), (1000, 800))
    assert part == Rectangle(101, 50, 899, 750)
    sizes, factors = [(1000, 800), (250, 200), (1, 1)], [1.0, 4.0, 900.0]
    first, second = levels_within(part, sizes, factors)
    assert (first.width, first.height) == (899, 750)
    assert (second.width, second.height) == (224, 187)
    assert 101 / 4 + second.width <= 250


@pytest.mark.parametrize(
    ("corners", "count"),
    [([(0, 0)], 0), ([(0, 0), (500, 0)], 2), ([(0, 0), (99, 99)], 0), ([(0, 0), (901, 0)], 0)],
)
def test_regions_count_if_they_are_several_apart_and_inside(
    corners: list[tuple[int, int]], count: int
) -> None:
    properties = {}
    for number, (x, y) in enumerate(corners):
        for name, value in zip(("x", "y", "width", "height"), (x, y, 100, 100), strict=True):
            properties[f"openslide.region[{number}].{name}"] = str(value)
    assert len(find_regions(properties, (1000, 800))) == count


def test_alpha_over_white_is_rounded() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 255, 100, 128]]], np.uint8)
    assert over_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 255, 177]]]


def test_the_scale_of_openslide_names_its_source() -> None:
    properties = {"openslide.vendor": "hamamatsu", "openslide.mpp-x": "0.23"}
    scale = stated_scale(properties | {"openslide.objective-power": "40"})
    assert (scale.mpp_x, scale.mpp_y, scale.objective) == (0.23, None, 40)
    assert scale.source == "openslide.mpp-x (hamamatsu)"
    assert stated_scale({}).source == ""


def test_a_folder_of_dicom_gives_each_series_as_a_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSlide joins the files of a series; here three SVS files stand for two series."""
    for name in ("a", "b", "c"):
        write_svs(tmp_path / f"{name}.dcm", 300, 300, factors=())

    class Dicom(openslide.OpenSlide):
        @classmethod
        def detect_format(cls, filename: Path) -> str:
            return "dicom"

        @property
        def properties(self) -> dict[str, str]:
            series = "1.2" if "a.dcm" in str(self._filename) else "1.3"
            return {"openslide.vendor": "dicom", "dicom.SeriesInstanceUID": series}

    monkeypatch.setattr(openslide, "OpenSlide", Dicom)
    slides = open_slides(tmp_path)
    assert [slide.scene for slide in slides] == ["1.2", "1.3"]
    assert {slide.path for slide in slides} == {tmp_path}
    assert slides[0].kind == "DICOM; read by OpenSlide"
    (tmp_path / "a.dcm").unlink()
    assert [slide.scene for slide in open_slides(tmp_path)] == [""]
