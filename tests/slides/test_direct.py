"""Tiled TIFF read directly: the pixels of OpenSlide, each stored tile once, damage where it is."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from slide_files import (
    JPEG,
    RGB,
    YCBCR,
    Page,
    abbreviate,
    aperio,
    cut,
    encode,
    halve,
    jpeg_page,
    tissue,
    write_svs,
    write_tiff,
)
from slide_reading import grid_of, open_one, read_all, region

from edgelung.core.errors import EdgelungError
from edgelung.slides.base import Grid
from edgelung.slides.direct import DirectSlide, DirectTiles, count_uses
from edgelung.slides.segments import LevelSegments
from edgelung.tiles.errors import Status, TileError

SVS = {
    "RGB 4:4:4": {},
    "YCbCr 4:2:0": {"ycc": True, "sampling": "420"},
    "YCbCr 4:4:4": {"ycc": True, "sampling": "444"},
    "YCbCr 4:2:2": {"ycc": True, "sampling": "422"},
    "BigTIFF": {"big": True},
    "tiles of 240 px": {"tile": (240, 240)},
    "oblong tiles": {"tile": (128, 48)},
    "three levels": {"factors": (2, 4)},
}


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_svs(tmp_path_factory.mktemp("svs") / "slide.svs", ycc=True, sampling="420")


def same_regions(path: Path, number: int = 10) -> None:
    """Compare random regions of all levels with OpenSlide."""
    slide, other, rng = open_one(path), openslide.OpenSlide(path), np.random.default_rng(7)
    assert slide.reader == "direct"
    assert slide.kind.endswith("compared with OpenSlide")
    assert [(one.width, one.height) for one in slide.levels] == list(other.level_dimensions)
    for level, size in enumerate(slide.levels):
        assert size.downsample == pytest.approx(other.level_downsamples[level])
        for _ in range(number):
            side = int(rng.integers(1, min(size.width, size.height)))
            x = int(rng.integers(0, size.width - side + 1))
            y = int(rng.integers(0, size.height - side + 1))
            corner = round(x * size.downsample), round(y * size.downsample)
            theirs = np.asarray(other.read_region(corner, level, (side, side)))[..., :3]
            assert np.array_equal(region(slide, x, y, side, level), theirs), (level, x, y, side)


@pytest.mark.parametrize("kind", SVS)
def test_an_svs_gives_the_pixels_of_openslide(kind: str, tmp_path: Path) -> None:
    options = SVS[kind]
    same_regions(write_svs(tmp_path / "slide.svs", 1096, 800, **options))


def test_a_pyramidal_tiff_of_tifffile_gives_the_pixels_of_openslide(tmp_path: Path) -> None:
    pixels = tissue(900, 700)
    with tifffile.TiffWriter(tmp_path / "slide.tif", bigtiff=True, byteorder=">") as file:
        for factor in (1, 2):
            file.write(
                halve(pixels, factor),
                tile=(128, 128),
                compression="jpeg",
                photometric="rgb",
                subfiletype=factor - 1,
                metadata=None,
            )
    same_regions(tmp_path / "slide.tif")


def test_both_byte_orders_give_the_same_pixels(tmp_path: Path) -> None:
    page = jpeg_page(tissue(600, 400))
    little, big = (
        open_one(write_tiff(tmp_path / f"{name}.tif", [page], order=order))
        for name, order in (("little", "<"), ("big", ">"))
    )
    assert np.array_equal(region(little, 50, 0, 400), region(big, 50, 0, 400))


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_tiles_without_jpeg_give_the_stored_pixels(
    compression: str | None, planes: str, tmp_path: Path
) -> None:
    pixels = tissue(300, 260)
    stored = pixels if planes == "contig" else pixels.transpose(2, 0, 1)
    options = {"tile": (64, 96), "compression": compression, "planarconfig": planes}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", metadata=None, **options)
    slide = open_one(tmp_path / "a.tif")
    assert slide.eighths == [8]
    assert slide.reader == "direct"
    assert np.array_equal(region(slide, 13, 7, 250), pixels[7:257, 13:263])


@pytest.mark.parametrize("compression", ["jpeg2000", "webp"])
def test_what_openslide_cannot_decompress_is_read_and_said_to_be_uncompared(
    compression: str, tmp_path: Path
) -> None:
    pixels = tissue(300, 260)
    options = {"tile": (128, 128), "compression": compression, "metadata": None}
    arguments = {"lossless": True} if compression == "webp" else {"reversible": True}
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", compressionargs=arguments, **options
    )
    slide = open_one(tmp_path / "a.tif")
    assert "not compared: OpenSlide does not open it" in slide.kind
    assert np.array_equal(region(slide, 0, 0, 260), pixels[:260, :260])


@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_a_scaled_decode_is_the_mean_of_the_full_pixels_within_the_bound(
    eighths: int, svs: Path
) -> None:
    """The bound of the documentation: 1.5 levels on average, for a tile of tissue."""
    slide, factor = open_one(svs), 8 // eighths
    grid = grid_of(slide, 512, 200, eighths=eighths)
    scaled = read_all(slide, grid)
    for index, tile in enumerate(scaled):
        x, y = grid.corner(index)
        full = halve(region(slide, x, y, 512), factor)
        assert tile.shape == full.shape
        assert np.abs(tile.astype(int) - full).mean() <= 1.5
        moved = np.abs(tile[1:].astype(int) - full[:-1]).mean()
        assert moved > 2 * np.abs(tile.astype(int) - full).mean()


def test_the_colours_of_a_scaled_decode_follow_photometric(tmp_path: Path) -> None:
    slide = open_one(write_svs(tmp_path / "rgb.svs"))
    grid = grid_of(slide, 256, eighths=3)
    mean = np.mean([tile.mean((0, 1)) for tile in read_all(slide, grid)], axis=0)
    full = np.mean([tile.mean((0, 1)) for tile in read_all(slide, grid_of(slide, 256))], axis=0)
    assert np.abs(mean - full).max() < 1


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each segment is decoded from now on."""
    decoded: Counter[int] = Counter()
    read = LevelSegments.read

    def counting(self: LevelSegments, number: int, eighths: int = 8) -> np.ndarray:
        decoded[number] += 1
        return read(self, number, eighths)

    monkeypatch.setattr(LevelSegments, "read", counting)
    return decoded


