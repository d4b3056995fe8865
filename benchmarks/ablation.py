"""What each part of training from scratch brings: one student a variant, one teacher for all.

    python benchmarks/ablation.py RUN tiles/ --groups tiles/clusters.csv --out ablation/

RUN is a finished run of recipe `quick` on these tiles and groups; its teacher teaches every student
here, so a variant differs from the first in the fields it names and in nothing else. To be cheap
the students are trained for few epochs and on windows only; so they are judged on windows too, by
the mean of the four quarters of every second tile. (On whole tiles, which they have not learnt yet,
their figures move by points from epoch to epoch.) Differences are paired, over the groups of
validation: the test set reports and decides nothing. Both are judged in other colours as well,
torchvision's and not those of the augmentation, since these tiles are all of one laboratory. The
table and the JSON grow by one variant at a time; what they hold already is kept, what is trained is
not trained again.
"""

import argparse
import csv
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torchvision.transforms.v2 import ColorJitter

from edgelung.evaluation.intervals import paired_intervals
from edgelung.evaluation.metrics import evaluate
from edgelung.tiles.reader import ReaderSpec
from edgelung.train.distributed import create_context
from edgelung.train.models import create_student
from edgelung.train.preprocess import normalise
from edgelung.train.recipe import Student, validate_recipe
from edgelung.train.tiles import TileStore

EDGELUNG = Path(sys.executable).with_name("edgelung")
REFERENCE = "recipe quick"
OTHER_COLOURS = ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3, hue=0.05)
EVERY = 2  # of the tiles judges: those of a group are near copies of each other
TOGETHER = "distill.features_epochs=0"
NO_GUIDANCE = (TOGETHER, "distill.guidance=0")
VARIANTS: dict[str, tuple[str, ...]] = {
    REFERENCE: (),
    "labels from the start": (TOGETHER,),
    "no guidance": NO_GUIDANCE,
    "no guidance, hard": (*NO_GUIDANCE, "distill.mode=hard"),
    "no teacher: labels alone": (*NO_GUIDANCE, "distill.mode=none"),
    "timm's initialisation": ("student.init=timm",),
    "AdamW": ("student.optimizer=adamw", "student.lr=1e-3"),
    "no colour augmentation": ("augment.stain=0", "augment.light=0"),
    "stronger stain augmentation": ("augment.stain=0.35",),
    "crops of 0.6 to 1.25 of the side": ("augment.scale=[0.6, 1.25]",),
}


def main() -> None:
    """Train what is missing; after each variant compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--groups", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    default = Path(__file__).parent / "results" / "ablation.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    for seed in options.seeds:
        for name in options.only:
            folder = options.out / folder_name(name, seed)
            train(folder, VARIANTS[name], seed, options)
            record(options.json, name, seed, folder, options)
            show(options.json)


def folder_name(name: str, seed: int) -> str:
    """Of the variant itself, so that it outlives changes of the list."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{seed}"


def train(folder: Path, settings: tuple[str, ...], seed: int, options: argparse.Namespace) -> None:
    """One student of the run's teacher; goes on with what a killed one left."""
    if (folder / "metrics.json").is_file():
        return
    words: list[object] = [EDGELUNG, "train", options.data, "--out", folder]
    if (folder / "run.json").is_file():
        words.append("--resume")
    else:
        teacher = (options.run / "teacher" / "model.safetensors").absolute()
        fixed = (
            f"student.epochs={options.epochs}",
            f"student.low_epochs={options.epochs}",
            f"distill.features_epochs={options.epochs - 1}",
            "teacher.epochs=0",
            f"teacher.weights={teacher}",
            f"seed={seed}",  # of weights and batches; the split has its own, which stays
        )
        words += ["--recipe", "quick", "--groups", options.groups]
        for text in (*fixed, *settings):
            words += ["--set", text]
    print("$", *words, flush=True)
    subprocess.run([*map(str, words)], check=True)


