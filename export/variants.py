"""Make the variants of a bundle: candidates, their evaluation, the choice, the measurement."""

import logging
from dataclasses import dataclass

from edgelung.artifacts.manifest import Sensitivity
from edgelung.artifacts.results import Limits
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.evaluation.gate import MORE_GROUPS
from edgelung.export.calibrate import collect_tile_stats
from edgelung.export.candidates import Candidate, float_candidate, quantized_candidate
from edgelung.export.early_exit import ExitBase, early_exit_candidate, int8_base
from edgelung.export.evaluate import (
    Evaluation,
    GateSet,
    MeasuredVariant,
    evaluate_candidate,
    evaluate_reference,
    measure_variant,
)
from edgelung.export.inputs import ExportInputs
from edgelung.export.plan import Plan
from edgelung.export.select import Int8Search, Refine
from edgelung.export.sensitivity import TILES, measurements, sensitivity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VariantMaker:
    """Makes variants that are judged against one full-precision variant.

    Attributes:
        inputs: what the export reads.
        temperature: of every graph.
        full_precision: the reference, measured.
        gate_set: the tiles that judge.
    """

    inputs: ExportInputs
    temperature: float
    full_precision: MeasuredVariant
    gate_set: GateSet

    def fp16(self, plan: Plan | None, *, early_exit: bool = False) -> list[MeasuredVariant]:
        """Typed FP16, and the same with an early exit if that is asked for and safe.

        Its peak is that of the plan, or is measured if there is none.
        """
        if plan:
            peak = plan.unmigrated_peak
        else:
            inputs = self.inputs
            stats = collect_tile_stats(
                inputs.student, inputs.validation, inputs.reader, "activations"
            )
            peak = stats.peak
        student = self.inputs.student
        fp16 = self._judged(float_candidate(student, self.temperature, Precision.FP16, peak))
        made = None
        if early_exit:
            made = self._early_exit(ExitBase(Precision.FP16_EARLY_EXIT, student, peak=peak), fp16)
        return [fp16, made] if made else [fp16]

    def int8(
        self, plan: Plan, refine: Refine | None = None, *, early_exit: bool = False
    ) -> tuple[list[MeasuredVariant], Sensitivity]:
        """INT8 on an FP32 base and on an FP16 base, and the sensitivity of its parts.

        All are written from the same plan, with the same linears in floating point. With
        `early_exit` there is a third one, if INT8 passed and the groups show that it is safe.
        """
        ranking = rank_parts(plan, self.inputs)
        search = Int8Search(
            temperature=self.temperature,
            gate_set=self.gate_set,
            calibration=self.inputs.calibration,
            full_precision=self.full_precision.evaluation.candidate,
            ranking=ranking,
            reader=self.inputs.reader,
        )
        choice = search.choose(plan, refine)
        on_fp32 = self._measured(choice.evaluation)
        if not choice.evaluation.passed:
            logger.info("INT8 did not pass; `infer` uses the best variant that did")
        kept = choice.evaluation.candidate.kept_in_float
        candidate = quantized_candidate(choice.plan, self.temperature, Precision.INT8_FP16, kept)
        variants = [on_fp32, self._judged(candidate, choice.evaluation.gate.looks)]
        if early_exit and (made := self._early_exit(int8_base(choice.plan, kept), on_fp32)):
            variants.append(made)
        return variants, ranking

    def _early_exit(self, base: ExitBase, whole: MeasuredVariant) -> MeasuredVariant | None:
        """`whole` with an early exit, the rest like it; None if it would not be safe."""
        known, name = whole.entry.known, base.precision
        if not whole.evaluation.passed or known is None:
            logger.info(
                "no %s: %s did not pass its gate, and it is made from that", name, whole.precision
            )
            return None
        reference = self.full_precision.outputs["validation"].probabilities
        candidate = early_exit_candidate(
            base,
            self.inputs,
            self.temperature,
            reference[: len(self.inputs.calibration)],  # they come first
            known.threshold,
        )
        if candidate is None:
            logger.info(
                "no %s: too few groups to show that it would change few labels; %s",
                *(name, MORE_GROUPS),
            )
            return None
        evaluation = evaluate_candidate(candidate, self.gate_set, self.inputs.reader)
        return self._measured(evaluation, known.threshold)

    def fp8(self, plan: Plan) -> MeasuredVariant:
        """FP8 (E4M3) on an FP16 base, for GPUs that have it (SM 8.9 and later)."""
        return self._judged(quantized_candidate(plan, self.temperature, Precision.FP8))

    def _judged(self, candidate: Candidate, looks: int = 1) -> MeasuredVariant:
        evaluation = evaluate_candidate(candidate, self.gate_set, self.inputs.reader, looks)
        return self._measured(evaluation)

    def _measured(self, evaluation: Evaluation, threshold: float | None = None) -> MeasuredVariant:
        gate = evaluation.gate
        text = f"{gate.verdict}: {'; '.join(gate.reasons)}" if gate.reasons else gate.verdict
        logger.info("%s gate: %s", evaluation.candidate.precision, text)
        return measure_variant(evaluation, self.inputs, self.full_precision, threshold)


def prepare_variants(inputs: ExportInputs, temperature: float, limits: Limits) -> VariantMaker:
    """Measure full precision, which judges all others."""
    candidate = float_candidate(inputs.student, temperature, FULL_PRECISION)
    evaluation = evaluate_reference(candidate, inputs.gate, inputs.reader)
    measured = measure_variant(evaluation, inputs)
    gate_set = GateSet(inputs.gate, evaluation.output.probabilities, inputs.student.classes, limits)
    return VariantMaker(inputs, temperature, measured, gate_set)


def rank_parts(plan: Plan, inputs: ExportInputs) -> Sensitivity:
    """Measure the sensitivity of every part of the plan on a few calibration tiles."""
    tiles = inputs.reader.read(inputs.calibration.every(TILES))
    with progress("sensitivity", measurements(plan)) as advance:
        return sensitivity(plan, tiles, available_cores(), advance)