@pytest.mark.parametrize(("side", "step"), [(100, 100), (224, 56), (300, 200), (64, 500)])
def test_each_stored_tile_is_decoded_once_and_none_that_no_tile_touches(
    side: int, step: int, svs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_one(svs)
    grid = grid_of(slide, side, step)
    grid = Grid(0, 8, side, step, 1.0, grid.cells[len(grid) // 3 :])
    decoded = counted(monkeypatch)
    reader = slide.open_tiles(grid)
    for index in range(len(grid)):
        reader.read(index)
    touched = {
        (y // 256) * 5 + x // 256
        for index in range(len(grid))
        for x0, y0 in [grid.corner(index)]
        for x in (*range(x0, x0 + side, 64), x0 + side - 1)
        for y in (*range(y0, y0 + side, 64), y0 + side - 1)
    }
    assert decoded == Counter(touched)
    assert not reader._shared._kept
    assert reader._shared._bytes == 0


def test_threads_read_the_same_pixels_and_decode_each_stored_tile_once(
    svs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_one(svs)
    grid = grid_of(slide, 90, 45)
    alone = read_all(slide, grid)
    decoded = counted(monkeypatch)
    reader = slide.open_tiles(grid)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(reader.read, range(len(grid))))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert set(decoded.values()) == {1}


def test_the_memory_of_decoded_tiles_is_bounded_and_the_pixels_stay_right(
    svs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_one(svs)
    assert isinstance(slide, DirectSlide)
    grid = grid_of(slide, 100, 50)
    expected = read_all(slide, grid)
    decoded = counted(monkeypatch)
    most = 4 * 256 * 256 * 3
    reader = DirectTiles(slide._file, slide.segments[0], grid, most)
    for index, tile in enumerate(expected):
        assert np.array_equal(reader.read(index), tile)
        assert reader._shared._bytes <= most
    assert set(decoded) == set(range(20))


def test_uses_are_counted_as_tiles_touch_segments(svs: Path) -> None:
    slide = open_one(svs)
    assert isinstance(slide, DirectSlide)
    grid = grid_of(slide, 256, 64)
    uses = np.zeros(20, int)
    for index in range(len(grid)):
        x, y = grid.corner(index)
        for row in range(y // 256, (y + 255) // 256 + 1):
            for column in range(x // 256, (x + 255) // 256 + 1):
                uses[row * 5 + column] += 1
    assert np.array_equal(count_uses(grid, slide.segments[0]), uses)


def damaged_svs(path: Path, change: dict[int, bytes]) -> Path:
    """A slide of 5 × 4 JPEG tiles of which some are replaced."""
    page = jpeg_page(tissue(1100, 800), description=aperio(1100, 800))
    page.segments = [change.get(number, data) for number, data in enumerate(page.segments)]
    return write_tiff(path, [page])


def failing(path: Path) -> tuple[set[int], set[Status]]:
    """The stored tiles that alone fail, as numbers, and the statuses."""
    slide, statuses = open_one(path), set()
    grid = grid_of(slide, 50)
    reader = slide.open_tiles(grid)
    failed = set()
    for index in range(len(grid)):
        x, y = grid.corner(index)
        touched = {(b // 256) * 5 + a // 256 for a in (x, x + 49) for b in (y, y + 49)}
        try:
            reader.read(index)
        except TileError as error:
            statuses.add(error.status)
            failed.add(frozenset(touched))
        else:
            failed_alone = {number for one in failed if len(one) == 1 for number in one}
            assert not touched & failed_alone, "a tile that touches damage was read"
    return set.intersection(*map(set, failed)) if failed else set(), statuses


ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # no colour transform
WRONG = {
    "cut short": lambda data: data[: len(data) // 2],
    "noise": lambda data: bytes(np.random.default_rng(1).integers(0, 256, 900, np.uint8)),
    "another size": lambda data: abbreviate(encode(tissue(128, 128)))[1],
    "no end of image and half of its data": lambda data: data[: len(data) * 3 // 4],
    "a frame header only": lambda data: data[:25],
    "RGB by Adobe's mark": lambda data: (
        data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + data[2:]
    ),
    "four components": lambda data: data.replace(b"\0\x11\x08", b"\0\x14\x08", 1),
    "a second frame header": lambda data: data[:2] + data[2:21] + data[2:],
    "codes changed": lambda data: data[:400] + b"\xff\x00\xff\xd0" * 40 + data[560:],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_damaged_jpeg_tile_fails_the_tiles_that_touch_it_and_no_other(
    wrong: str, tmp_path: Path
) -> None:
    page = jpeg_page(tissue(1100, 800))
    bad = WRONG[wrong](page.segments[7])
    failed, statuses = failing(damaged_svs(tmp_path / "a.svs", {7: bad}))
    assert failed == {7}
    assert statuses <= {Status.CORRUPT, Status.TRUNCATED, Status.UNSUPPORTED}


def test_a_tile_of_zero_bytes_is_white(tmp_path: Path) -> None:
    slide = open_one(damaged_svs(tmp_path / "a.svs", {7: b""}))
    assert (region(slide, 512, 256, 256) == 255).all()
    assert region(slide, 256, 256, 256).mean() < 250


def test_a_slide_of_zero_byte_tiles_only_is_white(tmp_path: Path) -> None:
    slide = open_one(damaged_svs(tmp_path / "a.svs", dict.fromkeys(range(20), b"")))
    assert "not compared" in slide.kind
    assert (region(slide, 0, 0, 800) == 255).all()


def test_a_tile_beyond_the_end_of_the_file_fails_alone(tmp_path: Path) -> None:
    page = jpeg_page(tissue(1100, 800), description=aperio(1100, 800))

    def move(offsets: list[int], counts: list[int]) -> None:
        offsets[7] = 1 << 30

    page.move = move
    path = write_tiff(tmp_path / "a.svs", [page])
    with pytest.raises(TileError, match="its data lies beyond the end of the file"):
        region(open_one(path), 512, 256, 50)
    failed, statuses = failing(write_tiff(tmp_path / "a.svs", [page]))
    assert (failed, statuses) == ({7}, {Status.TRUNCATED})


def test_a_tile_whose_offset_is_wrong_fails_alone(tmp_path: Path) -> None:
    page = jpeg_page(tissue(1100, 800), description=aperio(1100, 800))

    def move(offsets: list[int], counts: list[int]) -> None:
        offsets[7] += 40

    page.move = move
    failed, statuses = failing(write_tiff(tmp_path / "a.svs", [page]))
    assert (failed, statuses) == ({7}, {Status.CORRUPT})


def test_a_tile_of_more_bytes_than_its_pixels_could_take_is_not_read(tmp_path: Path) -> None:
    page = jpeg_page(tissue(1100, 800), description=aperio(1100, 800))

    def move(offsets: list[int], counts: list[int]) -> None:
        counts[7] = 1 << 31

    page.move = move
    failed, statuses = failing(write_tiff(tmp_path / "a.svs", [page]))
    assert (failed, statuses) == ({7}, {Status.CORRUPT})


def test_an_unfinished_copy_whose_directory_is_missing_is_refused(tmp_path: Path) -> None:
    whole = write_svs(tmp_path / "a.svs").read_bytes()
    (tmp_path / "b.svs").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EdgelungError, match="its copy is not complete: copy it again"):
        open_one(tmp_path / "b.svs")


def test_an_unfinished_copy_that_was_allocated_before_fails_its_missing_tiles(
    tmp_path: Path,
) -> None:
    before = open_one(damaged_svs(tmp_path / "a.svs", {}))
    assert isinstance(before, DirectSlide)
    _, end = before.segments[0].span(np.arange(20))
    whole = bytearray((tmp_path / "a.svs").read_bytes())
    whole[end // 2 : end] = bytes(end - end // 2)
    (tmp_path / "b.svs").write_bytes(whole)
    after = open_one(tmp_path / "b.svs")
    grid = grid_of(after, 256)
    reader, outcomes = after.open_tiles(grid), Counter[bool]()
    for index in range(len(grid)):
        x, y = grid.corner(index)
        try:
            same = np.array_equal(reader.read(index), region(before, x, y, 256))
        except TileError:
            same = False
        else:
            assert same
        outcomes[same] += 1
    assert outcomes[True] >= 3
    assert outcomes[False] >= 3


@pytest.mark.parametrize(
    ("photometric", "options"),
    [(RGB, {"sampling": "420"}), (YCBCR, {"ycc": True, "mark": "rgb"}), (RGB, {"mark": "jfif"})],
)
def test_a_photometric_that_contradicts_the_jpeg_data_is_refused(
    photometric: int, options: dict[str, str], tmp_path: Path
) -> None:
    mark = options.get("mark", "")
    whole = [
        encode(part, sampling=options.get("sampling", "444")) for part in cut(tissue(600, 500))
    ]
    if mark == "jfif":
        tables, stored = b"", whole
    else:
        tables, stored = abbreviate(whole[0])[0], [abbreviate(one)[1] for one in whole]
    if mark == "rgb":
        stored = [one[:2] + ADOBE_RGB + one[2:] for one in stored]
    page = Page(600, 500, stored, photometric=photometric, compression=JPEG, tables=tables)
    page.description = aperio(600, 500)
    with pytest.raises(EdgelungError, match=r"the TIFF says (RGB|YCbCr) and the JPEG data in it"):
        open_one(write_tiff(tmp_path / "a.svs", [page]))


def test_a_slide_without_its_jpeg_tables_is_refused(tmp_path: Path) -> None:
    page = jpeg_page(tissue(600, 500), description=aperio(600, 500))
    page.tables = b""
    with pytest.raises(EdgelungError, match="none of its tiles can be decoded"):
        open_one(write_tiff(tmp_path / "a.svs", [page]))


def test_a_slide_of_one_pixel_is_read(tmp_path: Path) -> None:
    slide = open_one(write_tiff(tmp_path / "a.tif", [jpeg_page(tissue(1, 1))]))
    assert (slide.levels[0].width, slide.levels[0].height) == (1, 1)
    assert region(slide, 0, 0, 1).shape == (1, 1, 3)
    assert slide.overview(10_000).pixels.shape == (1, 1, 3)


def test_a_tile_that_hangs_over_the_edge_is_an_error(svs: Path) -> None:
    slide = open_one(svs)
    with pytest.raises(TileError, match="hangs over the edge"):
        region(slide, 1099, 0, 400)


@pytest.mark.parametrize("most", [500, 50_000, 5_000_000])
@pytest.mark.parametrize("factors", [(), (4,)])
def test_an_overview_shows_the_whole_slide_within_its_pixels(
    most: int, factors: tuple[int, ...], tmp_path: Path
) -> None:
    path = write_svs(tmp_path / "a.svs", 1096, 800, factors=factors)
    overview = open_one(path).overview(most)
    high, wide = overview.pixels.shape[:2]
    assert wide * high <= most
    assert wide == pytest.approx(1096 / overview.downsample, abs=1)
    assert high == pytest.approx(800 / overview.downsample, abs=1)
    if most < 800 * 1096:
        assert wide * high >= most / 4
    assert overview.damaged == 0
    box = tissue(1096, 800)[:400].mean((0, 1))
    assert np.abs(overview.pixels[: high // 2].mean((0, 1)) - box).max() < 6


def test_the_overview_of_a_damaged_slide_is_white_there_and_counts_it(tmp_path: Path) -> None:
    slide = open_one(damaged_svs(tmp_path / "a.svs", {7: b"\xff\xd8nothing"}))
    overview = slide.overview(4 * 800 * 1100)
    assert overview.damaged == 1
    assert overview.downsample == 1
    assert (overview.pixels[256:512, 512:768] == 255).all()
    assert overview.pixels[256:512, 256:512].mean() < 250
