"""Class probabilities of tiles that are not augmented."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from edgelung.train.distributed import DistributedContext
from edgelung.train.models import Model
from edgelung.train.preprocess import normalise, resize_views
from edgelung.train.tiles import LabelledTiles

BATCH_SIZE = 64


@torch.no_grad()
def predict(
    model: Model,
    tiles: LabelledTiles,
    subset: str,
    context: DistributedContext,
    size: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> npt.NDArray[np.float32]:
    """Predict a subset with a timm model whose input is `size` pixels.

    Returns softmax probabilities float32 (N, classes), in the subset's order, in every process.
    `on_batch` is called with the number of tiles predicted since the last call.
    """
    all_indices = tiles.subsets[subset]
    local = all_indices[context.rank :: context.world_size]
    batches = [np.empty((0, int(tiles.labels.max()) + 1), np.float32)]
    model.eval()
    store = tiles.decoded.shown_at(size)
    for start in range(0, len(local), BATCH_SIZE):
        pixels = store.batch(local[start : start + BATCH_SIZE]).to(context.device)
        images = normalise(resize_views(pixels.float() / 255, size), model)
        with context.autocast():
            logits = model(images)
        batches.append(logits.float().softmax(dim=1).cpu().numpy())
        on_batch(len(pixels) * context.world_size)
    return context.gather_rows(np.concatenate(batches), len(all_indices))
