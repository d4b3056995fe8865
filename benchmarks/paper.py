"""Table II of the paper, trained anew on both splits: tile by tile as it did, and by whole groups.

    python benchmarks/paper.py TILES --out RUNS [--groups groups.csv] [--weights FOLDER]

Trains recipe `paper` (VGG16, ResNet50, DeiT-base) once with `--split random` and once with `--split
group`; a run that was stopped continues, a finished one is read. FOLDER: ImageNet weights as
resnet50.*, vgg16.* and deit_base_distilled_patch16_224.*, where there is no network. Prints the
table and writes JSON. Needs a GPU: an epoch of a model took 14 to 31 seconds on a busy H200, so the
whole takes about an hour, and half of that if each split has a card.

The source: Qu and Wang, 'Research on Early Prediction of Lung Cancer Based on Deep Learning'.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from msgspec import UNSET
from rich.console import Console
from rich.table import Table

from edgelung.artifacts.run import ModelMetrics, RunFolder, RunMetrics
from edgelung.core.errors import EdgelungError
from edgelung.core.typed_json import plain
from edgelung.train.recipe import Recipe, load_recipe
from edgelung.train.run import train_run

SPLITS = ("random", "group")
PAPER = {"baseline": 0.9849, "teacher": 0.9751, "student": 0.9996}  # all four columns alike
SECTIONS = {"teacher": "resnet50", "baseline": "vgg16"}
SECTIONS["student"] = "deit_base_distilled_patch16_224"


def main() -> None:
    """Train what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--split", choices=SPLITS, action="append", help="only this; repeatable")
    parser.add_argument("--set", action="append", default=[], help="override a field, to try it")
    default = Path(__file__).parent / "results" / "paper.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    changes = [*weights_of(options.weights), *options.set]
    for split in options.split or SPLITS:
        recipe = load_recipe("paper", [*changes, f"split.by={split}"])
        train(options.tiles, options.out / split, recipe, options.groups)
    runs = {split: RunFolder(options.out / split) for split in SPLITS}
    finished = {split: run.read_metrics() for split, run in runs.items() if run.is_finished}
    leaked = {
        split: runs[split].read_config().test_tiles_with_a_group_mate_in_training
        for split in finished
    }
    print_table(finished)
    result = {
        "changes": options.set,
        "paper": PAPER,
        "metrics": {split: plain(metrics) for split, metrics in finished.items()},
        "test_tiles_with_a_group_mate_in_training": leaked,
        "seconds": {split: seconds(runs[split]) for split in finished},
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")


def weights_of(folder: Path | None) -> list[str]:
    """The overrides that take the first weights from files; none without a folder."""
    if folder is None:
        return []
    changes = []
    for section, model in SECTIONS.items():
        files = sorted(folder.glob(f"{model}.*"))
        if len(files) != 1:
            raise SystemExit(f"{len(files)} files {model}.* in {folder}; expected one")
        changes.append(f"{section}.weights={files[0]}")
    return changes


def train(tiles: Path, out: Path, recipe: Recipe, groups: Path | None) -> None:
    """Train a run, or what is left of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if RunFolder(out).config_path.is_file():
            train_run(tiles, out, None, resume=True)
        else:
            train_run(tiles, out, recipe, groups=groups)
    except EdgelungError as error:
        raise SystemExit(f"{out}: {error}") from error


def seconds(run: RunFolder) -> float:
    """Seconds of all epochs of a run."""
    return round(sum(record.seconds for record in run.read_history()), 1)


def print_table(finished: dict[str, RunMetrics]) -> None:
    """Table II: macro averages in percent, test accuracy with its interval over groups."""
    table = Table("model", "split", "accuracy", "interval", "precision", "recall", "F1", "paper")
    for role, reported in PAPER.items():
        for split, metrics in finished.items():
            model: Any = getattr(metrics, role)
            if model is not UNSET:
                table.add_row(*row(model, split), f"{100 * reported:.2f}")
    Console().print(table)


def row(model: ModelMetrics, split: str) -> list[str]:
    """The cells of a model on one split."""
    test = model.test
    bounds = test.intervals.accuracy
    interval = " – ".join(f"{100 * bound:.2f}" for bound in bounds) if bounds else ""
    values = (test.macro_precision, test.macro_recall, test.macro_f1)
    cells = [f"{100 * value:.2f}" for value in values]
    return [model.model, split, f"{100 * test.accuracy:.2f}", interval, *cells]


if __name__ == "__main__":
    main()
