"""What takes minutes: many kills, and a slide of eight gigapixels."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from slide_files import (
    RGB,
    Page,
    abbreviate,
    aperio,
    encode,
    jpeg_page,
    tissue,
    write_svs,
    write_tiff,
)

from edgelung.artifacts.slide_summary import read_slide_summary
from edgelung.artifacts.slide_tiles import read_tiles

pytestmark = pytest.mark.slow

KILLS = 30
CHANGING = ("slide.json", "slide.html")  # hold times
MOST_MEGABYTES = 400  # the picture of so large a slide has 8 million pixels
# A program inherits the peak memory of the process that starts it, so a small one does.
MEASURE = """
import os, sys
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def command(slide: Path, out: Path, *more: str) -> list[str]:
    edgelung = Path(sys.executable).with_name("edgelung")
    fixed = ["--tile-um", "56", "--threads", "1", "--batch-size", "4", "--out", str(out)]
    return [str(edgelung), "slide", str(slide), *fixed, *more]


def test_thirty_kills_end_with_the_same_bytes(tmp_path: Path) -> None:
    slide = write_svs(tmp_path / "case.svs", 3600, 3000)
    subprocess.run(command(slide, tmp_path / "whole"), check=True, capture_output=True)
    rng, killed = random.Random(0), 0
    journal = tmp_path / "out" / "case.edgelung-journal"
    for number in range(KILLS):
        process = subprocess.Popen(
            command(slide, tmp_path / "out", "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if number % 3:  # after a batch or two; else at any moment, the start included
            before = size_of(journal)
            while process.poll() is None and size_of(journal) == before:
                time.sleep(0.002)
        else:
            time.sleep(rng.uniform(0.1, 3.0))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == KILLS
    subprocess.run(command(slide, tmp_path / "out", "--resume"), check=True, capture_output=True)
    whole, resumed = (tmp_path / name / "case" for name in ("whole", "out"))
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in resumed.iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("case", "index.html", "slides.csv"),
    ]
    for name in names:
        if name not in CHANGING:
            assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_slide_of_eight_gigapixels_is_read_in_flat_memory(tmp_path: Path) -> None:
    slide = sparse_slide(tmp_path / "huge.svs", 100_000, 80_000)
    words = command(slide, tmp_path / "out", "--tile-um", "112")
    measured = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MEASURE, *words],
        check=True,
        capture_output=True,
        text=True,
    )
    peak = int(measured.stdout.splitlines()[-1])
    summary = read_slide_summary(tmp_path / "out" / "huge" / "slide.json")
    assert (summary.width, summary.height) == (100_000, 80_000)
    tiles = read_tiles(tmp_path / "out" / "huge" / "tiles.parquet")
    assert summary.statuses == {"ok": len(tiles)}
    assert len(tiles) > 1000
    assert peak / 1024 < MOST_MEGABYTES


def sparse_slide(path: Path, width: int, height: int) -> Path:
    """Glass of zero-byte tiles, and a cross of tissue over the whole width and height."""
    side = 256
    wide, high = -(-width // side), -(-height // side)
    tables, data = abbreviate(encode(tissue(side, side), ycc=False))
    segments = [b""] * (wide * high)
    for number in range(wide * high):
        row, column = divmod(number, wide)
        if 100 <= row < 102 or 200 <= column < 202:
            segments[number] = data
    text = aperio(width, height)
    full = Page(width, height, segments, (side, side), RGB, tables=tables, description=text)
    small = np.full((height // 32, width // 32, 3), 245, np.uint8)
    pink = tissue(256, 256).mean((0, 1)).astype(np.uint8)
    for number, segment in enumerate(segments):
        if segment:
            row, column = divmod(number, wide)
            small[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = pink
    low = jpeg_page(small, ycc=False, sampling="444", description=text)
    return write_tiff(path, [full, low], big=True)
