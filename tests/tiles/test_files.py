"""Slides by name and content, optional imports, and what decoders print."""

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoders import page, png, tiff
from PIL import Image

from edgelung.tiles import files, tiff_codecs
from edgelung.tiles.find import SLIDE_SUFFIXES, FoundFile
from edgelung.tiles.reader import (
    ReaderSpec,
    TileError,
    decode_tile,
    looks_like,
    looks_like_image,
    read_tile,
)

SPEC = ReaderSpec(size=32)
TILE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def refused(data: bytes) -> TileError:
    with pytest.raises(TileError) as caught:
        decode_tile(data, SPEC)
    return caught.value


@pytest.mark.parametrize("suffix", sorted(SLIDE_SUFFIXES))
def test_a_slides_name_is_never_a_label(suffix: str, tmp_path: Path) -> None:
    """A .mrxs is a whole JPEG, of a thumbnail."""
    path = tmp_path / f"case{suffix.upper()}"
    Image.fromarray(TILE).save(path, "JPEG")
    with pytest.raises(TileError, match="run `edgelung slide` on it") as caught:
        read_tile(path, SPEC)
    assert caught.value.status == "slide"


def test_a_slide_says_how_large_it_is(tmp_path: Path) -> None:
    wide = page(TILE, 8, 2, tags={256: [46_000], 257: [32_914], 322: [256], 323: [256]})
    small = page(TILE, 8, 2, tags={256: [11_500], 257: [8228], 322: [256], 323: [256]})
    wide["tags"][270] = b"Aperio Image Library v12\0"
    path = tmp_path / "case.svs"
    path.write_bytes(tiff(wide, small, order=">", big=True))
    for suffix in (".svs", ".tif"):
        path = path.rename(tmp_path / f"case{suffix}")
        with pytest.raises(TileError) as caught:
            read_tile(path, SPEC)
        assert caught.value.status == "slide"
        assert caught.value.reason.startswith(
            "a whole slide (46,000 × 32,914 px, 2 levels, Aperio)"
        )


def test_a_slide_above_the_limit_of_bytes_is_a_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    tags = {256: [46_000], 257: [32_914], 322: [256], 323: [256]}
    path = tmp_path / "case.tif"
    path.write_bytes(tiff(page(TILE, 8, 2, tags=tags)))
    with pytest.raises(TileError) as caught:
        read_tile(path, SPEC)
    assert caught.value.status == "slide"


def test_big_tiffs_look_like_images(tmp_path: Path) -> None:
    path = tmp_path / "noname"
    path.write_bytes(tiff(page(TILE, 8, 2), big=True))
    assert looks_like_image(FoundFile(path.name, str(path)))
    assert looks_like(path.read_bytes())


def test_jpeg_and_png_folders_import_no_optional_library() -> None:
    code = (
        "import sys; from edgelung.tiles.reader import *; import io; from PIL import Image\n"
        "for kind in ('JPEG', 'PNG', 'TIFF', 'BMP', 'WEBP'):\n"
        "    file = io.BytesIO(); Image.new('RGB', (40, 40)).save(file, kind)\n"
        "    decode_tile(file.getvalue(), ReaderSpec())\n"
        "print([n for n in ('imagecodecs', 'tifffile', 'xml.parsers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_a_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_codecs, "_library", [None])
    for code in (34712, 34925, 50000, 50001):
        error = refused(tiff(page(TILE, 8, 2, segments=[b"x" * 50], tags={259: [code]})))
        assert error.status == "unsupported"
        assert "pip install 'edgelung[tiff]'" in error.reason


@pytest.mark.parametrize("name", ["noise", "flat", "ramp", "one"])
def test_lzw_is_the_same_without_the_extra(name: str) -> None:
    codecs = pytest.importorskip("imagecodecs")
    rng = np.random.default_rng(0)
    data = {
        "noise": rng.integers(0, 256, 200_000, np.uint8),
        "flat": np.zeros(300_000, np.uint8),
        "ramp": (np.arange(100_000) // 40 % 256).astype(np.uint8),
        "one": np.array([7], np.uint8),
    }[name].tobytes()
    assert tiff_codecs.unlzw(codecs.lzw_encode(data), len(data)) == data


@pytest.mark.parametrize(
    "compression", ["zlib", "lzw", "packbits", "zstd", "lzma", "jpeg", "jpeg2000", "webp", "png"]
)
@pytest.mark.parametrize("extra", [True, False])
def test_a_segment_that_is_cut_off_is_never_half_a_tile(
    compression: str,
    extra: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, TILE, photometric="rgb", compression=compression, metadata=None)
    data = buffer.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        tags = {tag: [int(file.pages[0].tags[tag].value)] for tag in (259, 262)}
        tags[347] = file.pages[0].jpegtables or None
    if not extra:
        monkeypatch.setattr(tiff_codecs, "_library", [None])
    for share in (0.1, 0.5, 0.9):
        cut = data[start : start + int(length * share)]
        error = refused(tiff(page(TILE, 8, 2, segments=[cut], tags=tags)))
        assert error.status in ("truncated", "corrupt", "unsupported")
        assert "\n" not in error.reason
    assert capfd.readouterr() == ("", "")


def test_fax_is_refused_because_damage_to_it_goes_unnoticed() -> None:
    buffer = io.BytesIO()
    Image.fromarray(TILE).convert("1").save(buffer, "TIFF", compression="group4")
    error = refused(buffer.getvalue())
    assert (error.status, "CCITT Group 4" in error.reason) == ("unsupported", True)


@pytest.mark.parametrize(
    "tags",
    [
        {256: [2**31 - 1], 257: [2**31 - 1]},
        {256: [60_000], 257: [60_000]},
        {322: [2**30], 323: [2**30]},
        {273: [2**31]},
        {279: [1]},
        {270: b"<OME" + b"<a>" * 100_000},
    ],
)
def test_hostile_headers_are_refused_at_once(tags: dict[int, object]) -> None:
    assert refused(tiff(page(TILE, 8, 2, tags=tags))).reason


def test_directories_in_a_circle_end() -> None:
    data = bytearray(tiff(page(TILE, 8, 2), page(TILE, 8, 2)))
    first = data[4:8]
    data[-4:] = first
    assert refused(bytes(data)).status == "corrupt"


def test_a_deflate_bomb_is_cut_off_at_the_size_of_its_strip() -> None:
    data = zlib.compress(bytes(2**24))
    assert len(tiff_codecs.inflate(data, 1000)) == 1000
    error = refused(tiff(page(TILE, 8, 2, compression=8, segments=[data])))
    assert (error.status, "more than" in error.reason) == ("unsupported", True)


def test_a_png_without_pixels_is_damage() -> None:
    whole = png(TILE, 8, 2)
    start = whole.index(b"IDAT") - 4
    assert refused(whole[:start] + whole[-12:]).status == "corrupt"
