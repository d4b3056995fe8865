"""The output of a graph for a tile set, in the runtime that judges, on all cores."""

from contextlib import closing
from functools import partial

from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import (
    Engine,
    EngineFactory,
    GraphBytes,
    Output,
    Tiles,
    join_outputs,
)
from edgelung.engines.early_exit import ExitPlan, load_model
from edgelung.engines.fastest import seconds_per_batch
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.export.parallel import map_in_order
from edgelung.export.tiles import TileReader, TileSet


def predict(
    graph: bytes,
    tiles: TileSet,
    reader: TileReader,
    title: str,
    early_exit: ExitPlan | None = None,
) -> Output:
    """Predict the tiles in ONNX Runtime on the CPU, one batch per core at a time.

    The result depends neither on the number of cores nor on the batch: each batch is computed by
    one thread. `early_exit`: what follows the graph.
    """
    engine = load_model(OnnxRuntimeEngine, GraphBytes(graph), early_exit, available_cores())
    with closing(engine):
        return predict_with(engine, tiles, reader, title)


def predict_with(engine: Engine, tiles: TileSet, reader: TileReader, title: str) -> Output:
    """Predict the tiles in a loaded engine. `title` names the bar."""
    results = []
    with progress(title, len(tiles)) as advance:
        for rows in map_in_order(engine.infer, reader.batches(tiles), engine.concurrency):
            results.append(rows)
            advance(len(rows))
    return join_outputs(results)


def tiles_per_second(
    graph: bytes,
    tiles: Tiles,
    bf16: bool,
    repeats: int = 3,
    early_exit: ExitPlan | None = None,
) -> dict[str, float]:
    """Measure each CPU engine that loads the graph, with all cores on one batch.

    The median of `repeats` batches after one to warm up: of the network alone, without reading
    files, and with whatever else this machine is doing. `bf16`: OpenVINO may use BF16.
    """
    loaders: dict[str, EngineFactory] = {
        "openvino": partial(OpenVinoEngine, bf16=bf16),
        "onnxruntime": OnnxRuntimeEngine,
    }
    speeds = {}
    for name, load in loaders.items():
        try:
            engine = load_model(
                load, GraphBytes(graph), early_exit, available_cores(), latency=True
            )
        except Exception:  # not installed or too old for the graph; runtimes raise their own types
            continue
        with closing(engine):
            seconds = seconds_per_batch(engine, tiles, warm_up=1, repeats=repeats)
        speeds[name] = round(len(tiles) / seconds, 1)
    return speeds
