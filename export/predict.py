"""Probabilities of a tile set under a graph, in the runtime that judges."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import Engine, EngineFactory, Tiles
from edgelung.engines.fastest import seconds_per_batch
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.export.tiles import TileSet
from edgelung.tiles.reader import ReaderSpec

Probabilities = npt.NDArray[np.float32]  # (N, classes)


def predict(
    graph: Path | onnx.ModelProto, tiles: TileSet, spec: ReaderSpec, what: str
) -> Probabilities:
    """float32 (N, classes) in ONNX Runtime on the CPU; `what` names the progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        path = graph if isinstance(graph, Path) else Path(folder) / "graph.onnx"
        if isinstance(graph, onnx.ModelProto):
            onnx.save(graph, path)
        engine = OnnxRuntimeEngine(path, available_cores(), latency=True)  # one batch at a time
    return predict_in(engine, tiles, spec, what)


def predict_in(engine: Engine, tiles: TileSet, spec: ReaderSpec, what: str) -> Probabilities:
    """float32 (N, classes) in an engine, which is closed thereafter."""
    found = []
    with progress(what, len(tiles)) as advance:
        for batch in tiles.batches(spec, available_cores()):
            found.append(engine.infer(batch))
            advance(len(batch))
    engine.close()
    return np.concatenate(found)


def speeds(graph: Path, tiles: Tiles, bf16: bool, repeats: int = 3) -> dict[str, float]:
    """Tiles/s in each CPU engine that takes the graph, median of `repeats` after one to warm up.

    The network alone, no reading of files; of this machine with whatever else it was doing. `bf16`:
    whether OpenVINO may use it.
    """
    found = {}
    factories: dict[str, EngineFactory] = {
        "openvino": partial(OpenVinoEngine, bf16=bf16),
        "onnxruntime": OnnxRuntimeEngine,
    }
    for name, factory in factories.items():
        try:
            engine = factory(graph, available_cores(), latency=True)
        except Exception:  # not installed, or too old for the graph: each has types of its own
            continue
        seconds = seconds_per_batch(engine, tiles, warm_up=1, repeats=repeats)
        engine.close()
        found[name] = round(len(tiles) / seconds, 1)
    return found
