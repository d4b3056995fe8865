"""Choose the form of INT8 that goes into the bundle: as calibrated, trained, or partly in float."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from edgelung.artifacts.manifest import Sensitivity
from edgelung.core.precision import Precision
from edgelung.export.candidates import Candidate, quantized_candidate
from edgelung.export.evaluate import Evaluation, GateSet, evaluate_candidate
from edgelung.export.plan import Plan
from edgelung.export.predict import predict
from edgelung.export.tiles import TileReader, TileSet

Refine = Callable[[Plan], Plan]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Int8Choice:
    """The evaluation of the INT8 graph on an FP32 base, and the plan that it was written from."""

    evaluation: Evaluation
    plan: Plan


@dataclass(frozen=True)
class Int8Search:
    """What the search for an INT8 graph that passes works with.

    Attributes:
        temperature: of the graphs.
        gate_set: the tiles that judge; every look at them is counted and costs confidence.
        calibration: tiles that estimate a form before it is judged.
        full_precision: the candidate at full precision.
        ranking: which parts suffer most from INT8.
        reader: reads the tiles.
    """

    temperature: float
    gate_set: GateSet
    calibration: TileSet
    full_precision: Candidate
    ranking: Sensitivity
    reader: TileReader

    def choose(self, plan: Plan, refine: Refine | None = None) -> Int8Choice:
        """Choose the first form of INT8 that passes, or the plan as it is if none does.

        The forms are: the plan; the plan trained by `refine`; the plan with its most sensitive
        parts in floating point, as few as are needed.
        """
        first = self._evaluate(plan, looks=1)
        if first.passed:
            return Int8Choice(first, plan)
        if not self.gate_set.can_pass():
            if refine:
                logger.info("INT8 is not trained: with so few gate tiles no graph could pass")
            return Int8Choice(first, plan)
        looks = 1
        if refine:
            logger.info("int8 gate: %s; training it", first.gate.verdict)
            trained, looks = refine(plan), 2
            second = self._evaluate(trained, looks)
            logger.info("int8 after training: %s", second.gate.verdict)
            if second.passed:
                return Int8Choice(second, trained)
        mixed = self._keep_parts_in_float(plan, looks)
        return Int8Choice(mixed or first, plan)

    def _evaluate(self, plan: Plan, looks: int, kept: tuple[str, ...] = ()) -> Evaluation:
        candidate = quantized_candidate(plan, self.temperature, Precision.INT8, kept)
        return evaluate_candidate(candidate, self.gate_set, self.reader, looks)

    def _keep_parts_in_float(self, plan: Plan, looks: int) -> Evaluation | None:
        """Keep the fewest parts in floating point, most sensitive first, with which INT8 passes.

        How many are needed is estimated on the calibration tiles, so that the gate tiles are looked
        at only a few times. Returns None if more than half of the parts would be needed.
        """
        names = [part.name for part in self.ranking.linears]
        limit = len(names) // 2
        estimate = self._calibration_set()

        def seems_enough(count: int) -> bool:
            kept = tuple(names[:count])
            graph = quantized_candidate(plan, self.temperature, Precision.INT8, kept).graph
            title = f"without {count} parts"
            probabilities = predict(graph, self.calibration, self.reader, title).probabilities
            checks = (estimate.judge(probabilities).checks or {}).values()
            return bool(checks) and all(check.loss <= check.limit for check in checks)

        count = max(1, smallest_count(seems_enough, limit))
        while True:
            looks += 1
            evaluation = self._evaluate(plan, looks, tuple(names[:count]))
            logger.info(
                "int8 with %d of %d parts in floating point: %s",
                *(count, len(names), evaluation.gate.verdict),
            )
            if evaluation.passed:
                return evaluation
            if count >= limit:
                return None
            count = min(2 * count, limit)

    def _calibration_set(self) -> GateSet:
        """The calibration tiles with the reference probabilities of full precision."""
        tiles = self.calibration
        reference = predict(self.full_precision.graph, tiles, self.reader, "full precision")
        return GateSet(tiles, reference.probabilities, self.gate_set.classes, self.gate_set.limits)


def smallest_count(is_enough: Callable[[int], bool], limit: int) -> int:
    """The smallest count in 0…limit that is enough, by doubling and bisection.

    Assumes that more is never worse. Returns `limit` if no count is enough.
    """
    if is_enough(0):
        return 0
    low, high = 0, 1
    while high < limit and not is_enough(high):
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
