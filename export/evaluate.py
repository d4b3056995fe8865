"""Judge a candidate against full precision on tiles that calibrated neither.

The gate decides on validation tiles; the test tiles only report. Nothing here writes a file or
changes a value: a candidate goes in, an evaluation comes out.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from msgspec import structs

from edgelung.artifacts.bundle import graph_name
from edgelung.artifacts.manifest import EarlyExit, KnownVariant, VariantEntry
from edgelung.artifacts.results import (
    GateResult,
    Limits,
    LostGroups,
    OpenVinoCheck,
    Share,
    VariantTest,
)
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.engines.base import GraphBytes, Output, Probabilities, join_outputs
from edgelung.engines.early_exit import load_model
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation.early_exit import lost_groups
from edgelung.evaluation.gate import LIMITS, gate
from edgelung.evaluation.intervals import intervals
from edgelung.evaluation.metrics import agreement, evaluate
from edgelung.evaluation.shares import share_of
from edgelung.export.candidates import Candidate
from edgelung.export.inputs import ExportInputs
from edgelung.export.known import known_variant, set_rules
from edgelung.export.predict import predict, predict_with, tiles_per_second
from edgelung.export.tiles import TileReader, TileSet

# From this activation on, FP16 (largest value 65,504) is too close to overflow to trust.
FP16_PEAK_LIMIT = 32_000.0
LEAST_CORRELATION = 0.98  # Spearman's, of the scores with those of full precision
LEAST_SAME_VERDICT = 0.99  # share of the gate tiles, known or unknown; one tile more may differ
RUN_BY_OPENVINO = (Precision.INT8, Precision.INT8_EARLY_EXIT)
SPEED_TILES = 16  # the batch size of `infer` on a CPU


@dataclass(frozen=True)
class GateSet:
    """The tiles that judge, with what full precision predicts for them.

    Attributes:
        tiles: N tiles.
        reference: float32 (N, classes), the probabilities of full precision.
        classes: their names.
        limits: how much a candidate may lose.
    """

    tiles: TileSet
    reference: Probabilities
    classes: Sequence[str]
    limits: Limits = LIMITS

    def judge(self, probabilities: Probabilities, looks: int = 1) -> GateResult:
        """Compare probabilities (N, classes) with the reference.

        `looks` counts the forms of a candidate that these tiles judged, this one included.
        """
        return gate(
            probabilities,
            self.reference,
            self.tiles.labels,
            self.tiles.groups,
            limits=self.limits,
            looks=looks,
            classes=self.classes,
        )

    def can_pass(self) -> bool:
        """True if there are enough tiles for full precision itself to pass."""
        return self.judge(self.reference).verdict == "pass"


@dataclass(frozen=True)
class Evaluation:
    """A candidate, its output for the gate tiles, and the verdict.

    `in_openvino`: its output there; None where it did not run there.
    """

    candidate: Candidate
    output: Output
    gate: GateResult
    in_openvino: Output | None = None

    @property
    def passed(self) -> bool:
        """True if the gate let the candidate through."""
        return self.gate.verdict == "pass"


def evaluate_reference(candidate: Candidate, tiles: TileSet, reader: TileReader) -> Evaluation:
    """Evaluate full precision, the reference of the gate.

    The gate cannot judge it. `evaluation.concerns` does, from its figures on the test tiles.
    """
    output = predict(candidate.graph, tiles, reader, f"{candidate.precision}, gate")
    metrics = evaluate(output.probabilities, tiles.labels)
    result = GateResult(
        verdict="reference",
        reasons=[],
        tiles=metrics.tiles,
        balanced_accuracy=metrics.balanced_accuracy,
        recall=metrics.recall,
        expected_calibration_error=metrics.expected_calibration_error,
    )
    return Evaluation(candidate, output, result)


def evaluate_candidate(
    candidate: Candidate, gate_set: GateSet, reader: TileReader, looks: int = 1
) -> Evaluation:
    """Predict the gate tiles with a candidate and judge it.

    INT8 for CPUs must pass in OpenVINO too, which runs it where there is no GPU. On an FP16 base
    the activations must stay within FP16's range.
    """
    output = predict_candidate(candidate, gate_set.tiles, reader, "gate")
    result = gate_set.judge(output.probabilities, looks)
    if candidate.second is not None:
        result = check_groups(result, output.probabilities, gate_set)
    in_openvino = None
    if candidate.precision in RUN_BY_OPENVINO and result.verdict == "pass":
        result, in_openvino = check_in_openvino(
            result, candidate, output.probabilities, gate_set, reader
        )
    elif candidate.second is not None:  # a second runtime shows which tiles are at the edge
        in_openvino, _ = predict_in_openvino(candidate, gate_set, reader)
    if candidate.peak is not None:
        result = check_fp16_range(result, candidate.peak)
    return Evaluation(candidate, output, result, in_openvino)


def predict_in_openvino(
    candidate: Candidate, gate_set: GateSet, reader: TileReader, *, bf16: bool = False
) -> tuple[Output | None, str]:
    """What OpenVINO predicts for the gate tiles, and in which float type; None if it cannot."""
    load = partial(OpenVinoEngine, bf16=bf16)
    graph, title = GraphBytes(candidate.graph), f"{candidate.precision}, gate, openvino"
    try:
        engine = load_model(load, graph, candidate.early_exit, available_cores(), latency=True)
    except Exception:  # not installed or not able to load the graph; OpenVINO's own types
        return None, ""
    with closing(engine):
        return predict_with(engine, gate_set.tiles, reader, title), engine.float_type


def predict_candidate(
    candidate: Candidate, tiles: TileSet, reader: TileReader, what: str
) -> Output:
    """Predict the tiles in the runtime that judges; `what` names the set."""
    title = f"{candidate.precision}, {what}"
    return predict(candidate.graph, tiles, reader, title, candidate.early_exit)


def check_groups(result: GateResult, probabilities: Probabilities, gate_set: GateSet) -> GateResult:
    """Fail a result with an early exit if a gate group changes more than a tenth of its labels."""
    changed = probabilities.argmax(axis=1) != gate_set.reference.argmax(axis=1)
    found = lost_groups(changed, gate_set.tiles.groups)
    if not found.lost:
        return result
    reason = (
        f"{found.lost} of {found.groups} groups change more than a tenth of their labels, one "
        f"{100 * found.largest_loss:.0f} % of them; allowed none"
    )
    return structs.replace(result, verdict="fail", reasons=[*result.reasons, reason])


def check_in_openvino(
    result: GateResult,
    candidate: Candidate,
    probabilities: Probabilities,
    gate_set: GateSet,
    reader: TileReader,
) -> tuple[GateResult, Output | None]:
    """Judge what OpenVINO computes from an INT8 candidate that passed in ONNX Runtime.

    First with BF16 beside INT8, if this CPU has BF16; in FP32 if that does not pass or the CPU has
    no BF16. `infer` uses what passed here. A graph that passes in neither does not pass. Without
    OpenVINO, or if it does not load the graph, `infer` does not use it either: the result stays.

    Args:
        result: the verdict in ONNX Runtime.
        candidate: its graphs.
        probabilities: those of ONNX Runtime.
        gate_set: the tiles that judge.
        reader: reads them.

    Returns:
        The result, and what OpenVINO predicts; None if it does not run here.
    """
    for bf16 in (True, False):
        output, float_type = predict_in_openvino(candidate, gate_set, reader, bf16=bf16)
        if output is None:
            return result, None
        ours = output.probabilities
        judged = gate_set.judge(ours, result.looks)
        if candidate.second is not None:
            judged = check_groups(judged, ours, gate_set)
        same = agreement(ours, probabilities)
        check = OpenVinoCheck(
            verdict=judged.verdict,
            floating_point=float_type,
            same_label_as_onnxruntime=same.agreement,
            largest_probability_difference=same.max_probability_difference,
        )
        if judged.verdict == "pass" or float_type == "fp32":
            break
    if judged.verdict == "pass":
        return structs.replace(result, openvino=check), output
    reasons = [*result.reasons, *(f"in OpenVINO: {reason}" for reason in judged.reasons)]
    result = structs.replace(result, openvino=check, verdict=judged.verdict, reasons=reasons)
    return result, output


def check_fp16_range(result: GateResult, peak: float) -> GateResult:
    """Fail a result on an FP16 base if an activation comes near FP16's largest value.

    CPU runtimes compute FP16 graphs in FP32, so the gate's probabilities show the rounding but not
    an overflow. The largest activation of full precision on the tiles does.
    """
    result = structs.replace(result, largest_activation=peak)
    if peak <= FP16_PEAK_LIMIT:
        return result
    reason = f"an activation of {peak:.0f} is too near FP16's limit of 65504"
    return structs.replace(result, verdict="fail", reasons=[*result.reasons, reason])


def check_scores(result: GateResult, known: KnownVariant | None) -> GateResult:
    """Fail a result if the variant tells unknown tissue otherwise than full precision does."""
    if known is None:
        return result
    reasons = []
    if known.rank_correlation is not None and known.rank_correlation < LEAST_CORRELATION:
        reasons.append(
            f"its scores rank the tiles otherwise: correlation {known.rank_correlation:.3f} with "
            f"full precision, at least {LEAST_CORRELATION:g}"
        )
    same = 1.0 if known.same_verdict is None else known.same_verdict
    differing = round((1 - same) * result.tiles)
    allowed = 1 + int((1 - LEAST_SAME_VERDICT) * result.tiles)
    if differing > allowed:
        reasons.append(
            f"{differing} tiles are unknown to it or to full precision alone, allowed {allowed}"
        )
    if not reasons:
        return result
    return structs.replace(result, verdict="fail", reasons=[*result.reasons, *reasons])


@dataclass(frozen=True)
class MeasuredVariant:
    """A variant of the bundle: its evaluation, its entry in the manifest, and its output by set.

    `outputs`: of 'validation', 'gate' and 'test' (without 'test' if there are no test tiles, or a
    probability is not finite).
    """

    evaluation: Evaluation
    entry: VariantEntry
    outputs: dict[str, Output]

    @property
    def probabilities(self) -> dict[str, Probabilities]:
        """Probabilities float32 (N, classes) of the sets that judge."""
        return {
            name: output.probabilities
            for name, output in self.outputs.items()
            if name != "validation"
        }

    @property
    def precision(self) -> Precision:
        """The variant's precision."""
        return self.evaluation.candidate.precision


