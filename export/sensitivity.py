"""Measure which parts of the graph the output suffers from in INT8.

Every part (a linear, the scores of an attention, a block) is measured alone in INT8, and in full
precision with everything else in INT8. The graph is run in stages, one per block: what comes before
the part's stage is the same for all parts of the stage, and is computed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.manifest import PartSensitivity, Sensitivity
from edgelung.engines.base import Probabilities, Tiles
from edgelung.export.graph_stages import build_switched_stages, stage_parts
from edgelung.export.parallel import map_in_order
from edgelung.export.plan import Plan

TILES = 16  # the divergence is a mean of a smooth measure: a few tiles rank the parts

# What a stage takes: tiles (N, H, W, 3) the first, tokens (N, T, D) the others.
StageInput = npt.NDArray[np.uint8] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Measurement:
    """One question: the divergence with the parts `quantized` of a stage in INT8, and all other
    stages in INT8 (`others`) or in full precision."""

    stage: int
    quantized: frozenset[str]
    others: bool


def sensitivity(
    plan: Plan, tiles: Tiles, threads: int, on_step: Callable[[int], None] = lambda n: None
) -> Sensitivity:
    """Measure how much the output changes by quantizing parts of the graph.

    The change is the Kullback-Leibler divergence of the probabilities from those of full precision,
    in nats, mean over `tiles` uint8 (N, H, W, 3). Biases are those before any correction. On
    `threads` threads; `on_step` is called after every measurement.
    """
    stages = _Stages(plan)
    # The inputs of every stage with all stages before it in full precision, and in INT8.
    exact, reference = stages.run(tiles, quantized=False)
    rounded, all_rounded = stages.run(tiles, quantized=True)

    def measure(question: _Measurement) -> float:
        start = (rounded if question.others else exact)[question.stage]
        probabilities = stages.finish(question, start)
        return divergence(probabilities, reference)

    parts = _parts(stages.parts)
    questions = [q for part in parts for q in (part.alone, part.all_but)]
    changes = []
    for change in map_in_order(measure, questions, threads):
        changes.append(change)
        on_step(1)
    results = [
        PartSensitivity(name=part.name, linears=list(part.members), alone=alone, all_but=all_but)
        for part, alone, all_but in zip(parts, changes[::2], changes[1::2], strict=True)
    ]
    results.sort(key=lambda part: -part.alone)
    names = set(plan.scales)
    return Sensitivity(
        everything=divergence(all_rounded, reference),
        linears=[part for part in results if part.name in names],
        blocks=[part for part in results if part.name not in names],
        tiles=len(tiles),
    )


def measurements(plan: Plan) -> int:
    """How often `sensitivity` calls `on_step`."""
    return 2 * len(_parts(stage_parts(plan.student, plan.scales)))


def divergence(probabilities: Probabilities, reference: Probabilities) -> float:
    """Mean Kullback-Leibler divergence in nats of probabilities (N, classes) from a reference."""
    p, q = (np.maximum(rows.astype(np.float64), 1e-12) for rows in (reference, probabilities))
    return float((p * np.log(p / q)).sum(axis=1).mean())


@dataclass(frozen=True)
class _Part:
    """A linear, the scores of an attention, or a block with all of these in it."""

    name: str
    members: tuple[str, ...]
    stage: int
    stage_members: tuple[str, ...]

    @property
    def alone(self) -> _Measurement:
        return _Measurement(self.stage, frozenset(self.members), others=False)

    @property
    def all_but(self) -> _Measurement:
        rest = frozenset(self.stage_members) - frozenset(self.members)
        return _Measurement(self.stage, rest, others=True)


def _parts(by_stage: Sequence[Sequence[str]]) -> list[_Part]:
    """All parts: the quantized ones, then the blocks (every stage but the patch embedding)."""
    single = [
        _Part(name, (name,), stage, tuple(names))
        for stage, names in enumerate(by_stage)
        for name in names
    ]
    blocks = [
        _Part(f"blocks.{stage - 1}", tuple(names), stage, tuple(names))
        for stage, names in enumerate(by_stage)
        if stage > 0 and names
    ]
    return single + blocks


class _Stages:
    """The INT8 graph in stages, loaded; every run uses one thread."""

    def __init__(self, plan: Plan) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        # No rewriting: optimizers fuse Q/DQ across the switches, which changes what is measured.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.parts = stage_parts(plan.student, plan.scales)
        self._sessions = [
            ort.InferenceSession(
                stage.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            for stage in build_switched_stages(plan.student, plan.scales)
        ]

    def run(self, tiles: Tiles, quantized: bool) -> tuple[list[StageInput], Probabilities]:
        """Run all stages with all parts switched alike.

        Returns:
            The input of every stage, and the probabilities float32 (N, classes).
        """
        inputs: list[StageInput] = [tiles]
        for stage, names in enumerate(self.parts):
            output = self._run(stage, inputs[-1], frozenset(names if quantized else ()))
            inputs.append(output)
        return inputs[:-1], output

    def finish(self, question: _Measurement, start: StageInput) -> Probabilities:
        """Run from the stage in question to the probabilities float32 (N, classes)."""
        output = self._run(question.stage, start, question.quantized)
        for stage in range(question.stage + 1, len(self.parts)):
            names = self.parts[stage] if question.others else ()
            output = self._run(stage, output, frozenset(names))
        return output

    def _run(
        self, stage: int, start: StageInput, quantized: frozenset[str]
    ) -> npt.NDArray[np.float32]:
        names = self.parts[stage]
        inputs = {"tokens" if stage else "tiles": start}
        if names:
            switches = np.array([name in quantized for name in names])
            inputs |= {"quantized": switches}
        output: npt.NDArray[np.float32] = self._sessions[stage].run(None, inputs)[0]
        return output
