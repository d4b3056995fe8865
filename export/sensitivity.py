"""Which parts the output suffers from in INT8: each linear (and the scores of each attention)
alone, and all but it; blocks likewise."""

from collections.abc import Callable
from typing import Any

import numpy as np

from edgelung.engines.base import Tiles
from edgelung.export.graph import build_graph
from edgelung.export.predict import Probabilities
from edgelung.export.quantize import Plan

TILES = 16  # the change is a mean over a smooth measure: a few tiles rank it


def sensitivity(
    plan: Plan, tiles: Tiles, threads: int, on_step: Callable[[int], None] = lambda n: None
) -> dict[str, Any]:
    """How much the output changes by quantizing parts of the graph, most harmful first.

    The change is the Kullback-Leibler divergence of the probabilities from full precision's, in
    nats, mean over the tiles. For every linear, the scores of every attention (among `linears`) and
    every block: `alone` with only it in INT8, `all_but` with everything else in INT8; `all` with
    everything. One graph measures it all: its parts are switched by an input. Biases are those
    before any correction.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # No rewriting: optimizers fuse Q/DQ with what they must not reach across the switches.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    graph = build_graph(plan.student, input_scales=plan.scales, switches=True)
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = list(plan.scales)
    blocks = {name: _block(name) for name in names}

    def run(quantized: np.ndarray[Any, np.dtype[np.bool_]]) -> Probabilities:
        on_step(1)
        found = session.run(["probs"], {"tiles": tiles, "quantized": quantized})[0]
        return np.asarray(found, np.float32)

    reference = run(np.zeros(len(names), bool))

    def change(members: set[str]) -> float:
        return divergence(run(np.array([name in members for name in names])), reference)

    everything = set(names)
    parts: list[dict[str, Any]] = [{"name": name, "linears": [name]} for name in names]
    parts += [
        {"name": block, "linears": [n for n in names if blocks[n] == block]}
        for block in dict.fromkeys(blocks.values())
        if block != "patch_embed"
    ]
    for part in parts:
        members = set(part["linears"])
        part |= {"alone": change(members), "all_but": change(everything - members)}
    parts.sort(key=lambda part: -part["alone"])
    return {
        "all": change(everything),
        "linears": [part for part in parts if part["name"] in everything],
        "blocks": [part for part in parts if part["name"] not in everything],
        "tiles": len(tiles),
    }


def runs(plan: Plan) -> int:
    """How often `sensitivity` runs the graph, for a progress bar."""
    blocks = {_block(name) for name in plan.scales} - {"patch_embed"}
    return 2 + 2 * (len(plan.scales) + len(blocks))


def divergence(found: Probabilities, reference: Probabilities) -> float:
    """Mean Kullback-Leibler divergence in nats of probabilities (N, classes) from a reference."""
    p, q = (np.maximum(rows.astype(np.float64), 1e-12) for rows in (reference, found))
    return float((p * np.log(p / q)).sum(axis=1).mean())


def _block(name: str) -> str:
    return name.split(".attn")[0].split(".mlp")[0].removesuffix(".proj")
