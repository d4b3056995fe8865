"""Cheaper students compared: accuracy over folds, paired by group, and tiles per second.

    for R in quick quick-exits quick-160 quick-160-exits; do
        edgelung train TILES --groups groups.csv --recipe $R --folds 3 --out folds/$R
        for K in 1 2 3; do
            edgelung export folds/$R/fold-$K --out bundles/$R/fold-$K --int8 --early-exit
        done
    done
    python benchmarks/cheaper.py TILES --model full=folds/quick:bundles/quick \
        --model exits=folds/quick-exits:bundles/quick-exits \
        --model 160=folds/quick-160:bundles/quick-160 \
        --model 160-exits=folds/quick-160-exits:bundles/quick-160-exits [--originals FOLDER]

The first model is the reference: its full precision for accuracy, its INT8 for speed. Its own early
exit is the row 'exits fitted afterwards'. Every tile is predicted by the bundle of the fold that
tests it. A model without bundles (`--model NAME=FOLDS`) is compared in full precision only; if some
folds have no bundle, a variant is compared on the tiles of the others.

Speed is CPU time on one core in OpenVINO, on test tiles of the first exported fold, in turns.
`--originals`: JPEG files that are larger than the models' input; for these, how much decoding costs
and how many labels change if they are decoded at full size. Writes JSON.

results/folds-students.tar.xz holds the predictions of the four cross-validations, without weights:
enough for the rows in full precision. `students.py` trains recipes that differ in the student alone
from one set of teachers.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import machine
import numpy as np
import numpy.typing as npt
import simplejpeg
from rich.console import Console
from rich.table import Table

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.precision import Precision
from edgelung.core.typed_json import Json
from edgelung.engines.base import Engine, Tiles
from edgelung.engines.choose import ENGINES, load_variant
from edgelung.engines.names import EngineName
from edgelung.evaluation.intervals import paired_intervals
from edgelung.evaluation.metrics import evaluate
from edgelung.tiles.reader import decode_tile, read_tile
from edgelung.tiles.resize import resize

RESULT = Path(__file__).parent / "results" / "cheaper.json"
VARIANTS = (Precision.INT8, Precision.INT8_EARLY_EXIT)
BATCH, SPEED_TILES = 16, 320

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """A cross-validation, and the bundle of each of its folds, if it was exported."""

    name: str
    folds: FoldsFolder
    bundles: dict[int, Bundle]  # by the number of the fold

    def has(self, precision: Precision) -> bool:
        """True if every bundle has the variant."""
        found = self.bundles.values()
        return bool(found) and all(precision in bundle.variants for bundle in found)


@dataclass(frozen=True)
class Predicted:
    """Predicted classes by path, and the share of tiles that left early; None without an exit."""

    labels: Mapping[str, int]
    left: float | None = None


def main() -> None:
    """Read, predict, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--model", type=read_model, action="append", required=True)
    parser.add_argument("--originals", type=Path, help="folder of large JPEG files")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--speed-tiles", type=int, default=SPEED_TILES)
    parser.add_argument("--json", type=Path, default=RESULT)
    options = parser.parse_args()
    models: list[Model] = options.model
    if not models[0].bundles and any(model.bundles for model in models):
        parser.error("the first model has no bundles: its INT8 is the reference of the speeds")
    result: dict[str, Json] = {
        "machine": machine.describe(),
        "accuracy": accuracy_rows(models, options.tiles),
        "left_out": [
            f"{model.name} {precision}: not in the bundle of every fold"
            for model in models
            for precision in VARIANTS
            if model.bundles and not model.has(precision)
        ],
    }
    exported = [model for model in models if model.bundles]
    if exported:
        result["speed"] = speed_rows(exported, options.tiles, options.speed_tiles, options.repeats)
    if options.originals:
        paths = sorted(p for p in options.originals.rglob("*") if p.suffix in (".jpeg", ".jpg"))
        result["scaled_decode"] = [decode_row(model, paths) for model in exported]
    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


