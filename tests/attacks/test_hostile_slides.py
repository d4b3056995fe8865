"""Slides made to cost memory or time, or to show wrong pixels: refused, or a tile with a status."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from slide_files import (
    Page,
    abbreviate,
    aperio,
    cut,
    encode,
    halve,
    jpeg_page,
    tissue,
    write_tiff,
)
from slide_reading import open_one, region

from edgelung.core.errors import EdgelungError
from edgelung.slides import openslide_reader
from edgelung.slides.open import open_slides
from edgelung.tiles.errors import TileError

MOST = 64 * 2**20  # bytes that Python may allocate while it looks at a hostile slide


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hostile TIFF reaches OpenSlide before it is refused."""
    monkeypatch.setattr(openslide_reader, "need_openslide", lambda what: pytest.fail("reached"))


def refused(path: Path) -> str:
    tracemalloc.start()
    try:
        with pytest.raises(EdgelungError) as error:
            open_slides(path)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


def page(**entries: tuple[int, list[int]]) -> Page:
    """A level of 600 × 500 px, some of whose entries (by tag, as `t256`) are replaced."""
    made = jpeg_page(tissue(600, 500), description=aperio(600, 500))
    made.entries |= {int(tag[1:]): entry for tag, entry in entries.items()}
    return made


def test_directories_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.svs", [page(), page()])
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    path.write_bytes(data)
    assert "lead in a circle" in refused(path)


def test_more_directories_than_a_slide_has_are_refused(tmp_path: Path) -> None:
    entries = struct.pack("<HHHII", 1, 256, 4, 1, 16)
    data = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for number in range(20_000):
        data += entries + struct.pack("<I", 8 + 18 * (number + 1))
    (tmp_path / "a.svs").write_bytes(data + bytes(18))
    assert "more than 256 directories" in refused(tmp_path / "a.svs")


def test_a_table_of_a_million_tiles_over_a_tiny_file_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.svs", [page(t256=(4, [256_000]), t257=(4, [256_000]))])
    data = bytearray(path.read_bytes())
    for tag in (324, 325):
        at = data.rindex(struct.pack("<HH", tag, 4))
        struct.pack_into("<I", data, at + 4, 1_000_000)
    path.write_bytes(data)
    assert "beyond the file's end" in refused(path)


@pytest.mark.parametrize(
    ("width", "height", "tile"),
    [(600, 500, 2**31), (2**31, 2**31, 2**31), (2**31, 2**31, 256), (60_000, 60_000, 16)],
)
def test_sizes_without_their_tiles_are_refused(
    width: int, height: int, tile: int, tmp_path: Path
) -> None:
    sizes = {"t256": (4, [width]), "t257": (4, [height])}
    tiles = {"t322": (4, [tile]), "t323": (4, [tile])}
    refused(write_tiff(tmp_path / "a.svs", [page(**sizes, **tiles)]))


def test_one_tile_of_a_huge_picture_is_refused(tmp_path: Path) -> None:
    sizes = {tag: (4, [60_000]) for tag in ("t256", "t257", "t322", "t323")}
    one = page(**sizes)
    one.segments = one.segments[:1]
    assert "the limit is 16777216 px each" in refused(write_tiff(tmp_path / "a.svs", [one]))


def test_more_pixels_than_a_slide_has_are_refused(tmp_path: Path) -> None:
    sizes = {"t256": (4, [2**25]), "t257": (4, [2**13])}
    one = page(**sizes, t322=(4, [4096]), t323=(4, [4096]))
    one.segments = [b""] * (2**13 * 2)
    assert "the limit is 137438953472" in refused(write_tiff(tmp_path / "a.svs", [one]))


