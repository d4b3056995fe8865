"""Whether reading tiles ever keeps training waiting: loader alone against training steps.

    python benchmarks/loader.py tiles_224/ tiles_768/

For each folder: tiles/s of the loader with decoded tiles kept in memory and with every tile decoded
anew, beside the tiles/s that a DeiT-tiny student trains at, for 112 and 224 px (forward and
backward, this machine's automatic precision). Prints a table and writes JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

import edgelung.train.tiles as tile_store
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.augment import augment
from edgelung.train.distributed import create_context
from edgelung.train.index import index_tiles
from edgelung.train.recipe import load_recipe
from edgelung.train.tiles import TileStore, prefetch

BATCH, TILES, REPEATS = 64, 2000, 5


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+")
    default = Path(__file__).parent / "results" / "loader.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    rates: dict[str, dict[str, float]] = {}
    for size in (112, 224):
        rates[f"student at {size} px: training"] = rate(training(size))
    for folder in options.data:
        tiles = index_tiles(folder)[:TILES]
        name = f"{folder.name}, {tiles[0].width} px"
        paths = [folder / tile.path for tile in tiles]
        for kept in (True, False):
            tile_store.MEMORY_SHARE = 0.4 if kept else 0.0
            store = TileStore(paths, ReaderSpec(size=224))
            assert store.in_memory == kept
            how = "kept in memory" if kept else "decoded anew"
            rates[f"{name}: loader, {how}"] = rate(loading(store))
    result = {"batch_size": BATCH, "tiles_per_second": rates, "machine": machine.describe()}
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("what", "tiles/s, median", "slowest", "fastest")
    for name, found in rates.items():
        table.add_row(name, *(f"{found[k]:.0f}" for k in ("median", "slowest", "fastest")))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def rate(batches: Callable[[int], Any], steps: int = 4) -> dict[str, float]:
    """Tiles/s over REPEATS rounds of some steps, after one to warm up."""
    batches(1)
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        batches(steps)
        found.append(steps * BATCH / (time.perf_counter() - start))
    return {"median": statistics.median(found), "slowest": min(found), "fastest": max(found)}


def loading(store: TileStore) -> Callable[[int], Any]:
    """Random batches, prefetched as in the training loop."""
    rng = np.random.default_rng(0)

    def batches(steps: int) -> None:
        for _ in prefetch(
            lambda step: store.batch(rng.integers(0, len(store), BATCH)), range(steps)
        ):
            pass

    return batches


def training(size: int) -> Callable[[int], Any]:
    """Augmentation, forward and backward of a student, without reading anything."""
    where = create_context("auto")
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=3, dynamic_img_size=True
    ).to(where.device)
    tiles = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8).to(where.device)
    how, generator = load_recipe("quick").augment, torch.Generator()

    def steps(count: int) -> None:
        for _ in range(count):
            with where.autocast():
                loss = model(augment(tiles, size, how, generator)).float().logsumexp(dim=1).mean()
            loss.backward()
        if where.device.type == "cuda":
            torch.cuda.synchronize()

    return steps


if __name__ == "__main__":
    main()
