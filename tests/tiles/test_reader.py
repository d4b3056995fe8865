"""The one reader: pixels of every format, and a status for everything that is no tile."""

import io
import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from encoders import ADAM7, chunk, png
from PIL import Image, ImageOps, PngImagePlugin

from edgelung.core.errors import EdgelungError
from edgelung.tiles import files
from edgelung.tiles.jpeg import read_header
from edgelung.tiles.reader import (
    ReaderSpec,
    TileError,
    decode_tile,
    read_bytes,
    read_tile,
    resize,
)

SPEC = ReaderSpec(size=64)


def picture(width: int = 100, height: int = 80) -> Image.Image:
    """A smooth picture whose colours and corners all differ."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = np.stack([255 * x, 255 * y, 127 * (x + 1 - y)], axis=-1)
    return Image.fromarray(planes.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def resized(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_exactly_the_resized_pixels(kind: str) -> None:
    tile = decode_tile(encoded(picture(), kind), SPEC)
    assert tile.shape == (64, 64, 3)
    assert tile.dtype == np.uint8
    np.testing.assert_array_equal(tile, resized(picture()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
    ],
)
def test_lossy_formats_are_close(kind: str, options: dict[str, object]) -> None:
    tile = decode_tile(encoded(picture(), kind, **options), SPEC)
    assert np.abs(tile.astype(int) - resized(picture())).mean() < 3


def test_a_tile_of_the_right_size_is_not_resampled() -> None:
    image = picture(64, 64)
    np.testing.assert_array_equal(decode_tile(encoded(image, "PNG"), SPEC), np.asarray(image))


def test_large_jpegs_are_decoded_scaled_but_close_to_full_decoding() -> None:
    image = picture(768, 768)
    tile = decode_tile(encoded(image, "JPEG", quality=95), SPEC)
    assert np.abs(tile.astype(int) - resized(image)).max() <= 6


def test_red_stays_red() -> None:
    for kind in ("PNG", "JPEG"):
        tile = decode_tile(encoded(Image.new("RGB", (90, 90), (250, 10, 20)), kind), SPEC)
        assert tile[..., 0].min() > 240
        assert tile[..., 1:].max() < 30


def test_transparent_pixels_become_white() -> None:
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([200, 0, 0] * 256)
    palette.putpixel((0, 0), 1)
    for data in (encoded(image, "PNG"), encoded(palette, "PNG", transparency=0)):
        tile = decode_tile(data, SPEC)
        assert tile[0, 0].tolist() == [200, 0, 0]
        assert (tile.reshape(-1, 3)[1:] == 255).all()


def test_grey_and_cmyk_become_rgb() -> None:
    grey = picture().convert("L")
    for data in (encoded(grey, "PNG"), encoded(grey, "JPEG", quality=95)):
        tile = decode_tile(data, SPEC).astype(int)
        assert np.abs(tile - resized(grey)).max() <= 8
    cmyk = decode_tile(encoded(picture().convert("CMYK"), "JPEG", quality=95), SPEC).astype(int)
    assert np.abs(cmyk - resized(picture())).mean() < 4


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = np.full((64, 64), 0x8000, np.uint16)
    assert (decode_tile(encoded(Image.fromarray(values), "PNG"), SPEC) == 0x80).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_followed(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(picture(64, 64), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    difference = np.abs(decode_tile(data, SPEC).astype(int) - expected.astype(int))
    assert difference.max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.data
def test_real_tiles_match_pillow(real_tiles: Path) -> None:
    paths = sorted((real_tiles / "lc25000_768").glob("*/*"))
    assert len(paths) == 50
    spec = ReaderSpec()
    for path in paths[::5]:
        expected = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        difference = np.abs(read_tile(path, spec).astype(int) - np.asarray(expected).astype(int))
        assert difference.mean() < 1.5, path


@pytest.mark.data
def test_a_decode_at_full_size_is_not_the_readers(real_tiles: Path) -> None:
    """So a GPU's decoder, which has no eighths, cannot be within two levels of it."""
    for path in sorted((real_tiles / "lc25000_768").glob("*/*"))[::5]:
        full = resize(simplejpeg.decode_jpeg(path.read_bytes(), "RGB"), 224)
        difference = np.abs(read_tile(path, ReaderSpec()).astype(int) - full)
        assert difference.max() > 2, path


