"""Candidates: graphs that may become variants of the bundle, as bytes, before they are judged."""

from dataclasses import dataclass

import onnx

from edgelung.artifacts.manifest import Calibration, EarlyExit
from edgelung.core.precision import Precision
from edgelung.engines.base import GraphBytes
from edgelung.engines.early_exit import ExitPlan, early_exit_of
from edgelung.export.graph import build_graph, linear_names, quantized_products
from edgelung.export.plan import Plan
from edgelung.export.student import Student


@dataclass(frozen=True)
class SecondStage:
    """The graph behind an early exit, and its record for the bundle."""

    graph: bytes
    entry: EarlyExit


@dataclass(frozen=True)
class Candidate:
    """One graph at one precision.

    Attributes:
        precision: its variant in the bundle.
        graph: the ONNX file.
        quantized_products: products with 8-bit weights in it.
        peak: largest |activation| of full precision; None if the base is FP32, which holds it.
        calibration: of an 8-bit candidate.
        kept_in_float: parts that stay in the base type because INT8 failed with them.
        second: what follows an early exit; None for a model of one graph.
    """

    precision: Precision
    graph: bytes
    quantized_products: int
    peak: float | None = None
    calibration: Calibration | None = None
    kept_in_float: tuple[str, ...] = ()
    second: SecondStage | None = None

    @property
    def early_exit(self) -> ExitPlan | None:
        """What follows the graph; None if nothing does."""
        if self.second is None:
            return None
        return early_exit_of(self.second.entry, GraphBytes(self.second.graph))


def float_candidate(
    student: Student, temperature: float, precision: Precision, peak: float | None = None
) -> Candidate:
    """Full precision, or typed FP16 with the peak of its activations."""
    graph = build_graph(student, temperature=temperature, precision=precision)
    return _candidate(precision, graph, peak=peak)


def quantized_candidate(
    plan: Plan, temperature: float, precision: Precision, kept_in_float: tuple[str, ...] = ()
) -> Candidate:
    """An 8-bit graph of the plan. On an FP16 base only linears can be named `kept_in_float`: the
    scores of attention are in FP16 anyway."""
    base_is_fp16 = precision.about.base is Precision.FP16
    if base_is_fp16:
        linears = set(linear_names(plan.student))
        kept_in_float = tuple(name for name in kept_in_float if name in linears)
    graph = plan.graph(precision, temperature, frozenset(kept_in_float))
    return _candidate(
        precision,
        graph,
        peak=plan.peak if base_is_fp16 else None,
        calibration=plan.calibration,
        kept_in_float=kept_in_float,
    )


def _candidate(
    precision: Precision,
    graph: onnx.ModelProto,
    *,
    peak: float | None,
    calibration: Calibration | None = None,
    kept_in_float: tuple[str, ...] = (),
) -> Candidate:
    return Candidate(
        precision=precision,
        graph=graph.SerializeToString(),
        quantized_products=quantized_products(graph),
        peak=peak,
        calibration=calibration,
        kept_in_float=kept_in_float,
    )
