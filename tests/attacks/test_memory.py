"""Images that ask for far more memory or work than their files are long."""

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoders import page, tiff
from PIL import Image
from samples import chunk, encoded, samples

from edgelung.inference import pipeline
from edgelung.inference.reading import FileReading
from edgelung.tiles import jpeg
from edgelung.tiles.budget import ENVIRONMENT, MAX_DEFAULT
from edgelung.tiles.find import FoundFile
from edgelung.tiles.jpeg2000 import jpeg2000_memory
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile

SIDE = 9990  # just below the limit of pixels
SPEC = ReaderSpec(size=64)

# Prints the peak of resident memory while the pipeline reads a folder, and the status of each file.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from edgelung.inference.pipeline import predict_batches
from edgelung.inference.reading import FileReading
from edgelung.engines.base import Output
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import ReaderSpec
class Engine:
    name, device, concurrency = "none", "CPU", 2
    def infer(self, tiles): return Output(np.zeros((len(tiles), 1), np.float32))
def read(folder):
    files = list(find_files(Path(folder)))
    reading = FileReading(ReaderSpec(size=64))
    batches = predict_batches(files, reading, Engine(), batch_size=2, threads=2)
    return {row.item.path: [row.status, row.error] for rows in batches for row in rows}
read(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
rows = read(sys.argv[2])
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps([peak * 1024, rows]))
"""


def zeros(size: int) -> bytes:
    """Zlib data of so many zeros: one block of a mebibyte again and again."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = last.compress(bytes(size % 2**20)) + last.flush()
    checksum = struct.pack(">I", size % 65521 << 16 | 1)
    return b"\x78\xda" + block * (size >> 20) + rest + checksum


def zero_png(side: int, colour: int, channels: int, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, interlaced)
    rows = side if not interlaced else 2 * side
    data = zeros(rows + channels * side * side)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def large_tiff(side: int, compression: int, segment: bytes) -> bytes:
    """An RGB TIFF of one strip, whatever that holds."""
    sizes = {256: [side], 257: [side], 278: [side]}
    blank = np.zeros((1, 1, 3), np.uint8)
    return tiff(page(blank, 8, 2, segments=[segment], compression=compression, tags=sizes))


def rle_bmp(side: int) -> bytes:
    line = b"\xff\0" * (side // 255) + bytes([side % 255, 0]) + b"\0\0"
    body, colours = line * side + b"\0\1", bytes(1024)
    start = 54 + len(colours)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


def lossless_webp(side: int) -> bytes:
    """Every pixel has the one colour there is, which takes no bits: only the size is changed."""
    data = bytearray(encoded(Image.new("RGB", (64, 64), (9, 90, 200)), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    flags = int.from_bytes(data[at : at + 4], "little") >> 28 << 28
    data[at : at + 4] = (flags | side - 1 << 14 | side - 1).to_bytes(4, "little")
    return bytes(data)


def jpeg_of(side: int, mode: str, **options: object) -> bytes:
    """A progressive JPEG whose header says more pixels than its scans hold."""
    data = bytearray(encoded(Image.new(mode, (64, 64)), "JPEG", progressive=True, **options))
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def jpeg2000_tiff(side: int) -> bytes:
    codec = pytest.importorskip("imagecodecs")
    data = bytearray(codec.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), codecformat="j2k"))
    at = data.index(b"\xff\x4f\xff\x51")
    for place in (at + 8, at + 12, at + 24, at + 28):  # of the picture and of its one tile
        data[place : place + 4] = struct.pack(">I", side)
    return large_tiff(side, 34712, bytes(data))


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "webp.webp": lossless_webp,
    "zeros.png": lambda side: zero_png(side, 6, 4),
    "interlaced.png": lambda side: zero_png(side, 2, 3, interlaced=1),
    "progressive.jpg": lambda side: jpeg_of(side, "RGB", subsampling=0),
    "cmyk.jpg": lambda side: jpeg_of(side, "CMYK"),
    "runs.bmp": rle_bmp,
    "deflate.tif": lambda side: large_tiff(side, 8, zeros(3 * side * side)),
    "jpeg2000.tif": jpeg2000_tiff,
    "frames.gif": lambda side: b"GIF89a" + struct.pack("<HH", side, side) + bytes(99),
}


