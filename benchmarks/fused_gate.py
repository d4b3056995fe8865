"""Do ONNX Runtime's fused operators pass the gate? Plain against fused graphs, on the CPU.

    python benchmarks/fused_gate.py BUNDLE TILES --groups FILE [--most N] [--fp32] [--out JSON]

Every variant whose graph gets fused operators (`edgelung.engines.onnx_fusion`), with `--fp32` those
in FP32 too, predicts the labelled tiles twice: as the file says, and fused. The gate judges the
fused one against the plain one. On the CPU both are computed in FP32; on a card `edgelung
gpu-check` compares the labels.
"""

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import machine
import numpy as np

from edgelung.artifacts.bundle import open_bundle
from edgelung.core.system import available_cores
from edgelung.engines.base import Graph, GraphBytes, Tiles
from edgelung.engines.onnx_fusion import fuse
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.evaluation.gate import gate
from edgelung.inference.labelled import labelled_files
from edgelung.tiles.reader import read_tile

RESULT = Path(__file__).parent / "results" / "fused-gate.json"
BATCH = 16


def main() -> None:
    """Predict twice, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--groups", type=Path, required=True, help="CSV: path, group")
    parser.add_argument("--most", type=int, default=2000, help="tiles")
    parser.add_argument("--fp32", action="store_true", help="fuse FP32 graphs as well")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    labelled = labelled_files(given.tiles, bundle.classes, given.groups)
    files = labelled.files[:: max(1, len(labelled.files) // given.most)][: given.most]
    tiles = np.stack([read_tile(Path(f.file.location), bundle.reader) for f in files])
    truth = np.array([f.truth for f in files])
    groups = [f.group for f in files]
    rows = {}
    for variant in bundle.variants.values():
        fused, count = fuse(variant.graph.read(), fp32=given.fp32)
        if not count or variant.second is not None:
            continue
        plain = predict(variant.graph, tiles)
        ours = predict(GraphBytes(fused), tiles)
        result = gate(ours, plain, truth, groups, classes=bundle.classes)
        rows[str(variant.precision)] = {
            "fused_operators": count,
            "verdict": result.verdict,
            "reasons": list(result.reasons),
            "agreement": result.agreement,
            "max_probability_difference": result.max_probability_difference,
        }
        print(variant.precision, rows[str(variant.precision)])
    written: dict[str, Any] = {
        "tiles": len(files),
        "groups": len(set(groups)),
        "variants": rows,
        "machine": machine.describe(),
    }
    given.out.write_text(json.dumps(written, indent=2) + "\n")


def predict(graph: Graph, tiles: Tiles) -> np.ndarray:
    """Probabilities (N, classes)."""
    with closing(OnnxRuntimeEngine(graph, available_cores(), latency=True)) as engine:
        starts = range(0, len(tiles), BATCH)
        return np.concatenate([engine.infer(tiles[i : i + BATCH]).probabilities for i in starts])


if __name__ == "__main__":
    main()
