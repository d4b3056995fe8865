"""Which saturation tells tissue from glass? On real tiles, all of which are tissue.

Each tile is reduced to the resolution in which `edgelung.slides.mask` looks for tissue. A rule
keeps a tile if enough of its pixels are above the threshold. Tiles of aerated lung are the test:
most of their area is air. Glass, plain and tinted, with the noise of a camera and of JPEG, must not
be kept. Prints a table and writes JSON.

    python benchmarks/tissue.py LC25000_224
"""

import argparse
import io
import json
from collections import defaultdict
from pathlib import Path

import cv2
import machine
import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from edgelung.slides.mask import MIN_SHARE, white_glass

THRESHOLDS = (7, 8, 10, 15, 20, 25, 30, 40)
SHARES = (MIN_SHARE, 0.5)
SIDE = 20  # pixels of a tile in the mask: 160 µm at 8 µm a pixel
TINTS = ((250, 250, 250), (240, 235, 228), (228, 232, 240), (245, 240, 245))
NOISE = 4.0  # standard deviation of a channel


def saturations(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Saturation 0…255 of an RGB picture in the resolution of the mask, (SIDE, SIDE)."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(cv2.medianBlur(small, 5), cv2.COLOR_RGB2HSV)
    return np.asarray(hsv[..., 1], np.uint8)


def glass(seed: int, tint: tuple[int, int, int], *, whitened: bool) -> npt.NDArray[np.uint8]:
    """A tile of glass, as JPEG stores it."""
    noise = np.random.default_rng(seed).normal(0, NOISE, (768, 768, 3))
    pixels = np.clip(np.array(tint) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    with Image.open(file) as image:
        stored = np.asarray(image.convert("RGB"))
    return white_glass(stored) if whitened else stored


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path, help="folder with a folder of tiles per class")
    default = Path(__file__).parent / "results" / "tissue.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    found: dict[str, list[npt.NDArray[np.uint8]]] = defaultdict(list)
    for path in sorted(options.tiles.glob("*/*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(path) as image:
                found[path.parent.name].append(saturations(np.asarray(image.convert("RGB"))))
    for whitened in (False, True):
        name = "glass, made white" if whitened else "glass"
        tiles = (glass(i, TINTS[i % len(TINTS)], whitened=whitened) for i in range(40))
        found[name] = [saturations(tile) for tile in tiles]
    result = {
        "tiles": {name: len(values) for name, values in found.items()},
        "kept": {
            name: {
                str(threshold): {
                    str(share): round(
                        float(np.mean([(v > threshold).mean() >= share for v in values])), 5
                    )
                    for share in SHARES
                }
                for threshold in THRESHOLDS
            }
            for name, values in found.items()
        },
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("tiles kept at", *found)
    for threshold in THRESHOLDS:
        for share in SHARES:
            kept = (result["kept"][name][str(threshold)][str(share)] for name in found)
            table.add_row(f"> {threshold}, share {share}", *(f"{100 * k:.2f} %" for k in kept))
    Console().print(table)


if __name__ == "__main__":
    main()