def peak(calm: Path, folder: Path, mebibytes: int) -> tuple[int, dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, calm, folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {ENVIRONMENT: str(mebibytes)},
    )
    assert done.returncode == 0, done.stderr
    memory, rows = json.loads(done.stdout)
    return memory, rows


@pytest.mark.parametrize(
    ("side", "mebibytes", "refused"),
    [
        (3000, 256, 0),  # each fits, and not two of them
        pytest.param(SIDE, MAX_DEFAULT >> 20, 5, marks=pytest.mark.slow),
        pytest.param(6000, MAX_DEFAULT >> 20, 0, marks=pytest.mark.slow),
    ],
)
def test_hostile_images_together_stay_within_the_budget_and_each_has_a_row(
    tmp_path: Path, side: int, mebibytes: int, refused: int
) -> None:
    """Bar 4 of 'Trust'."""
    calm, bombs = tmp_path / "calm", tmp_path / "bombs"
    calm.mkdir()
    bombs.mkdir()
    for name, data in samples().items():
        (calm / name).write_bytes(data)
    for name, make in HOSTILE.items():
        data = make(side)
        assert len(data) < 2**20  # far less than what they decode to
        (bombs / name).write_bytes(data)
    usual, _ = peak(calm, calm, mebibytes)
    most, rows = peak(calm, bombs, mebibytes)
    assert sorted(rows) == sorted(HOSTILE)
    assert sum(status == "too-large" for status, _ in rows.values()) == refused
    assert most - usual < mebibytes << 20


def with_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of so many scans more, each of which refines nothing."""
    data = jpeg_of(side, "RGB")
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * scans + data[-2:]


def test_the_scans_of_a_large_jpeg_are_bounded() -> None:
    with pytest.raises(TileError, match="more than 20 scans") as caught:
        decode_tile(with_scans(SIDE, 480), SPEC)
    assert caught.value.status == "too-large"


@pytest.mark.parametrize(("side", "scans"), [(SIDE, 8), (2000, 480), (64, 480)])
def test_pixels_times_scans_is_what_is_bounded(
    monkeypatch: pytest.MonkeyPatch, side: int, scans: int
) -> None:
    """An encoder writes ten scans; more of them are read where the image is small."""
    decoded = []
    monkeypatch.setattr(jpeg, "_decode_strictly", lambda *given: decoded.append(given))
    jpeg.decode_with_header(data := with_scans(side, scans), jpeg.read_header(data), 64)
    assert decoded


def test_a_file_of_many_small_code_blocks_counts_what_describes_them() -> None:
    """Precincts or tiles of one pixel: OpenJPEG needs far more for them than for the pixels."""
    codec = pytest.importorskip("imagecodecs")
    data = codec.jpeg2k_encode(np.zeros((64, 64, 3), np.uint8), codecformat="j2k")
    usual = jpeg2000_memory(data)
    at = data.index(b"\xff\x52")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
    levels = data[at + 9]
    length = struct.pack(">H", 12 + levels + 1)
    style = data[at + 4] | 1
    tiny = data[: at + 2] + length + bytes([style]) + data[at + 5 : end] + bytes(levels + 1)
    assert jpeg2000_memory(tiny + data[end:]) > 1000 * usual // 64
    tiles = bytearray(data)
    place = data.index(b"\xff\x4f\xff\x51")
    for offset in (24, 28):
        tiles[place + offset : place + offset + 4] = struct.pack(">I", 1)
    assert jpeg2000_memory(bytes(tiles)) > 64 * 64 * 1000


def test_a_refused_image_keeps_no_memory_until_its_row_is_written(tmp_path: Path) -> None:
    """The traceback of its error would hold the decoder's arrays."""
    path = tmp_path / "zeros.png"
    path.write_bytes(zero_png(300, 6, 4))
    buffer = np.empty((1, 64, 64, 3), np.uint8)
    file = FoundFile(path.name, str(path))
    decoded = pipeline._decode_into(buffer, 0, file, FileReading(SPEC), 0)
    assert decoded.error
    assert decoded.error.__traceback__ is None
    assert decoded.error.__context__ is None