@pytest.mark.parametrize(
    ("kind", "mode", "how"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "L", {"transparency": 0}),
        ("PNG", "P", {"transparency": 0}),
        ("PNG", "RGB", {"transparency": (0, 0, 0)}),
        ("WEBP", "RGBA", {"lossless": True, "exact": True}),
        ("TIFF", "RGBA", {}),
        ("TIFF", "LA", {}),
    ],
)
def test_a_tile_of_transparent_pixels_only_is_refused(
    kind: str, mode: str, how: dict[str, object]
) -> None:
    image = Image.new(mode, (64, 64), 0)
    with pytest.raises(TileError, match="every pixel is transparent") as error:
        decode_tile(encoded(image, kind, **how), SPEC)
    assert error.value.status == "unsupported"


def status_of(data: bytes) -> str:
    with pytest.raises(TileError) as error:
        decode_tile(data, SPEC)
    assert error.value.reason
    return error.value.status


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_half_a_file_is_never_predicted(
    kind: str, options: dict[str, object], share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind, **options)
    assert status_of(data[: int(len(data) * share)]) in ("truncated", "corrupt", "unsupported")


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_random_damage_is_a_status_or_a_tile_and_nothing_else(mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture().convert(mode), "JPEG", exif=exif)
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(data)
        for position in rng.integers(2, min(len(data), 700), 3):
            damaged[position] = rng.integers(256)
        with suppress(TileError):
            assert decode_tile(bytes(damaged), SPEC).shape == (64, 64, 3)


def test_strict_pillow_does_not_cost_a_good_tile() -> None:
    """A marker that libjpeg skips and Pillow refuses, in a file with EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encoded(picture(), "JPEG", exif=exif)
    decode_tile(data[:2] + b"\xff\x01" + data[2:], SPEC)


def test_a_cut_jpeg_says_truncated() -> None:
    data = encoded(picture(300, 300), "JPEG")
    assert status_of(data[: len(data) // 2]) == "truncated"


def test_text_is_unsupported() -> None:
    assert status_of(b"not an image at all") == "unsupported"
    assert status_of(encoded(picture(), "GIF")) == "unsupported"


@pytest.mark.parametrize("length", [4, 20, 100, 300])
def test_a_jpeg_cut_in_its_header_is_truncated(length: int) -> None:
    assert status_of(encoded(picture(), "JPEG")[:length]) == "truncated"


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG"])
def test_a_cut_header_is_damage_not_another_format(kind: str) -> None:
    assert status_of(encoded(picture(), kind)[:20]) in ("truncated", "corrupt")


def test_bombs_are_refused_by_their_header() -> None:
    data = bytearray(encoded(Image.new("1", (20_000, 20_000)), "PNG"))
    assert status_of(bytes(data)) == "too-large"
    jpeg = bytearray(encoded(picture(), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = b"\xff\xdc\xff\xdc"
    assert status_of(bytes(jpeg)) == "too-large"


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG"))
    with pytest.raises(TileError) as error:
        read_tile(path, SPEC)
    assert error.value.status == "too-large"


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(), "PNG"))
    look = os.fstat

    def looked(handle: int) -> os.stat_result:
        found = look(handle)
        with path.open("ab") as file:  # a writer that is still at it
            file.write(b"more")
        return found

    monkeypatch.setattr(files.os, "fstat", looked)
    with pytest.raises(TileError, match="changed while it was read"):
        read_tile(path, SPEC)


def test_what_is_no_regular_file_is_unreadable_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    for name in ("pipe.jpg", "nowhere.jpg", "circle.jpg", "missing.jpg"):
        with pytest.raises(TileError) as error:
            read_tile(tmp_path / name, SPEC)
        assert error.value.status == "unreadable", name


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(TileError) as error:
        read_tile(tmp_path / "a.jpg", SPEC)
    assert error.value.status == "empty"


def test_the_spec_survives_json_and_refuses_other_arithmetic() -> None:
    assert ReaderSpec.from_json(SPEC.to_json()) == SPEC
    for change in ({"resize": "nearest"}, {"version": 2}, {"size": "64"}, {"size": 7}):
        with pytest.raises(EdgelungError):
            ReaderSpec.from_json(SPEC.to_json() | change)


def test_the_resize_does_not_depend_on_pillows_order_of_passes() -> None:
    """The width first, whatever the shape: Pillow 13 turns the passes round for tall images."""
    rng = np.random.default_rng(0)
    for height, width in ((400, 300), (300, 400), (2000, 3), (3, 2000), (225, 223)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        narrowed = image.resize((224, height), Image.Resampling.BILINEAR)
        expected = narrowed.resize((224, 224), Image.Resampling.BILINEAR)
        assert resize(image, 224).tobytes() == expected.tobytes()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux tells its descriptors")
def test_folders_in_a_list_leave_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(TileError, match="not a regular file"):
            read_bytes(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe\0\5abc", b"junk"])
def test_the_header_is_read_whatever_stands_in_it(junk: bytes) -> None:
    """EXIF is found behind a comment, and behind what is no segment."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(picture(), "JPEG")
    turned = encoded(picture(), "JPEG", exif=exif)
    found = [bool(read_header(d[:2] + junk + d[2:]).exif) for d in (plain, turned)]
    assert found == [False, True]


