"""Where an early exit may stand, from which tokens, and with which thresholds: the starter's INT8.

    python benchmarks/early_exit_trials.py TILES RUN FOREIGN --features FILE.npz

RUN: what `benchmarks/starter_run.py` makes of TILES. FOREIGN: holds folders colon* of tiles. FILE
keeps the features of all tiles between runs. Writes results/early-exit-trials.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
import onnx

from edgelung.artifacts.bundle import open_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.typed_json import plain
from edgelung.engines.base import GraphBytes
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation.early_exit import (
    changed_labels_bound,
    lost_groups,
    lost_groups_bound,
    lowest_confidence,
)
from edgelung.evaluation.known import fit_known, rank_correlation, threshold_of
from edgelung.evaluation.metrics import (
    classification_metrics,
    confusion_matrix,
    fit_temperature,
)
from edgelung.export import early_exit
from edgelung.export.early_exit import ExitTiles, _cross_fitted
from edgelung.export.graph import ModelWriter
from edgelung.export.graph_writer import float_info
from edgelung.export.inputs import ExportInputs, read_inputs
from edgelung.export.linear_head import fit_head, softmax
from edgelung.export.tiles import TileSet
from edgelung.tiles.reader import read_tile

HERE = Path(__file__).parent
STARTER = HERE.parent / "edgelung" / "starter"
RESULT = HERE / "results" / "early-exit-trials.json"
BLOCKS = (2, 3, 4)
TOKENS = {
    "class and distillation token": ("class", "distillation"),
    "mean patch token": ("mean",),
    "all three": ("class", "distillation", "mean"),
}
FIT_TILES = 4096
Array = npt.NDArray[Any]


def main() -> None:
    """Features once, then all trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("foreign", type=Path)
    parser.add_argument("--features", type=Path, required=True)
    options = parser.parse_args()
    inputs = read_inputs(
        RunFolder(options.run), data=options.tiles, calibrates=True, calibration_tiles=512
    )
    colon = sorted(path for path in options.foreign.rglob("colon*/*") if path.is_file())
    if not options.features.exists():
        np.savez(options.features, **features(inputs, colon))
    trials = Trials(inputs, dict(np.load(options.features)), [f"colon/{p.name}" for p in colon])
    result = {
        "machine": machine.describe(),
        "note": "shares of the calibration, gate and test tiles; labels of INT8 in OpenVINO",
        "tokens": [trials.tokens(block, name) for block in BLOCKS for name in TOKENS],
        "thresholds": [trials.thresholds(2, known) for known in (0.9, 0.95, 0.98, 0.99)],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def features(inputs: ExportInputs, foreign: Sequence[Path]) -> dict[str, Array]:
    """By name the paths, probabilities, scores, and the tokens after the blocks, of all tiles."""
    graph = onnx.load(STARTER / "model.int8.onnx")
    writer = ModelWriter(inputs.student, "int8", {}, {})
    writer.nodes = list(graph.graph.node)
    writer.constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    outputs = list(graph.graph.output)
    for block in BLOCKS:
        norm = f"blocks.{block}.norm1.weight"
        tokens = next(node.input[0] for node in graph.graph.node if norm in node.input)
        writer.mean_patch(tokens, f"mean{block}")
        front = [writer.integers(f"front{n}", [v]) for n, v in enumerate((0, 2, 1))]
        writer.op("Slice", [tokens, *front], outputs=[f"front{block}"])
        outputs += [float_info(f"mean{block}", None), float_info(f"front{block}", None)]
    model = writer.model("features", list(graph.graph.input), outputs)
    engine = OpenVinoEngine(GraphBytes(model.SerializeToString()), 1, bf16=True)
    names = [output.name for output in outputs]
    found: dict[str, list[Array]] = {name: [] for name in ["paths", *names]}
    sets = [inputs.train, inputs.calibration, inputs.gate, inputs.test]
    for tiles in sets:
        for batch in inputs.reader.batches(tiles, 16):
            for name, values in zip(names, engine.run(batch), strict=True):
                found[name].append(values)
        found["paths"].append(np.array(tiles.paths))
    pixels = np.stack([read_tile(path, inputs.reader.spec) for path in foreign])
    for name, values in zip(names, engine.run(pixels), strict=True):
        found[name].append(values)
    found["paths"].append(np.array([f"colon/{path.name}" for path in foreign]))
    return {name: np.concatenate(values) for name, values in found.items()}


class Trials:
    """What an exit would do, from the features of all tiles."""

    def __init__(
        self, inputs: ExportInputs, values: dict[str, Array], colon: Sequence[str]
    ) -> None:
        self.values = values
        self.row = {str(path): i for i, path in enumerate(values["paths"])}
        self.train = inputs.train.every(FIT_TILES)
        self.sets = {
            "calibration": inputs.calibration,
            "gate": inputs.gate,
            "test": inputs.test,
        }
        self.colon = [self.row[name] for name in colon]
        self.threshold = open_bundle(STARTER, OWN_WORK).variants["int8"].entry.known.threshold

    def rows(self, tiles: TileSet) -> Array:
        return np.array([self.row[path] for path in tiles.paths])

    def x(self, block: int, parts: Sequence[str]) -> Array:
        front = self.values[f"front{block}"]
        columns = {
            "class": front[:, 0],
            "distillation": front[:, 1],
            "mean": self.values[f"mean{block}"],
        }
        return np.concatenate([columns[part] for part in parts], axis=1).astype(np.float64)

    def tokens(self, block: int, name: str) -> dict[str, Any]:
        """Share of tiles that continue if a share of the labels is to stay."""
        x, train = self.x(block, TOKENS[name]), self.rows(self.train)
        head = fit_head(x[train], self.train.labels)
        rows = np.concatenate([self.rows(tiles) for tiles in self.sets.values()])
        probabilities = head.probabilities(x[rows])
        same = probabilities.argmax(1) == self.values["probs"][rows].argmax(1)
        order = np.argsort(-probabilities.max(1), kind="stable")
        changed = np.cumsum(~same[order])
        shares = {}
        for kept in (0.995, 0.998, 0.999):
            leave = np.flatnonzero(changed <= (1 - kept) * len(rows) + 1e-9)
            shares[str(kept)] = 1 - (leave[-1] + 1) / len(rows) if len(leave) else 1.0
        return {
            "block": block,
            "tokens": name,
            "same_label_without_threshold": float(same.mean()),
            "continue_at_agreement": shares,
        }

    def thresholds(self, block: int, known_share: float) -> dict[str, Any]:
        """The two bounds, and what each would do on the test tiles."""
        x, train = self.x(block, ("mean",)), self.rows(self.train)
        calibration, groups = self.sets["calibration"], self.train.groups
        known = fit_known(x[train], self.train.labels, block)
        scores = known.scores(x)
        rows = self.rows(calibration)
        limit = threshold_of(scores[rows], calibration.groups, known_share)
        logits = _cross_fitted(ExitTiles(x[train], self.train.labels, groups))
        temperature = fit_temperature(logits, self.train.labels)
        head = fit_head(x[train], self.train.labels).at(temperature)
        p = head.probabilities(x)
        may = scores <= limit
        changes = (p.argmax(1) != self.values["probs"].argmax(1)) & may
        crossed = softmax(logits / temperature)
        crossed_changes = (crossed.argmax(1) != self.train.labels) & may[train]
        by_labels = lowest_confidence(
            p[rows].max(1),
            changes[rows],
            changed_labels_bound(calibration.groups),
            early_exit.MAX_CHANGED,
        )
        by_groups = lowest_confidence(
            np.concatenate([p[rows].max(1), crossed.max(1)]),
            np.concatenate([changes[rows], crossed_changes]),
            lost_groups_bound([*calibration.groups, *groups]),
            early_exit.MAX_LOST,
        )
        assert by_labels is not None
        assert by_groups is not None
        test = self.rows(self.sets["test"])
        ranked = rank_correlation(scores[test], self.values["ood"][test])
        return {
            "known": known_share,
            "known_up_to": limit,
            "rank_correlation_of_scores_on_test": ranked,
            "foreign_tiles": len(self.colon),
            "foreign_within_known_up_to": int(may[self.colon].sum()),
            "labels_alone": self._on_test(p, may, by_labels),
            "labels_and_groups": self._on_test(p, may, max(by_labels, by_groups)),
        }

    def _on_test(self, p: Array, may: Array, confidence: float) -> dict[str, Any]:
        tiles = self.sets["test"]
        rows, whole = self.rows(tiles), self.values["probs"]
        leaves = may & (p.max(1) >= confidence)
        labels = np.where(leaves, p.argmax(1), whole.argmax(1))[rows]
        changed = labels != whole[rows].argmax(1)
        unknown = self.values["ood"] > self.threshold
        balance = [
            classification_metrics(
                confusion_matrix(tiles.labels, one, whole.shape[1])
            ).balanced_accuracy
            for one in (labels, whole[rows].argmax(1))
        ]
        return {
            "confidence": confidence,
            "continue": float((~leaves[rows]).mean()),
            "agreement": float(1 - changed.mean()),
            "balanced_accuracy_lost": balance[1] - balance[0],
            "groups": plain(lost_groups(changed, tiles.groups)),
            "unknown": int(unknown[rows].sum()),
            "unknown_that_left": int((unknown & leaves)[rows].sum()),
            "foreign_that_left": int(leaves[self.colon].sum()),
        }


if __name__ == "__main__":
    main()
