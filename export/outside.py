"""How sure the model is of tiles that belong to none of its classes."""

from pathlib import Path

import numpy as np

from edgelung.artifacts.manifest import OutsideConfidence
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.evaluation.metrics import Floats, roc_auc
from edgelung.export.tiles import LabelledTile, TileReader, TileSet
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import TileError, decode_tile, read_found


def find_outside_tiles(folder: Path, reader: TileReader) -> TileSet:
    """Every readable tile below `folder`, whatever it shows; kept by the reader if they fit.

    Raises:
        EdgelungError: if there is none.
    """
    data = folder if folder.is_dir() else folder.parent
    tiles, links = [], 0
    for file in find_files(folder):
        links += file.leads_out
        if not file.is_image or file.reason:
            continue
        try:
            content = read_found(file)
            pixels = decode_tile(content, reader.spec)
        except TileError:
            continue
        tiles.append(LabelledTile(file.path, 0, file.path, sha256_bytes(content)))
        reader.offer(data / file.path, pixels)
    if not tiles:
        why = f" but {links} link(s) that lead out of it, which are not followed" if links else ""
        raise EdgelungError(
            f"--outside {folder} holds no tile{why}; expected tiles of other tissue"
        )
    return TileSet(data, tuple(tiles))


def compare_confidence(inside: Floats, outside: Floats) -> OutsideConfidence:
    """Compare the confidence of test tiles and of tiles of none of the classes.

    Args:
        inside: (N,), the largest probability of each test tile.
        outside: (M,), the same of the other tiles.

    Returns:
        Medians, shares and `roc_auc`: the probability that a test tile has the higher confidence
        (0.5: confidence does not separate them; 1: it always does).
    """
    both = np.concatenate([inside, outside])
    is_inside = np.repeat([1, 0], [len(inside), len(outside)])
    return OutsideConfidence(
        tiles=len(outside),
        median_confidence_on_test=float(np.median(inside)),
        median_confidence=float(np.median(outside)),
        share_above_09_on_test=float((inside > 0.9).mean()),
        share_above_09=float((outside > 0.9).mean()),
        roc_auc=roc_auc(np.stack([-both, both], axis=1), is_inside),
    )
