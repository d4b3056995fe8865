"""Damage of a JPEG that libjpeg does not warn of, and JPEG data that contradicts its TIFF."""

import io
import itertools
import re

import numpy as np
import pytest
from encoders import jpeg, page, segment, tiff
from PIL import Image

from edgelung.tiles.jpeg import decode_jpeg, read_header
from edgelung.tiles.jpeg_scans import (
    check_codes,
    check_complete,
    read_scans,
    sampling,
    scan_headers,
)
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile

SPEC = ReaderSpec(size=64)
H, W = 64, 96
Y, X = np.mgrid[0:H, 0:W]
PICTURE = np.stack([X * 255 // (W - 1), Y * 255 // (H - 1), X + Y], -1).astype(np.uint8)
YCC = np.asarray(Image.fromarray(PICTURE).convert("YCbCr")).astype(float)
EOI = b"\xff\xd9"
PLAIN = [(1, 1)] * 3
USUAL = [PLAIN, [(2, 1), (1, 1), (1, 1)], [(2, 2), (1, 1), (1, 1)]]
ODD = [
    *([(h, v), (1, 1), (1, 1)] for h, v in [(4, 2), (2, 4), (3, 1), (3, 2), (1, 3)]),
    [(2, 2), (2, 1), (1, 1)],
]
ADOBE = [segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([n])) for n in range(3)]


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def status_of(data: bytes) -> str:
    try:
        decode_tile(data, SPEC)
    except TileError as error:
        return error.status
    return "ok"


def in_tiff(data: bytes, photometric: int) -> bytes:
    return tiff(page(PICTURE, 8, photometric, segments=[data], compression=7))


def scan_starts(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(b"\xff\xda", data)]


def numbered(data: bytes, numbers: bytes) -> bytes:
    """The JPEG of one scan with other component numbers."""
    out = bytearray(data)
    frame, scan = out.index(b"\xff\xc0"), out.index(b"\xff\xda")
    for i, number in enumerate(numbers):
        out[frame + 10 + 3 * i] = out[scan + 5 + 2 * i] = number
    return bytes(out)


# ---- scans that are missing


@pytest.mark.parametrize("factors", [*USUAL, *ODD])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_jpeg_without_the_scan_of_a_component_is_truncated(
    factors: list[tuple[int, int]], lost: int
) -> None:
    data = jpeg(YCC, factors, separate_scans=True)
    parts = [*scan_starts(data), len(data) - 2]
    without = data[: parts[lost]] + data[parts[lost + 1] :]
    assert status_of(data) == "ok"
    assert status_of(without) == "truncated"
    assert status_of(in_tiff(data, 6)) == "ok"
    assert status_of(in_tiff(without, 6)) == "truncated"


def test_a_single_scan_of_one_component_of_three_is_truncated() -> None:
    data = jpeg(YCC[..., :1], [(1, 1)])
    frame = segment(0xC0, b"\x08" + bytes([0, H, 0, W, 3]) + b"\1\x11\0\2\x11\0\3\x11\0")
    start = data.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    assert status_of(data[:start] + frame + data[end:]) == "truncated"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_progressive_jpeg_that_lacks_its_last_scans_is_truncated(mode: str) -> None:
    data = encoded(Image.fromarray(PICTURE).convert(mode), progressive=True)
    starts = scan_starts(data)
    assert len(starts) > 5
    assert {status_of(data[:start] + EOI) for start in starts[1:]} == {"truncated"}
    assert status_of(data) == "ok"


def test_progressive_jpegs_of_every_setting_are_read() -> None:
    image = Image.fromarray(PICTURE)
    for quality, subsampling, optimize, mode in itertools.product(
        (1, 50, 95, 100), (0, 1, 2), (False, True), ("RGB", "L", "CMYK")
    ):
        options = {"quality": quality, "subsampling": subsampling, "optimize": optimize}
        data = encoded(image.convert(mode), progressive=True, **options)
        assert status_of(data) == "ok", (options, mode)


# ---- sampling factors that Pillow reads, without libjpeg's warnings


def damages(factors: list[tuple[int, int]]) -> dict[str, bytes]:
    data = jpeg(YCC, factors)
    start, frame = data.index(b"\xff\xda") + 14, data.index(b"\xff\xc0")
    middle = start + (len(data) - start) // 3
    low, narrow = bytearray(data), bytearray(data)
    low[frame + 5 : frame + 7] = (H // 2).to_bytes(2)
    narrow[frame + 7 : frame + 9] = (W // 2).to_bytes(2)
    marked = jpeg(YCC, factors, restart=1)
    marks = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", marked)]
    swapped = bytearray(marked)
    swapped[marks[0] + 1], swapped[marks[1] + 1] = swapped[marks[1] + 1], swapped[marks[0] + 1]
    return {
        "overwritten": data[:middle] + b"\x55" * 40 + data[middle + 40 :],
        "inserted": data[:middle] + b"\x55" * 40 + data[middle:],
        "appended": data[:-2] + b"\x55" * 40 + EOI,
        "cut": data[:middle] + EOI,
        "half the height": bytes(low),
        "half the width": bytes(narrow),
        "restart numbers swapped": bytes(swapped),
        "a restart interval lost": marked[: marks[0]] + marked[marks[1] :],
        "the last restart interval lost": marked[: marks[-1]] + EOI,
        "the last restart interval doubled": marked[:-2] + marked[marks[-1] : -2] + EOI,
    }


@pytest.mark.parametrize("factors", ODD)
def test_damage_of_a_jpeg_with_odd_sampling_is_found(factors: list[tuple[int, int]]) -> None:
    found = {name: status_of(data) for name, data in damages(factors).items()}
    assert set(found.values()) <= {"corrupt", "truncated"}, found


@pytest.mark.parametrize("factors", [PLAIN, *ODD[:2]])
def test_a_jpeg_that_ends_within_its_header_is_never_read(factors: list[tuple[int, int]]) -> None:
    data = jpeg(YCC, factors)
    for cut in range(4, data.index(b"\xff\xda") + 16):
        assert status_of(data[:cut]) in ("corrupt", "truncated"), cut


@pytest.mark.parametrize("rows", [0, 1])
def test_damage_of_a_progressive_jpeg_with_odd_sampling_is_found(rows: int) -> None:
    image = Image.fromarray(PICTURE).convert("CMYK")
    data = encoded(image, quality=95, progressive=True, subsampling=2, restart_marker_rows=rows)
    assert status_of(data) == "ok"
    parts = [*scan_starts(data), len(data) - 2]
    found = {}
    for number, (start, end) in enumerate(itertools.pairwise(parts)):
        found[f"without scan {number}"] = status_of(data[:start] + data[end:])
        tables = data.find(b"\xff\xc4", start, end)
        last = tables if tables > 0 else end
        begin = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if last > begin + 1:  # some scans are one byte
            found[f"scan {number} cut"] = status_of(data[: begin + 1] + data[last:])
        found[f"scan {number} longer"] = status_of(data[:last] + b"\x55" * 40 + data[last:])
        marks = [m.start() for m in re.finditer(rb"\xff[\xd0-\xd7]", data[:last])]
        if marks and marks[-1] > start:
            swapped = bytearray(data)
            swapped[marks[-1] + 1] ^= 1
            found[f"restart number of scan {number}"] = status_of(bytes(swapped))
    assert set(found.values()) <= {"corrupt", "truncated"}, found


def whole_codes(data: bytes) -> None:
    header = read_header(data)
    scans = read_scans(data, header.segments, header.scan)
    progressive = header.coding == "progressive Huffman"
    check_codes(scans, sampling(header.frame), header.width, header.height, progressive)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_codes_of_every_whole_jpeg_are_read_to_their_end(progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 29, 3)).astype(np.uint8)
    for quality, subsampling, rows, mode, pixels in itertools.product(
        (1, 50, 100), (0, 1, 2), (0, 1), ("RGB", "L"), (PICTURE, noise)
    ):
        image = Image.fromarray(pixels).convert(mode)
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        whole_codes(encoded(image, restart_marker_rows=rows, **options))


def test_a_huffman_table_of_too_many_short_codes_is_corrupt() -> None:
    data = jpeg(YCC, ODD[0])
    start = data.index(b"\xff\xc4")
    crowded = segment(0xC4, b"\0" + bytes([3] + [0] * 15) + bytes(3))
    with pytest.raises(TileError, match="Huffman table"):
        whole_codes(data[:start] + crowded + data[data.index(b"\xff\xc4", start + 1) :])


def test_a_refinement_of_what_was_not_sent_is_corrupt() -> None:
    data = encoded(Image.fromarray(PICTURE), progressive=True)
    first = scan_starts(data)[0]
    assert data[first + 13] == 1  # DC without its lowest bit
    changed = data[: first + 13] + b"\x11" + data[first + 14 :]
    header = read_header(changed)
    with pytest.raises(TileError, match="not in order"):
        check_complete(scan_headers(changed, header.scan), b"\1\2\3", True)


# ---- kinds that are refused


@pytest.mark.parametrize("frame", [0xC9, 0xCA])
def test_an_arithmetic_jpeg_is_unsupported(frame: int) -> None:
    data = jpeg(YCC, PLAIN, frame=frame)
    empty = data[: data.index(b"\xff\xda") + 14] + EOI
    assert status_of(data) == status_of(empty) == "unsupported"


@pytest.mark.parametrize(("components", "transform"), [(3, 2), (4, 1)])
def test_a_colour_transform_of_another_number_of_components_is_unsupported(
    components: int, transform: int
) -> None:
    planes = np.dstack([YCC, YCC])[..., :components]
    data = jpeg(planes, [(1, 1)] * components, ahead=ADOBE[transform])
    with pytest.raises(TileError, match=f"transform {transform}") as caught:
        decode_jpeg(data, 0)
    assert caught.value.status == "unsupported"


@pytest.mark.parametrize("factors", USUAL[1:])
def test_subsampled_jpeg_data_in_an_rgb_tiff_is_unsupported(
    factors: list[tuple[int, int]],
) -> None:
    assert status_of(in_tiff(jpeg(YCC, factors), 2)) == "unsupported"
    assert status_of(in_tiff(jpeg(YCC, factors), 6)) == "ok"


def test_jpeg_components_named_rgb_in_a_ycbcr_tiff_are_unsupported() -> None:
    data = numbered(jpeg(PICTURE.astype(float), PLAIN), b"RGB")
    assert status_of(in_tiff(data, 6)) == "unsupported"
    assert status_of(in_tiff(data, 2)) == "ok"