def record(path: Path, name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Put one trained student's figures into the JSON, against the reference of its seed."""
    result = json.loads(path.read_text()) if path.is_file() else {"variants": {}}
    history = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    own = judged(folder, options.data)
    entry: dict[str, Any] = {"epochs": options.epochs}
    for subset in ("val", "test"):
        of = own.subset == subset
        metrics = evaluate(own.probabilities[of], own.truth[of])
        entry[subset] = metrics["balanced_accuracy"]
        entry[f"{subset}_negative_log_likelihood"] = metrics["negative_log_likelihood"]
        recoloured = evaluate(own.recoloured[of], own.truth[of])
        entry[f"{subset}_other_colours"] = recoloured["balanced_accuracy"]
    alone = [r for r in history if r["stage"] == "student" and "val_loss" not in r]
    if alone:  # what the last epoch of features alone leaves of their variance, on training tiles
        entry["features_loss"] = alone[-1]["loss"]
    entry["seconds"] = sum(r["seconds"] for r in history if r["stage"] == "student")
    entry["machine"] = machine.describe()
    reference = options.out / folder_name(REFERENCE, seed)
    if name != REFERENCE and (reference / "metrics.json").is_file():
        other = judged(reference, options.data)
        classes = own.probabilities.shape[1]
        of = own.subset == "val"
        both = [a.probabilities[of].argmax(axis=1) for a in (other, own)]
        found = [evaluate(j.probabilities[of], j.truth[of]) for j in (other, own)]
        entry["difference"] = found[1]["balanced_accuracy"] - found[0]["balanced_accuracy"]
        change = paired_intervals(*both, own.truth[of], list(own.group[of]), classes)
        entry["difference_interval"] = change["balanced_accuracy"]
    variant = result["variants"].setdefault(name, {"settings": VARIANTS[name], "seeds": {}})
    variant["seeds"][str(seed)] = entry
    path.write_text(json.dumps(result, indent=2) + "\n")


@dataclass(frozen=True)
class Judged:
    """What a student says of the tiles of validation and test, (N,) each; probabilities (N, C)."""

    probabilities: npt.NDArray[np.float32]
    recoloured: npt.NDArray[np.float32]  # the same of the tiles in other colours
    truth: npt.NDArray[np.int64]
    group: npt.NDArray[np.str_]
    subset: npt.NDArray[np.str_]


def judged(folder: Path, data: Path) -> Judged:
    """The mean of each tile's four quarters; kept beside the run."""
    kept = folder / "windows.npz"
    if not kept.is_file() or "recoloured" not in np.load(kept):  # judged by an older form
        recipe = validate_recipe(json.loads((folder / "run.json").read_text())["recipe"], "run")
        with (folder / "split.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["subset"] != "train"][::EVERY]
        classes = sorted({row["class"] for row in rows})
        store = TileStore([data / row["path"] for row in rows], ReaderSpec(recipe.student.size))
        words = (folder, recipe.student, len(classes), store)
        np.savez(
            kept,
            probabilities=sum(quarters(*words, None)) / 4,
            recoloured=sum(quarters(*words, OTHER_COLOURS)) / 4,
            truth=np.array([classes.index(row["class"]) for row in rows]),
            group=np.array([row["group"] for row in rows]),
            subset=np.array([row["subset"] for row in rows]),
        )
    return Judged(**np.load(kept))


@torch.no_grad()
def quarters(
    folder: Path, schedule: Student, classes: int, store: TileStore, colours: ColorJitter | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Probabilities (N, C) of each quarter of the tiles, where its positions are the tile's."""
    size, window = schedule.size, schedule.low_size
    state = load_file(folder / "model.safetensors")
    smaller = schedule.model_copy(update={"weights": "none", "size": window})
    on = create_context("auto")
    model = create_student(smaller, classes).to(on.device).eval()
    patch, prefix = model.patch_embed.patch_size[0], model.num_prefix_tokens
    first, grid = state["pos_embed"].split([prefix, (size // patch) ** 2], dim=1)
    grid = grid.view(1, size // patch, size // patch, -1)
    side, mixed = window // patch, on.autocast()
    for top, left in itertools.product((0, size - window), repeat=2):
        row, column = top // patch, left // patch
        own = grid[:, row : row + side, column : column + side].flatten(1, 2)
        model.load_state_dict(state | {"pos_embed": torch.cat([first, own], dim=1)})
        found = []
        for some in np.array_split(np.arange(len(store)), math.ceil(len(store) / 64)):
            pixels = store.batch(some)
            if colours:
                torch.manual_seed(int(some[0]))  # each tile's are the same in all its quarters
                pixels = torch.stack([colours(tile) for tile in pixels])
            images = normalise(pixels.to(on.device).float() / 255, model)
            images = images[..., top : top + window, left : left + window]
            with mixed:
                logits = model(images)
            found.append(logits.float().softmax(dim=1).cpu().numpy())
        yield np.concatenate(found)


def show(path: Path) -> None:
    """The table so far."""
    table = Table("student", "seed", "validation", "difference (95 %)", "other colours", "test")
    for name, variant in json.loads(path.read_text())["variants"].items():
        for seed, entry in variant["seeds"].items():
            change = ""
            if "difference" in entry:
                least, most = entry["difference_interval"]
                change = f"{100 * entry['difference']:+.1f}"
                change += f" ({100 * least:+.1f} … {100 * most:+.1f})"
            keys = ("val", "val_other_colours", "test")
            val, colours, test = (f"{100 * entry[k]:.1f}" if k in entry else "" for k in keys)
            table.add_row(name, seed, val, change, colours, test)
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
