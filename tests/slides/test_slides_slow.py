"""What takes minutes: many kills, and a slide of eight gigapixels."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from slide_files import RGB, Page, abbreviate, aperio, encode, tissue, write_svs, write_tiff

from edgelung.artifacts.slide_summary import read_slide_summary
from edgelung.artifacts.slide_tiles import read_tiles

pytestmark = pytest.mark.slow

KILLS = 30
CHANGING = ("slide.json", "slide.html")  # hold times
MOST_MEGABYTES = 300


def command(slide: Path, out: Path, *more: str) -> list[str]:
    edgelung = Path(sys.executable).with_name("edgelung")
    fixed = ["--tile-um", "56", "--threads", "1", "--batch-size", "4", "--out", str(out)]
    return [str(edgelung), "slide", str(slide), *fixed, *more]


def test_thirty_kills_end_with_the_same_bytes(tmp_path: Path) -> None:
    slide = write_svs(tmp_path / "case.svs", 2400, 2000)
    start = time.monotonic()
    subprocess.run(command(slide, tmp_path / "whole"), check=True, capture_output=True)
    usual = time.monotonic() - start
    rng = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            command(slide, tmp_path / "out", "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.1, 1.0) * usual)
        if process.poll() is None:
            killed += 1
            process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed > KILLS / 3
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


def test_a_slide_of_eight_gigapixels_is_read_in_flat_memory(tmp_path: Path) -> None:
    slide = sparse_slide(tmp_path / "huge.svs", 100_000, 80_000)
    process = subprocess.Popen(
        command(slide, tmp_path / "out", "--tile-um", "112"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    summary = read_slide_summary(tmp_path / "out" / "huge" / "slide.json")
    assert (summary.width, summary.height) == (100_000, 80_000)
    tiles = read_tiles(tmp_path / "out" / "huge" / "tiles.parquet")
    assert summary.statuses == {"ok": len(tiles)}
    assert len(tiles) > 1000
    assert used.ru_maxrss / 1024 < MOST_MEGABYTES


def sparse_slide(path: Path, width: int, height: int) -> Path:
    """Glass of zero-byte tiles, and stripes of tissue over the whole width and height."""
    side = 256
    wide, high = -(-width // side), -(-height // side)
    tables, data = abbreviate(encode(tissue(side, side), ycc=False))
    segments = [b""] * (wide * high)
    for number in range(wide * high):
        row, column = divmod(number, wide)
        if row % 100 < 3 or column % 130 < 3:
            segments[number] = data
    text = aperio(width, height)
    pages = [Page(width, height, segments, (side, side), RGB, tables=tables, description=text)]
    small = np.full((height // 32, width // 32, 3), 245, np.uint8)
    pink = tissue(256, 256).mean((0, 1)).astype(np.uint8)
    for number, segment in enumerate(segments):
        if segment:
            row, column = divmod(number, wide)
            small[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = pink
    from slide_files import jpeg_page

    low = jpeg_page(small, ycc=False, sampling="444", description=text)
    return write_tiff(path, [*pages, low], big=True)
