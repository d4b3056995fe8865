"""Parts that compare ways to run a model: those of ONNX Runtime, with an early exit or whole."""

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial

import numpy as np

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import one_line
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores
from edgelung.engines import choose
from edgelung.engines.base import (
    Engine,
    EngineFactory,
    Graph,
    Output,
    Probabilities,
    Tiles,
    join_outputs,
)
from edgelung.engines.early_exit import ExitPlan, load_model
from edgelung.engines.exit_rule import ExitRule
from edgelung.engines.fastest import batch_of
from edgelung.engines.names import AUTO_GPU_ENGINES
from edgelung.engines.onnxruntime import CUDA, OnnxRuntimeEngine
from edgelung.engines.onnxruntime_cuda import fused_graph, onnxruntime_cuda
from edgelung.tools.gpu_check.engines import card_name, peak, same_label, scenarios
from edgelung.tools.gpu_check.timing import CannotRunError, Figures, percentiles, time_calls

GRAPHS = "EDGELUNG_CUDA_GRAPHS"
CONTINUE = (0.2, 0.3, 0.5)  # shares of the tiles
WHOLE = (Precision.INT8, Precision.INT8_FP16, Precision.FP16)  # beside the early exit


def onnxruntime_ways(graph: Graph, gflop: float, size: int) -> Figures:
    """Measure what bound memory, fused operators and CUDA graphs give ONNX Runtime, one by one."""
    load = partial(onnxruntime_cuda, graph, available_cores())
    ways: dict[str, tuple[Callable[[], Engine], str]] = {
        "a copy per run": (partial(OnnxRuntimeEngine, graph, 1, provider=CUDA), "0"),
        "bound memory": (partial(load, fused=False), "0"),
        "bound memory, fused": (load, "0"),
        "bound memory, graphs": (partial(load, fused=False), "1"),
        "bound memory, fused, graphs": (load, "1"),
    }
    result: Figures = {"fused": fused_graph(graph) is not None}
    tflops: float | None = None
    try:
        tflops, _ = peak(card_name())
    except CannotRunError as error:
        result["no_share_of_peak"] = str(error)
    tiles = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    expected = None
    for name, (open_engine, graphs) in ways.items():
        os.environ[GRAPHS] = graphs
        try:
            with closing(open_engine()) as engine:
                found = [engine.infer(tiles).probabilities for _ in range(3)][-1]  # replayed
                expected = found if expected is None else expected
                row = scenarios(engine, size, seconds=2.0)
        except Exception as error:  # runtimes raise their own exception types
            result[name] = {"cannot_run": one_line(error, 300)}
            continue
        finally:
            del os.environ[GRAPHS]
        row["largest_difference"] = float(np.abs(found - expected).max())
        if tflops:
            rate = row["offline_tiles_per_second"]
            row["share_of_fp16_peak"] = rate * gflop / 1e3 / tflops
        result[name] = row
    return result


def early_exit(bundle: Bundle, tiles: Tiles) -> Figures:
    """Compare each early exit with the one on the CPU, and its speed with that of whole models."""
    found = [precision for precision in bundle.variants if precision.about.early_exit]
    if not found:
        raise CannotRunError("the bundle has no variant with an early exit")
    result: Figures = {}
    for precision in found:
        try:
            result[precision] = _exit_of(bundle, precision, tiles)
        except Exception as error:  # runtimes raise their own exception types
            result[precision] = {"cannot_run": one_line(error, 300)}
    return result


def _exit_of(bundle: Bundle, precision: Precision, tiles: Tiles) -> Figures:
    """The figures of one variant with an early exit."""
    variant = bundle.variants[precision]
    with closing(choose.load_variant(OnnxRuntimeEngine, variant, available_cores())) as engine:
        expected = _predict(engine, tiles)
    assert expected.stage is not None
    result: Figures = {"tiles": len(tiles), "leave": float((expected.stage == 1).mean())}
    for name in AUTO_GPU_ENGINES:
        row: Figures = {}
        for kind in (precision, *WHOLE):
            if kind not in bundle.variants:
                continue
            try:
                engine = choose.load_variant(choose.ENGINES[name], bundle.variants[kind], 1)
                with closing(engine):
                    row[f"{kind}, tiles per second"] = _tiles_per_second(engine, tiles)
                    if kind is precision:
                        row["one tile, ms"] = percentiles(
                            time_calls(partial(engine.infer, tiles[:1]), 300)
                        )
                        row |= _compare(_predict(engine, tiles), expected)
            except Exception as error:  # runtimes raise their own exception types
                row[f"{kind} cannot_run"] = one_line(error, 300)
        result[name] = row
    return result


def exit_speed(first: Graph, second: Graph, whole: Graph, size: int) -> Figures:
    """Measure how much faster a model with an early exit is if some tiles leave, per engine.

    The weights may be random: the threshold is set so that the wanted share of the tiles leaves.
    """
    tiles = np.random.default_rng(0).integers(0, 256, (128, size, size, 3), np.uint8)
    result: Figures = {}
    for name in AUTO_GPU_ENGINES:
        try:
            factory, row = choose.ENGINES[name], Figures()
            with closing(factory(whole, 1)) as engine:
                alone = _tiles_per_second(engine, tiles)
            row["whole model, tiles per second"] = alone
            confidences = _confidences(factory, first, second, tiles)
            for share in CONTINUE:
                rule = ExitRule(float(np.quantile(confidences, share)), known_up_to=np.inf)
                with closing(load_model(factory, first, ExitPlan(rule, second), 1)) as engine:
                    stages = engine.infer(tiles).stage
                    assert stages is not None
                    rate = _tiles_per_second(engine, tiles)
                row[f"{share:.0%} continue"] = {
                    "continued": float((stages == 2).mean()),
                    "tiles_per_second": rate,
                    "times_the_whole_model": rate / alone,
                }
            result[name] = row
        except Exception as error:  # runtimes raise their own exception types
            result[name] = {"cannot_run": one_line(error, 300)}
    return result


def _confidences(
    factory: EngineFactory, first: Graph, second: Graph, tiles: Tiles
) -> Probabilities:
    """The largest probability of each tile at the exit, where all tiles leave."""
    plan = ExitPlan(ExitRule(confidence=0.0, known_up_to=np.inf), second)
    with closing(load_model(factory, first, plan, 1)) as engine:
        largest: Probabilities = engine.infer(tiles).probabilities.max(axis=1)
    return largest


def _compare(found: Output, expected: Output) -> Figures:
    assert found.stage is not None
    assert expected.stage is not None
    difference = np.abs(found.probabilities - expected.probabilities)
    same = found.stage == expected.stage
    return {
        "same_stage_as_on_cpu": float(same.mean()),
        "largest_difference_at_the_same_stage": float(difference[same].max(initial=0.0)),
        "agreement_with_cpu": same_label(found.probabilities, expected.probabilities),
    }


def _tiles_per_second(engine: Engine, tiles: Tiles) -> float:
    """Of batches of 128 real tiles, since their share that leaves decides."""
    batch = batch_of(tiles, 128)
    return len(batch) / float(np.median(time_calls(partial(engine.infer, batch), 20)))


def _predict(engine: Engine, tiles: Tiles) -> Output:
    return join_outputs([engine.infer(tiles[i : i + 32]) for i in range(0, len(tiles), 32)])