def test_the_overview_of_a_wide_slide_without_stored_tiles_takes_little_memory(
    tmp_path: Path,
) -> None:
    one = page(t256=(4, [2**25]), t257=(4, [4096]), t322=(4, [4096]), t323=(4, [4096]))
    one.segments = [b""] * 2**13
    slide = open_one_without_openslide(write_tiff(tmp_path / "a.tif", [one]))
    tracemalloc.start()
    overview = slide.overview(100_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MOST
    assert (overview.pixels == 255).all()


def test_a_jpeg_bomb_in_a_tile_is_a_damaged_tile(tmp_path: Path) -> None:
    one = page()
    bomb = bytearray(one.segments[1])
    frame = bomb.index(b"\xff\xc0")
    struct.pack_into(">HH", bomb, frame + 5, 65_500, 65_500)
    one.segments = [one.segments[0], bytes(bomb), *one.segments[2:]]
    path = write_tiff(tmp_path / "a.tif", [one])
    slide = open_one_without_openslide(path)
    with pytest.raises(TileError, match="JPEG data of 65500×65500 px in a TIFF tile of 256×256 px"):
        region(slide, 256, 0, 200)
    assert region(slide, 0, 0, 200).shape == (200, 200, 3)


def open_one_without_openslide(path: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgelung.slides.compare.find_openslide", lambda: None)
        return open_one(path)


def test_a_progressive_jpeg_of_endless_scans_is_a_damaged_tile(tmp_path: Path) -> None:
    one = page()
    scan = one.segments[1][one.segments[1].index(b"\xff\xda") :]
    many = one.segments[1].replace(b"\xff\xc0", b"\xff\xc2", 1)[:-2] + scan[:-2] * 2000
    one.segments = [one.segments[0], many[:190_000] + b"\xff\xd9", *one.segments[2:]]
    slide = open_one_without_openslide(write_tiff(tmp_path / "a.tif", [one]))
    with pytest.raises(TileError):
        region(slide, 256, 0, 200)


OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>'
BOMBS = {
    "entities": '<!DOCTYPE a [<!ENTITY b "{}">]>'.format("x" * 1000) + OME.format("&b;" * 1000),
    "too long": OME.format(" " * (5 * 2**20)),
    "too many parts": OME.format("<Image/>" * 2**17),
    "too deep": "<OME>" + "<a>" * 20_000,
    "too many images": OME.format("<Image><Pixels/></Image>" * 1000),
    "a page that is not there": OME.format(
        '<Image><Pixels SizeC="3"><TiffData IFD="99999999999"/></Pixels></Image>'
    ),
    "a size that is no number": OME.format('<Image><Pixels SizeC="٣"/></Image>'),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_ome_xml_bomb_is_refused(bomb: str, tmp_path: Path) -> None:
    one = jpeg_page(tissue(600, 500), description=BOMBS[bomb])
    refused(write_tiff(tmp_path / "a.ome.tif", [one]))


@pytest.mark.parametrize("tile", [2**31, 8192])
def test_the_structure_is_checked_for_the_scanners_that_openslide_reads(
    tile: int, tmp_path: Path
) -> None:
    one = page(t322=(4, [tile]), t323=(4, [tile]), t256=(4, [9000]), t257=(4, [9000]))
    one.description = "www.leica-microsystems.com/scn"
    refused(write_tiff(tmp_path / "a.scn", [one]))


def test_sub_directories_that_lead_back_are_no_endless_levels(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [page(t330=(4, [8, 8]))])
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    at = data.rindex(struct.pack("<HHI", 330, 4, 2))
    place = struct.unpack_from("<I", data, at + 8)[0]
    struct.pack_into("<II", data, place, first, first)
    path.write_bytes(data)
    assert len(open_one_without_openslide(path).levels) == 1


def test_a_tile_of_the_wrong_colours_among_right_ones_is_a_status(tmp_path: Path) -> None:
    one = jpeg_page(tissue(600, 500), ycc=False, sampling="444")
    colours = abbreviate(encode(tissue(256, 256), sampling="420"))[1]
    one.segments = [*one.segments[:4], colours, *one.segments[5:]]
    slide = open_one_without_openslide(write_tiff(tmp_path / "a.tif", [one]))
    with pytest.raises(TileError, match="the TIFF says RGB and the JPEG data in it YCbCr"):
        region(slide, 300, 300, 100)


def test_random_damage_is_a_refusal_a_status_or_a_tile_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    whole = write_tiff(tmp_path / "a.tif", [jpeg_page(tissue(500, 300))]).read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        directory = struct.unpack_from("<I", data, 4)[0]
        start = directory - 700 if rng.random() < 0.7 else 0
        for at in rng.integers(start, len(data), 3):
            data[at] = rng.integers(0, 256)
        (tmp_path / "b.tif").write_bytes(data)
        try:
            slide = open_one_without_openslide(tmp_path / "b.tif")
            region(slide, 0, 0, min(200, slide.levels[0].width, slide.levels[0].height))
        except (EdgelungError, TileError):
            continue


Table = list[int]
OVERLAPS = {
    "another length": lambda _, counts: counts.__setitem__(0, counts[0] - 1),
    "within the other": lambda offsets, _: offsets.__setitem__(0, offsets[0] + 99),
    "over the other": lambda offsets, counts: counts.__setitem__(0, offsets[3] - offsets[0]),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("compression", [1, 7])
def test_tiles_that_share_a_part_of_their_bytes_are_damaged(
    compression: int, overlap: str, tmp_path: Path
) -> None:
    """Tile 0 and tile 1 of the table say that the same bytes are theirs."""

    def move(offsets: Table, counts: Table) -> None:
        offsets[0], counts[0] = offsets[1], counts[1]
        OVERLAPS[overlap](offsets, counts)

    one = page()
    if compression == 1:
        one = Page(600, 500, [part.tobytes() for part in cut(tissue(600, 500))], compression=1)
    one.move = move
    slide = open_one_without_openslide(write_tiff(tmp_path / "a.tif", [one]))
    fails_alone = compression == 7 and overlap == "within the other"  # no JPEG begins there
    for x in (0,) if fails_alone else (0, 256):
        with pytest.raises(
            TileError, match=None if fails_alone else "overlaps that of another tile"
        ):
            region(slide, x, 0, 200)
    assert region(slide, 0, 256, 200).shape == (200, 200, 3)


def test_equal_tiles_may_be_stored_once_and_none_in_the_header(tmp_path: Path) -> None:
    def move(offsets: Table, counts: Table) -> None:
        offsets[0], counts[0] = offsets[1], counts[1]
        offsets[2] = 0

    one = Page(600, 500, [part.tobytes() for part in cut(tissue(600, 500))], compression=1)
    one.move = move
    slide = open_one_without_openslide(write_tiff(tmp_path / "a.tif", [one]))
    assert np.array_equal(region(slide, 0, 0, 200), region(slide, 256, 0, 200))
    with pytest.raises(TileError):
        region(slide, 512, 0, 80)


@pytest.mark.parametrize("factor", [4, 16])
@pytest.mark.parametrize("level", ["white", "inverted", "right", "shifted"])
def test_a_level_that_shows_something_else_is_left_out_and_said(
    level: str, factor: int, tmp_path: Path
) -> None:
    pixels = tissue(1024, 768)
    small = halve(pixels, factor)
    other = {
        "white": np.full_like(small, 250),
        "inverted": 255 - small,
        "right": small,
        "shifted": np.roll(small, 1, (0, 1)),
    }[level]
    pages = [jpeg_page(pixels), jpeg_page(np.ascontiguousarray(other))]
    slide = open_one_without_openslide(write_tiff(tmp_path / "a.tif", pages))
    is_right = level in ("right", "shifted")
    assert len(slide.levels) == (2 if is_right else 1)
    assert ("without level 1" in slide.kind) is not is_right


def test_a_level_of_tiles_that_were_never_written_is_left_out(tmp_path: Path) -> None:
    """A converter that was stopped: level 0 is whole, the next one is empty."""
    empty = jpeg_page(halve(tissue(1024, 768), 4))
    empty.segments = [b""] * len(empty.segments)
    path = write_tiff(tmp_path / "a.tif", [jpeg_page(tissue(1024, 768)), empty])
    assert len(open_one_without_openslide(path).levels) == 1
