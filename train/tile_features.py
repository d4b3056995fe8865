"""Features of tiles that the user made elsewhere, for example with a foundation model.

A safetensors file with one vector for each tile, under the SHA-256 of the tile's file as in
split.csv. All vectors have one length; entries for other tiles do no harm.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.system import free_memory
from edgelung.train.index import IndexedTile

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BYTES = 24  # for a number: as read, in one array, and of the training tiles twice in float64
EXPECTED = (
    "expected a safetensors file with one float vector for each tile, named by the SHA-256 of the "
    "tile's file"
)


def read_tile_features(path: Path, tiles: Sequence[IndexedTile]) -> npt.NDArray[np.float32]:
    """Read the features of tiles.

    Returns:
        float32 (N, D), in the order of `tiles`.

    Raises:
        EdgelungError: the file cannot be read, a tile is missing in it, or features are no vectors
            of one length of finite floating-point numbers.
    """
    if not path.is_file():
        raise EdgelungError(f"no file of tile features {path}; {EXPECTED}")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if missing := [tile for tile in tiles if tile.sha256 not in names]:
                raise EdgelungError(
                    f"{path} lacks the features of {len(missing)} of {len(tiles)} tiles, for "
                    f"example of {missing[0].path} (SHA-256 {missing[0].sha256}); {EXPECTED}"
                )
            rows = [_checked(file.get_tensor(tile.sha256), tile, path) for tile in tiles]
    except (SafetensorError, OSError) as error:
        raise EdgelungError(f"cannot read the tile features in {path}; {EXPECTED}") from error
    lengths = {len(row): tile for row, tile in zip(rows, tiles, strict=True)}
    if len(lengths) > 1:
        (one, first), (other, second) = sorted(lengths.items())[:2]
        raise EdgelungError(
            f"{path} has {one} features of {first.path} but {other} of {second.path}; expected the "
            "features of one model"
        )
    return torch.stack(rows).numpy()


def described_model(path: Path) -> str:
    """The model that made the features, as the file's metadata say it; '' if they do not."""
    with safe_open(path, framework="pt") as file:
        model = (file.metadata() or {}).get("model")
    return one_line(model, 80) if model else ""


def check_memory(path: Path, tiles: Sequence[IndexedTile]) -> None:
    """Raise EdgelungError if the features of all tiles do not fit into memory.

    They are judged by one of them. A file that cannot be read is left to `read_tile_features`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            length = math.prod(file.get_slice(tiles[0].sha256).get_shape())
    except (SafetensorError, OSError):
        return
    needed, free = length * len(tiles) * BYTES, free_memory()
    if needed > free:
        raise EdgelungError(
            f"{path} has {length:,} numbers for a tile; a probe on {len(tiles):,} tiles needs "
            f"about {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free. Expected one "
            "vector for the whole tile, of a few thousand numbers at most"
        )


def _checked(row: Tensor, tile: IndexedTile, path: Path) -> Tensor:
    if row.dtype not in DTYPES:
        fault = (
            f"are {str(row.dtype).removeprefix('torch.')}; expected float32, float16 or bfloat16"
        )
    elif row.ndim != 1 or not len(row):
        fault = f"have the shape {list(row.shape)}; expected a vector"
    elif not torch.isfinite(row := row.float()).all():
        fault = "hold NaN or infinite values; expected finite numbers"
    else:
        return row
    raise EdgelungError(f"{path}: the features of {tile.path} {fault}: make the file again")