def read_model(text: str) -> Model:
    """NAME=FOLDS[:BUNDLES], where BUNDLES holds fold-1, fold-2 and so on."""
    name, _, folders = text.partition("=")
    folds_path, _, bundles = folders.partition(":")
    folds = FoldsFolder(Path(folds_path))
    if not bundles:
        return Model(name, folds, {})
    numbers = range(1, folds.read_config().folds + 1)
    places = {k: Path(bundles) / f"fold-{k}" for k in numbers}
    found = {k: open_bundle(path, OWN_WORK) for k, path in places.items() if path.is_dir()}
    if not found:
        raise argparse.ArgumentTypeError(f"no bundle fold-1 … in {bundles}")
    return Model(name, folds, found)


def accuracy_rows(models: Sequence[Model], tiles: Path) -> list[Json]:
    """Each model in full precision and each variant, against the first model."""
    truth = models[0].folds.read_predictions()
    reference = full_precision(models[0])
    rows: list[Json] = []
    for model in models:
        of_model = {Precision.FP32: full_precision(model)}
        of_model |= {p: predict_folds(model, p, tiles) for p in VARIANTS if model.has(p)}
        for precision, predicted in of_model.items():
            row = figures(predicted, reference, of_model[Precision.FP32], truth)
            bundles = model.bundles.values() if precision is not Precision.FP32 else ()
            variants = [bundle.variants[precision] for bundle in bundles]
            gates = [variant.gate.verdict for variant in variants]
            exits = [variant.entry.early_exit for variant in variants]
            blocks = [early.block for early in exits if early]
            row |= {"model": model.name, "variant": precision, "gates": list(gates)}
            rows.append(row | ({"exit_after_blocks": list(blocks)} if blocks else {}))
    return rows


def full_precision(model: Model) -> Predicted:
    """What the students of the folds predicted in training."""
    found = model.folds.read_predictions()
    labels = found.probabilities.argmax(axis=1).tolist()
    return Predicted(dict(zip(found.paths, labels, strict=True)))


def predict_folds(model: Model, precision: Precision, tiles: Path) -> Predicted:
    """Every tile by the variant of the fold that tests it."""
    labels: dict[str, int] = {}
    left = 0
    for number, bundle in model.bundles.items():
        paths = model.folds.fold(number).read_predictions().subset("test").paths
        engine = load(bundle, precision)
        for i in range(0, len(paths), BATCH):
            some = paths[i : i + BATCH]
            output = engine.infer(read(bundle, tiles, some))
            labels |= zip(some, output.probabilities.argmax(axis=1).tolist(), strict=True)
            left += 0 if output.stage is None else int((output.stage == 1).sum())
        engine.close()
    share = left / len(labels) if precision is Precision.INT8_EARLY_EXIT else None
    return Predicted(labels, share)


def figures(
    predicted: Predicted, reference: Predicted, own: Predicted, truth: RunPredictions
) -> dict[str, Json]:
    """Accuracy; the difference to the reference, paired over groups; agreement with its own FP32.

    All on the tiles that were predicted. Differences and intervals are in points (percent).
    """
    rows = [row for row, path in enumerate(truth.paths) if path in predicted.labels]
    ours, theirs, full = (
        np.array([one.labels[truth.paths[row]] for row in rows])
        for one in (predicted, reference, own)
    )
    labels, groups = truth.labels[rows], [truth.groups[row] for row in rows]
    classes = len(truth.classes)
    accuracy, before = (
        evaluate(np.eye(classes)[found], labels).balanced_accuracy for found in (ours, theirs)
    )
    low, high = paired_intervals(theirs, ours, labels, groups, classes).balanced_accuracy
    changed, of_group = ours != full, np.array(groups)
    lost = [bool(changed[of_group == name].mean() > 0.1) for name in np.unique(of_group)]
    return {
        "tiles": len(ours),
        "groups": len(lost),
        "balanced_accuracy": accuracy,
        "accuracy": float((ours == labels).mean()),
        "points_to_reference": 100 * ((accuracy or 0) - (before or 0)),
        "interval": [100 * low, 100 * high],
        "same_label_as_own_fp32": float(1 - changed.mean()),
        "groups_that_change_over_a_tenth": sum(lost),
        "left_early": predicted.left,
    }


