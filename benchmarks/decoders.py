"""Which JPEG decoder would make the folder run faster: simplejpeg against others, one core.

    pip install imagecodecs opencv-python-headless kornia-rs
    taskset -c 0 python benchmarks/decoders.py TILES768 TILES224 [--json FILE]

simplejpeg is what edgelung uses; it brings libjpeg-turbo 3. imagecodecs brings libjpeg-turbo 3 as
well, kornia-rs brings zune-jpeg. Then what edgelung does with a file: from its bytes to a tile of
224 and of 160 px, with its checks and scaled decoding. All read the same bytes, in turns. Prints
and writes the median time of a tile, and how far the pixels are from simplejpeg's.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import kornia_rs
import machine
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from edgelung.tiles.reader import ReaderSpec, decode_tile

RESULTS = Path(__file__).parent / "results"
ROUNDS, FILES = 15, 60
Pixels = npt.NDArray[np.uint8]


def by_pillow(data: bytes) -> Pixels:
    """Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def by_opencv(data: bytes) -> Pixels:
    """OpenCV, which brings libjpeg-turbo."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.asarray(found, np.uint8)


def scaled(eighths: int) -> Callable[[bytes], Pixels]:
    """simplejpeg at M/8 of the size; it takes the smallest scale that is not below a size."""

    def decode(data: bytes) -> Pixels:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        least = (height * eighths // 8, width * eighths // 8)
        pixels: Pixels = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
        return pixels

    return decode


def to_tile(size: int) -> Callable[[bytes], Pixels]:
    """edgelung's reader."""
    spec = ReaderSpec(size)
    return lambda data: decode_tile(data, spec)


DECODERS: dict[str, Callable[[bytes], Pixels]] = {
    "simplejpeg": simplejpeg.decode_jpeg,
    "imagecodecs (libjpeg-turbo)": imagecodecs.jpeg8_decode,
    "OpenCV (libjpeg-turbo)": by_opencv,
    "kornia-rs (zune-jpeg)": lambda data: np.asarray(kornia_rs.io.decode_image_jpeg(data)),
    "Pillow": by_pillow,
    "simplejpeg, 3/8": scaled(3),
    "simplejpeg, 2/8": scaled(2),
    "edgelung, tile of 224 px": to_tile(224),
    "edgelung, tile of 160 px": to_tile(160),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles768", type=Path)
    parser.add_argument("tiles224", type=Path)
    parser.add_argument("--json", type=Path, default=RESULTS / "decoders.json")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "sets": {
            "768": measure(options.tiles768),
            "224": measure(options.tiles224),
        },
        "versions": {
            name: version(name)
            for name in ("simplejpeg", "imagecodecs", "opencv-python-headless", "kornia-rs")
        },
        "rounds": ROUNDS,
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for size, rows in result["sets"].items():
        for name, row in rows["decoders"].items():
            times = f"{row['milliseconds']:6.2f} ms, {row['times_simplejpeg']:.2f} × simplejpeg"
            print(f"{size} px  {name:30} {times}, {row.get('largest_difference', '')}")


def measure(folder: Path) -> dict[str, Any]:
    """Milliseconds a tile, the median over rounds, each of all files."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpeg", ".jpg"))
    files = [path.read_bytes() for path in paths[:: -(-len(paths) // FILES)]]
    times: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(ROUNDS):
        for name, decode in DECODERS.items():  # in turns: a slow minute falls on all
            start = time.perf_counter()
            for data in files:
                decode(data)
            times[name].append(1000 * (time.perf_counter() - start) / len(files))
    first = times["simplejpeg"]
    rows = {}
    for name, found in times.items():
        ratios = [mine / theirs for mine, theirs in zip(found, first, strict=True)]
        rows[name] = {
            "milliseconds": round(statistics.median(found), 3),
            "times_simplejpeg": round(statistics.median(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
            **differences(DECODERS[name], files),
        }
    return {"files": len(files), "decoders": rows}


def differences(decode: Callable[[bytes], Pixels], files: Sequence[bytes]) -> dict[str, int]:
    """The largest difference from simplejpeg's pixels in grey levels; none at another size."""
    largest = 0
    for data in files[:10]:
        pixels, expected = decode(data), simplejpeg.decode_jpeg(data)
        if pixels.shape != expected.shape:
            return {}
        largest = max(largest, int(np.abs(pixels.astype(int) - expected).max()))
    return {"largest_difference": largest}


if __name__ == "__main__":
    main()