def measure_variant(
    evaluation: Evaluation,
    inputs: ExportInputs,
    reference: MeasuredVariant | None = None,
    threshold: float | None = None,
) -> MeasuredVariant:
    """Measure an evaluated candidate: on the test tiles, its limits, its speed on this machine.

    Without test figures if a probability is not finite, be it of the candidate or the reference.

    Args:
        evaluation: the candidate, judged by the gate.
        inputs: the tiles.
        reference: full precision, measured; None for full precision itself.
        threshold: of the scores; None: the validation tiles give it.
    """
    candidate, result = evaluation.candidate, evaluation.gate
    precision, reader, test = candidate.precision, inputs.reader, inputs.test
    bf16 = result.openvino is not None and result.openvino.floating_point == "bf16"
    outputs = {"gate": evaluation.output, "validation": evaluation.output}
    if inputs.calibrates:  # else all validation tiles are gate tiles
        others = predict_candidate(candidate, inputs.calibration, reader, "calibration")
        outputs["validation"] = join_outputs([others, evaluation.output])
    report = None
    some = reader.read(inputs.gate.every(SPEED_TILES))
    speeds = tiles_per_second(candidate.graph, some, bf16, early_exit=candidate.early_exit)
    if len(test) and (reference is None or "test" in reference.outputs):
        on_test = predict_candidate(candidate, test, reader, "test")
        if np.isfinite(on_test.probabilities).all():
            outputs["test"] = on_test
            theirs = on_test if reference is None else reference.outputs["test"]
            report = _test_report(on_test.probabilities, theirs.probabilities, test)
    sets = inputs.known_sets
    known = known_variant(
        outputs, sets, inputs.known, reference.outputs if reference else None, threshold
    )
    result = check_scores(result, known)
    quantized = candidate.calibration is not None
    entry = VariantEntry(
        file=graph_name(precision),
        bytes=len(candidate.graph),
        base=precision.about.base,
        meant_for=precision.about.meant_for,
        quantized_linears=candidate.quantized_products,
        judged_by="onnxruntime CPU",
        tiles_per_second=speeds,
        gate=result,
        kept_in_float=list(candidate.kept_in_float) if quantized else None,
        calibration=candidate.calibration,
        test=report,
        known=known,
        sets=set_rules(outputs, sets),
        early_exit=_early_exit_entry(candidate, outputs, reference, inputs),
    )
    return MeasuredVariant(evaluation, entry, outputs)