def speed_rows(models: Sequence[Model], tiles: Path, count: int, repeats: int) -> list[Json]:
    """CPU time of each variant of the first fold, in turns on the same tiles."""
    number = next(iter(models[0].bundles))  # tiles that this bundle's student did not see
    paths = models[0].folds.fold(number).read_predictions().subset("test").paths
    step = max(1, len(paths) // count)
    some = paths[::step][:count]
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    reading = {}
    for model in models:
        bundle = next(iter(model.bundles.values()))
        start = time.process_time()
        data = read(bundle, tiles, some)
        reading[model.name] = 1e3 * (time.process_time() - start) / len(some)
        for precision in VARIANTS:
            if model.has(precision):
                engine = load(bundle, precision)
                runs[model.name, precision] = partial(in_batches, engine, data)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(repeats + 1):  # the first one warms up
        for key, run in runs.items():
            seconds[key].append(cpu_seconds(run))
    base = seconds[models[0].name, Precision.INT8][1:]
    rows: list[Json] = []
    for (name, variant), values in seconds.items():
        ratios = [a / b for a, b in zip(base, values[1:], strict=True)]
        rows.append(
            {
                "model": name,
                "variant": variant,
                "tiles": len(some),
                "tiles_per_cpu_second": len(some) / float(np.median(values[1:])),
                "times_int8_of_the_first": float(np.median(ratios)),
                "range": [min(ratios), max(ratios)],
                "ms_to_read_a_tile": reading[name],
            }
        )
    return rows


def decode_row(model: Model, paths: Sequence[Path]) -> Json:
    """Large JPEG files decoded at the smallest scale that covers the input, and at full size."""
    bundle = next(iter(model.bundles.values()))
    size, files = bundle.reader.size, [path.read_bytes() for path in paths]
    ways: dict[str, Callable[[bytes], Tiles]] = {
        "scaled": lambda data: decode_tile(data, bundle.reader),
        "full": lambda data: resize(simplejpeg.decode_jpeg(data, "RGB"), size),
    }
    first = simplejpeg.decode_jpeg(files[0], "RGB", min_height=size, min_width=size, min_factor=1)
    engine, milliseconds, outputs, pixels = load(bundle, Precision.INT8), {}, {}, {}
    for way, decode in ways.items():
        start = time.process_time()
        pixels[way] = np.stack([decode(data) for data in files])
        milliseconds[way] = 1e3 * (time.process_time() - start) / len(files)
        outputs[way] = np.concatenate(in_batches(engine, pixels[way]))
    engine.close()
    labels = [outputs[way].argmax(axis=1) for way in ways]
    levels = np.abs(pixels["scaled"].astype(float) - pixels["full"])
    return {
        "model": model.name,
        "size": size,
        "files": len(files),
        "decoded_at": list(first.shape[:2]),
        "cpu_ms_for_a_tile": dict(milliseconds),
        "mean_difference_levels": float(levels.mean()),
        "labels_that_change": int((labels[0] != labels[1]).sum()),
        "largest_probability_difference": float(np.abs(outputs["scaled"] - outputs["full"]).max()),
    }


def load(bundle: Bundle, precision: Precision) -> Engine:
    """A variant on one core in OpenVINO, as `infer` runs it."""
    return load_variant(ENGINES[EngineName.OPENVINO], bundle.variant(precision), 1)


def read(bundle: Bundle, tiles: Path, paths: Sequence[str]) -> Tiles:
    """Tiles at the size of the bundle, (N, size, size, 3)."""
    return np.stack([read_tile(tiles / path, bundle.reader) for path in paths])


def in_batches(engine: Engine, tiles: Tiles) -> list[npt.NDArray[np.float32]]:
    """The probabilities of all tiles, batch by batch."""
    return [engine.infer(tiles[i : i + BATCH]).probabilities for i in range(0, len(tiles), BATCH)]


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process: other programs on the machine count less than in wall time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def show(result: Mapping[str, Json]) -> None:
    """Print each part as a table, and what is missing in them."""
    print(written(result["left_out"]))
    for part in ("accuracy", "speed", "scaled_decode"):
        rows = result.get(part)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            table = Table(*dict.fromkeys(key for row in rows for key in row), title=part)
            for row in rows:
                table.add_row(*(written(row.get(column.header)) for column in table.columns))
            Console(width=220).print(table)


def written(value: Json) -> str:
    """A value for the table."""
    if isinstance(value, list):
        return ", ".join(map(written, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {written(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)


if __name__ == "__main__":
    main()