def test_a_png_with_its_tail_zeroed_is_never_predicted() -> None:
    """What a power cut or a preallocated file leaves; Pillow skips the checksums of pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")
    for kept in np.linspace(100, len(data) - 5, 40).astype(int):
        with pytest.raises(TileError) as caught:
            decode_tile(data[:kept] + bytes(len(data) - kept), SPEC)
        assert caught.value.status in ("corrupt", "truncated")
    for cut in (1, 4, 12, 13):  # into and before the end mark
        with pytest.raises(TileError) as caught:
            decode_tile(data[:-cut], SPEC)
        assert caught.value.status == "truncated"


def test_a_png_with_missing_rows_is_truncated_though_its_data_ends_cleanly() -> None:
    """Pillow leaves the missing rows black."""
    pixels = np.asarray(picture(64, 64))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    passes = [pixels[top::down, left::right] for top, left, down, right in ADAM7]
    six = b"".join(b"\0" + row.tobytes() for one in passes for row in one)
    header = np.array([64, 64], ">u4").tobytes() + bytes([8, 2, 0, 0])
    for lines, interlaced in ((rows[: 40 * 193], 0), (rows[: 63 * 193], 0), (six, 1)):
        body = chunk(b"IHDR", header + bytes([interlaced]))
        body += chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        assert status_of(b"\x89PNG\r\n\x1a\n" + body) == "truncated"


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_black_png_is_a_tile(bits: int, interlaced: bool) -> None:
    for height, width in ((1, 1), (1, 9), (9, 1), (3, 2), (13, 11)):
        black = np.zeros((height, width, 1), np.uint8)
        assert (decode_tile(png(black, bits, 0, interlaced=interlaced), SPEC) == 0).all()


def test_other_files_are_named_in_the_reason() -> None:
    whole = encoded(picture(), "PNG")
    ios = whole[:8] + chunk(b"CgBI", bytes(4)) + whole[8:]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n"
    for data, status, word in (
        (ios, "unsupported", "an iOS PNG"),
        (whole.replace(b"\r\n", b"\n"), "corrupt", "line ends"),
        (whole.replace(b"\n", b"\r\n"), "corrupt", "line ends"),
        (b"%PDF-1.4\n", "unsupported", "a PDF"),
        (pointer, "unsupported", "a Git LFS pointer"),
    ):
        with pytest.raises(TileError, match=word) as error:
            decode_tile(data, SPEC)
        assert error.value.status == status


def test_a_png_with_much_text_and_a_large_profile_is_a_tile() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("notes", "x" * 2_000_000, zip=True)
    profile = zlib.compress(bytes(100)) + bytes(1_500_000)
    data = encoded(picture(64, 64), "PNG", pnginfo=text, icc_profile=profile)
    np.testing.assert_array_equal(decode_tile(data, SPEC), np.asarray(picture(64, 64)))


@pytest.mark.parametrize("progressive", [False, True])
def test_thousands_of_scans_are_refused_at_once(progressive: bool) -> None:
    """Each scan, however empty, costs libjpeg a pass over all pixels."""
    data = encoded(picture(), "JPEG", progressive=progressive)
    scan = bytes.fromhex("ffda0008010100003f00")
    with pytest.raises(TileError) as caught:
        decode_tile(data[:-2] + 600 * scan + data[-2:], SPEC)
    assert caught.value.status == "too-large"
    # Markers in what follows the picture, as in a phone's moving pictures, are no scans.
    decode_tile(data + 600 * b"\xff\xda\x12\x34", SPEC)


def test_half_a_cmyk_jpeg_is_found_out_though_it_is_closed() -> None:
    data = encoded(picture(200, 200).convert("CMYK"), "JPEG", quality=95)
    decode_tile(data, SPEC)
    with pytest.raises(TileError) as caught:
        decode_tile(data[: len(data) // 2] + b"\xff\xd9", SPEC)
    assert caught.value.status in ("truncated", "corrupt")
