"""Run the reader over a folder of other projects' test images and compare it with other decoders.

    python benchmarks/corpora.py FOLDER --out benchmarks/results/corpora.json

Lists the files that are read although two decoders see other pixels, and the files that are refused
although two decoders read them, each with its reason; counts statuses; measures the slowest file
and the peak memory of two threads. Decoders: Pillow, OpenCV, libvips (pip install pyvips-binary
pyvips) and tifffile. FOLDER holds one folder a project; nothing of it is copied.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgelung.tiles.reader import ReaderSpec, TileError, read_pixels, read_tile
from edgelung.tiles.tiff_layout import read_layout
from edgelung.tiles.tiff_pages import find_picture

FULL = ReaderSpec(size=4096)  # larger than nearly all files: no JPEG is decoded scaled
NEAR = 3.0  # mean difference in levels of 255 up to which two decodes are the same picture
MOST = 30_000_000  # pixels that the other decoders are asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=("read", "compare"))
    options = parser.parse_args()
    if options.worker == "read":
        print(json.dumps(read_all(options.folder)))
        return
    if options.worker == "compare":
        print(json.dumps(compare_all(options.folder)))
        return
    reading, printed = call(options.folder, "read")
    compared, _ = call(options.folder, "compare")
    result = reading | {"lines_on_stderr": len(printed.splitlines())} | compared
    result["versions"] = {
        name: version(name)
        for name in ("pillow", "simplejpeg", "imagecodecs", "tifffile", "pyvips-binary")
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n")
    print(text if not options.out else f"{options.out}: {len(text)} bytes")


def call(folder: Path, worker: str) -> tuple[dict[str, Any], str]:
    """Run one half in a process of its own; its result and what it printed to stderr."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, str(folder), "--worker", worker]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
        errors.seek(0)
        printed = errors.read()
    if done.returncode:
        sys.exit(f"{worker} ended with {done.returncode}: {printed[-2000:]}")
    return json.loads(done.stdout), printed


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_all(folder: Path) -> dict[str, Any]:
    """Status counts, slowest file and peak memory of `read_tile` on two threads."""
    statuses: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    crashed: list[str] = []
    lock = threading.Lock()

    def read(path: Path) -> None:
        start, status = time.thread_time(), "ok"
        try:
            read_tile(path, ReaderSpec())
        except TileError as error:
            status = error.status
        except Exception as error:
            status = f"{type(error).__name__}"
            crashed.append(f"{path.relative_to(folder)}: {error!r}")
        with lock:
            statuses[status] += 1
            seconds[str(path.relative_to(folder))] = time.thread_time() - start

    files = files_of(folder)
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, files))
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:5]
    return {
        "files": len(files),
        "projects": dict(Counter(path.relative_to(folder).parts[0] for path in files)),
        "seconds": round(time.perf_counter() - start, 1),
        "statuses": dict(statuses.most_common()),
        "exceptions_other_than_TileError": crashed,
        "slowest_cpu_seconds": {name: round(value, 3) for name, value in slowest},
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def compare_all(folder: Path) -> dict[str, Any]:
    """The two lists."""
    warnings.simplefilter("ignore")
    other_pixels, refused = [], []
    for path in files_of(folder):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        try:
            pixels, error = np.asarray(read_pixels(path, FULL)).astype(int), None
        except TileError as caught:
            pixels, error = None, caught
        if error is not None and error.status == "too-large":
            continue
        decoded = {}
        for decoder, decode in DECODERS.items():
            with contextlib.suppress(Exception):
                found = decode(data)
                if found is not None:
                    decoded[decoder] = np.asarray(found).astype(int)
        if len(decoded) < 2:
            continue
        if pixels is None:
            assert error is not None
            refused.append({"file": name, "status": error.status, "reason": error.reason})
            refused[-1]["read_by"] = sorted(decoded)
            continue
        apart = {key: distance(pixels, other) for key, other in decoded.items()}
        differing = [key for key, value in apart.items() if value > NEAR]
        if len(differing) >= 2:
            entry = {"file": name, "mean_difference": {k: round(apart[k], 1) for k in differing}}
            entry["same_as"] = sorted(set(apart) - set(differing))
            other_pixels.append(entry | {"reason": why(data)})
    by_reason = Counter(f"{one['status']}: {one['reason']}" for one in refused)
    return {
        "ok_but_other_pixels_than_two_decoders": other_pixels,
        "refused_but_read_by_two_decoders": refused,
        "refused_by_reason": dict(by_reason.most_common()),
    }


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in levels; infinite for other shapes."""
    return float(np.abs(a - b).mean()) if a.shape == b.shape else 255.0


def why(data: bytes) -> str:
    """Why other decoders see other pixels, by what the file's header says."""
    if data.startswith(b"\x89PNG"):
        if b"tRNS" in data and data[25] == 0 and data[24] < 8:
            return "transparent grey of fewer than 8 bits: the key is compared with scaled samples"
        if b"eXIf" in data or b"Raw profile type exif" in data:
            return "the EXIF orientation of a PNG is not applied"
        return ""
    layout = read_layout(find_picture(data).pages[0], 224)
    if layout.kind.alpha == "premultiplied":
        return "premultiplied alpha is dropped or taken for straight alpha"
    if layout.kind.alpha == "straight":
        return "alpha beside grey is dropped or taken for a colour"
    if 8 < layout.kind.bits < 16:
        return f"{layout.kind.bits} bits are not scaled to 8, or the planes are mixed up"
    if layout.separate and layout.kind.bits == 16:
        return "planes of 16 bits are mixed up or, of CMYK, converted by a profile"
    return ""


def by_pillow(data: bytes) -> np.ndarray | None:
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MOST:
        return None
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return to_rgb(np.asarray(image).astype(np.uint16))
    if image.mode == "F":
        return None
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def by_opencv(data: bytes) -> np.ndarray | None:
    import cv2

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is not None and (array.ndim == 2 or array.shape[-1] == 3):  # and turned by its EXIF
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
    if array is None or array.dtype not in (np.uint8, np.uint16):
        return None
    return to_rgb(array[..., [2, 1, 0, 3][: array.shape[-1]]])


def by_vips(data: bytes) -> np.ndarray | None:
    import pyvips

    image = pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="error")
    if image.width * image.height > MOST:
        return None
    image = image.copy_memory().autorot()
    if image.format not in ("uchar", "ushort"):
        return None
    if image.hasalpha():
        image = image.flatten(background=255 if image.format == "uchar" else 65535)
    return to_rgb(image.colourspace("rgb16" if image.format == "ushort" else "srgb").numpy())


def by_tifffile(data: bytes) -> np.ndarray | None:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        if page.size > 3 * MOST:
            return None
        array = page.asarray(maxworkers=1)
        if array.dtype not in (np.uint8, np.uint16) or page.photometric not in (1, 2):
            return None
        if page.planarconfig == 2 and array.ndim == 3:
            array = np.moveaxis(array, 0, -1)
    return to_rgb(array)


def to_rgb(array: np.ndarray) -> np.ndarray | None:
    """Grey, RGB or RGBA of 8 or 16 bits → RGB, over white."""
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    array = array.reshape(*array.shape[:2], -1)
    if array.shape[-1] < 3:
        array = np.concatenate([array[..., :1]] * 3 + [array[..., 1:]], -1)
    if array.shape[-1] == 4:
        share = array[..., 3:] / 255
        array = np.round(array[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    return array if array.shape[-1] == 3 else None


DECODERS: dict[str, Callable[[bytes], np.ndarray | None]] = {
    "Pillow": by_pillow,
    "OpenCV": by_opencv,
    "libvips": by_vips,
    "tifffile": by_tifffile,
}

if __name__ == "__main__":
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST))
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    main()