def _early_exit_entry(
    candidate: Candidate,
    outputs: dict[str, Output],
    reference: MeasuredVariant | None,
    inputs: ExportInputs,
) -> EarlyExit | None:
    """The record of the early exit with what the gate and the test tiles say about it."""
    if candidate.second is None or reference is None:
        return None
    left: dict[str, Share] = {}
    groups: dict[str, LostGroups] = {}
    for name, tiles in inputs.judging_sets.items():
        if name not in outputs or (stage := outputs[name].stage) is None:
            continue
        ours, theirs = (o[name].probabilities.argmax(axis=1) for o in (outputs, reference.outputs))
        left[name] = share_of(stage == 1, tiles.groups)
        groups[name] = lost_groups(ours != theirs, tiles.groups)
    return structs.replace(candidate.second.entry, left=left, groups=groups)


def _test_report(
    probabilities: Probabilities, reference: Probabilities, test: TileSet
) -> VariantTest:
    predicted = probabilities.argmax(axis=1)
    return VariantTest(
        **structs.asdict(evaluate(probabilities, test.labels)),
        intervals=intervals(predicted, test.labels, test.groups, probabilities.shape[1]),
        agreement_with_fp32=float((predicted == reference.argmax(axis=1)).mean()),
    )


def describe_proofs(variants: Sequence[MeasuredVariant], validation: int) -> str:
    """What was judged on how many tiles, in one line."""
    gate_tiles = next(v.entry.gate.tiles for v in variants if v.precision is FULL_PRECISION)
    tested = [v.entry.test.tiles for v in variants if v.entry.test]
    names = ", ".join(v.precision for v in variants)
    proofs = [
        f"the graph against the trained model on {validation} validation tiles",
        f"{names} against full precision on {gate_tiles} gate tiles",
    ]
    looks = sum(v.entry.gate.looks - 1 for v in variants if v.precision is Precision.INT8)
    if looks:
        proofs.append(f"{looks} further int8 candidates on the same gate tiles")
    if in_openvino := ", ".join(v.precision for v in variants if v.entry.gate.openvino):
        proofs.append(f"{in_openvino} in OpenVINO on the gate tiles")
    if tested:
        proofs.append(f"all {len(tested)} variants on {tested[0]} test tiles")
    return "; ".join(proofs)
