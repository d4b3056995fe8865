"""Reads the tiles of a slide as `edgelung slide` does, without predicting them.

    python benchmarks/slide_reading.py SLIDE --tile-um U [--mask OUTLINE.geojson]

Prints JSON: tiles, and the CPU seconds of opening the slide, of its overview, and of its tiles.
"""

import argparse
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.slides.mask import MIN_SHARE, find_tissue
from edgelung.slides.open import open_slides
from edgelung.slides.outline import read_outline
from edgelung.slides.plan import plan_grid
from edgelung.slides.reading import SlideReading
from edgelung.slides.run import overview_pixels
from edgelung.slides.scale import settle_scale
from edgelung.tiles.budget import DECODING
from edgelung.tiles.reader import resize


def main() -> None:
    """Read one slide."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--tile-um", type=float, required=True)
    parser.add_argument("--mask", type=Path, help="outline; without one the tissue is found")
    options = parser.parse_args()
    size = open_bundle(starter_bundle()).reader.size
    start = time.process_time()
    (slide,) = open_slides(options.slide)
    opened = time.process_time()
    mpp = settle_scale(slide.scale).mpp
    overview = slide.overview(overview_pixels(slide, mpp))
    seen = time.process_time()
    whole = slide.levels[0]
    if options.mask:
        mask = read_outline(options.mask, whole.width, whole.height)
    else:
        mask = find_tissue(overview, mpp)
    grid = plan_grid(slide, mpp, options.tile_um, size)
    grid = replace(grid, cells=grid.cells[mask.shares(grid) >= MIN_SHARE])
    out = np.empty((size, size, 3), np.uint8)
    planned = time.process_time()
    with closing(SlideReading(slide, grid, size)) as reading:
        for index in range(len(grid)):
            with DECODING:
                resize(reading.read(index)[0], size, out)
    done = time.process_time()
    seconds = {"open": opened - start, "overview": seen - opened, "tiles": done - planned}
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    print(json.dumps({"tiles": len(grid), "cpu_seconds": rounded}))


if __name__ == "__main__":
    main()
