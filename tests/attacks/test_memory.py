"""Images that ask for far more memory or work than their files are long."""

import json
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

from edgelung.tiles.budget import MAX_DEFAULT
from edgelung.tiles.reader import ReaderSpec

SIDE = 9990  # just below the limit of pixels
SPEC = ReaderSpec(size=64)
PAGE = 4096

# Prints the peak of resident memory while the pipeline reads a folder, and the status of each file.
CHILD = """
import json, sys
import numpy as np
from edgelung.inference.pipeline import predict_batches
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import ReaderSpec
class Engine:
    name, device, concurrency = "none", "CPU", 2
    def infer(self, tiles): return np.zeros((len(tiles), 1), np.float32)
def read(folder):
    files = list(find_files(folder))
    batches = predict_batches(files, ReaderSpec(size=64), Engine(), batch_size=2, threads=2)
    return {row.file.path: [row.status, row.error] for rows in batches for row in rows}
read(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
rows = read(sys.argv[2])
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps([peak * 1024, rows]))
"""


def zeros(size: int) -> bytes:
    """Zlib data of so many zeros, made without holding them."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(2**20)) for _ in range(size >> 20)]
    return b"".join([*parts, deflate.compress(bytes(size & 2**20 - 1)), deflate.flush()])


def zero_png(side: int, colour: int, channels: int, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, interlaced)
    rows = side if not interlaced else 2 * side
    data = zeros(rows + channels * side * side)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def zero_tiff(side: int, samples: int) -> bytes:
    data = zeros(samples * side * side)
    template = page(np.zeros((1, 1, 3), np.uint8))
    template |= {256: side, 257: side, 278: side, 259: 8, "segments": [data]}
    return tiff(template)


def rle_bmp(side: int) -> bytes:
    line = b"\xff\0" * (side // 255) + bytes([side % 255, 0]) + b"\0\0"
    body, colours = line * side + b"\0\1", bytes(1024)
    start = 54 + len(colours)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


def flat(side: int, kind: str, **options: object) -> bytes:
    return encoded(Image.new("RGB", (side, side), (9, 90, 200)), kind, **options)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "webp.webp": lambda: flat(SIDE, "WEBP", lossless=True, method=0, quality=0),
    "zeros.png": lambda: zero_png(SIDE, 6, 4),
    "interlaced.png": lambda: zero_png(SIDE, 2, 3, interlaced=1),
    "progressive.jpg": lambda: flat(SIDE, "JPEG", progressive=True, subsampling=0),
    "cmyk.jpg": lambda: encoded(Image.new("CMYK", (SIDE, SIDE)), "JPEG", progressive=True),
    "runs.bmp": lambda: rle_bmp(SIDE),
    "frames.gif": lambda: encoded(Image.new("P", (SIDE, SIDE)), "GIF"),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    for name, make in HOSTILE.items():
        (folder / name).write_bytes(make())
    tifffile = pytest.importorskip("tifffile")
    blank = np.zeros((SIDE, SIDE, 3), np.uint8)
    for name, code in (("deflate.tif", "zlib"), ("jpeg2000.tif", "jpeg2000")):
        tifffile.imwrite(
            folder / name, blank, photometric="rgb", compression=code, rowsperstrip=SIDE
        )
    for path in folder.iterdir():
        assert path.stat().st_size < 4 * 2**20, path  # far less than what they decode to
    return folder


def peak(calm: Path, folder: Path, **variables: str) -> tuple[int, dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, calm, folder],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=variables or None,
    )
    memory, rows = json.loads(done.stdout)
    return memory, rows


def test_hostile_images_together_stay_within_the_budget_and_each_has_a_row(
    bombs: Path, tmp_path: Path
) -> None:
    calm = tmp_path / "calm"
    calm.mkdir()
    for name, data in samples().items():
        (calm / name).write_bytes(data)
    usual, _ = peak(calm, calm)
    most, rows = peak(calm, bombs)
    assert sorted(rows) == sorted(path.name for path in bombs.iterdir())
    assert len(rows) >= 8
    print(rows, (most - usual) / 2**20)
    assert most - usual < MAX_DEFAULT
