"""INT8 on a CPU without VNNI: what saturated sums do to the answers, and what exact ones cost.

    python benchmarks/int8_without_vnni.py TILES SPLIT

SPLIT: split.csv of a run of recipe `starter` on TILES. The test tiles are predicted in full
precision, in INT8 as edgelung runs it (ONNX Runtime with exact sums), and in INT8 as both runtimes
compute it by default. Speed is that of one core, all ways in turns. Writes
results/int8-without-vnni.json.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import machine
import numpy as np

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.precision import Precision
from edgelung.core.system import saturates_int8
from edgelung.engines import onnxruntime, openvino
from edgelung.engines.base import Engine, Output, Tiles, join_outputs
from edgelung.engines.choose import ENGINES, load_variant
from edgelung.engines.names import EngineName
from edgelung.evaluation.metrics import evaluate
from edgelung.tiles.reader import read_tile

RESULT = Path(__file__).parent / "results" / "int8-without-vnni.json"
BATCH, SPEED_TILES, ROUNDS = 16, 64, 7
INT8, EARLY, FP32 = Precision.INT8, Precision.INT8_EARLY_EXIT, Precision.FP32
ORT, OV = EngineName.ONNXRUNTIME, EngineName.OPENVINO
REFERENCE = (OV, FP32, False)
WAYS = (
    REFERENCE,
    (ORT, FP32, False),
    *((ORT, precision, saturated) for saturated in (False, True) for precision in (INT8, EARLY)),
    *((OV, precision, True) for precision in (INT8, EARLY)),
)


def main() -> None:
    """Predict, compare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("split", type=Path)
    options = parser.parse_args()
    if not saturates_int8():
        raise SystemExit("this CPU has VNNI: nothing saturates here")
    bundle = open_bundle(starter_bundle(), OWN_WORK)
    with options.split.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["subset"] == "test"]
    tiles = np.stack([read_tile(options.tiles / row["path"], bundle.reader) for row in rows])
    labels = np.array([bundle.classes.index(row["class"]) for row in rows])

    engines = {way: load(bundle, *way) for way in WAYS}
    outputs = {way: predict(engine, tiles) for way, engine in engines.items()}
    result: dict[str, Any] = {"machine": machine.describe(), "test_tiles": len(tiles), "ways": []}
    speeds = speed(engines, tiles[:: max(1, len(tiles) // SPEED_TILES)][:SPEED_TILES])
    for way, output in outputs.items():
        exact = outputs[ORT, way[1], False]
        found = compare(bundle, way[1], output, outputs[REFERENCE], exact, labels)
        result["ways"].append(
            {
                "engine": way[0],
                "precision": way[1],
                "saturated": way[2],
                **found,
                "tiles_per_second": speeds[way],
            }
        )
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def load(bundle: Bundle, name: EngineName, precision: Precision, saturated: bool) -> Engine:
    """A variant on one core; `saturated`: as the runtime computes it by default."""
    opened = partial(load_variant, ENGINES[name], bundle.variant(precision), 1)
    if not saturated:
        return opened()
    with (
        mock.patch.object(openvino, "saturates_int8", return_value=False),
        mock.patch.object(
            onnxruntime, "_session_options", default_options(onnxruntime._session_options)
        ),
    ):
        return opened()


def default_options(options_of: Callable[..., Any]) -> Callable[..., Any]:
    """Take the exact kernels back."""

    def options(*words: Any) -> Any:
        made = options_of(*words)
        made.add_session_config_entry("session.x64quantprecision", "0")
        return made

    return options


def predict(engine: Engine, tiles: Tiles) -> Output:
    """All tiles in batches of `BATCH`."""
    return join_outputs([engine.infer(tiles[i : i + BATCH]) for i in range(0, len(tiles), BATCH)])


def compare(
    bundle: Bundle,
    precision: Precision,
    output: Output,
    reference: Output,
    exact: Output,
    labels: np.ndarray[Any, Any],
) -> dict[str, Any]:
    """An output beside that of full precision and that of exact sums."""
    assert output.ood is not None
    assert exact.ood is not None
    known = bundle.variant(precision).entry.known
    assert known is not None
    ratio = output.ood / exact.ood
    return {
        "balanced_accuracy": evaluate(output.probabilities, labels).balanced_accuracy,
        "same_label_as_fp32": share(
            output.probabilities.argmax(axis=1) == reference.probabilities.argmax(axis=1)
        ),
        "largest_probability_difference_to_fp32": float(
            np.abs(output.probabilities - reference.probabilities).max()
        ),
        "unknown": share(output.ood > known.threshold),
        "left_early": None if output.stage is None else share(output.stage == 1),
        "score_to_exact": {
            "median": float(np.median(ratio)),
            "least": float(ratio.min()),
            "largest": float(ratio.max()),
        },
    }


def share(true: np.ndarray[Any, Any]) -> float:
    return float(true.mean())


def speed(engines: dict[tuple[EngineName, Precision, bool], Engine], tiles: Tiles) -> Any:
    """Tiles per second of each engine: median and range of the rounds, all engines in each."""
    found: dict[Any, list[float]] = {way: [] for way in engines}
    for _ in range(ROUNDS):
        for way, engine in engines.items():
            start = time.perf_counter()
            predict(engine, tiles)
            found[way].append(len(tiles) / (time.perf_counter() - start))
    return {
        way: {"median": float(np.median(all_)), "least": min(all_), "largest": max(all_)}
        for way, all_ in found.items()
    }


if __name__ == "__main__":
    main()
