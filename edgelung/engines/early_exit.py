"""A model in two graphs with an early exit between them: sure tiles need only the first.

    tiles ─► first graph ─► probabilities, score, tokens ─┬► sure, and like the training tiles: done
                                                          └► tokens ─► second graph: done

Each tile is decided by its own numbers, so its answer does not depend on the batch. On a CPU a tile
costs the same in any batch, so what continues is run at once, in a smaller batch. The tokens of the
tiles that continue are copied once, into one array.
"""

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.manifest import EarlyExit
from edgelung.engines.base import (
    Engine,
    EngineFactory,
    EngineUnavailableError,
    Graph,
    Output,
    Probabilities,
    Scores,
    StageEngine,
    Tiles,
)


@dataclass(frozen=True)
class ExitRule:
    """Which tiles leave early. Fitted by `edgelung.export.early_exit`.

    Attributes:
        confidence: the smallest probability of the most probable class.
        known_up_to: the highest score at the exit. A tile above it may be foreign tissue, which
            the score of the whole model tells better, so it continues.
    """

    confidence: float
    known_up_to: float

    def leaves(self, probabilities: Probabilities, scores: Scores) -> npt.NDArray[np.bool_]:
        """True for the tiles that leave, (N,); a number that is not finite never leaves."""
        leaves: npt.NDArray[np.bool_] = probabilities.max(axis=1) >= self.confidence
        return leaves & (scores <= self.known_up_to)


@dataclass(frozen=True)
class ExitPlan:
    """What follows the first graph: the rule, and the graph for the tiles that continue."""

    rule: ExitRule
    graph: Graph


def early_exit_of(entry: EarlyExit, graph: Graph) -> ExitPlan:
    """The early exit that a bundle records, with its second graph."""
    return ExitPlan(ExitRule(entry.confidence, entry.known_up_to), graph)


class EarlyExitEngine:
    """Two engines as one. It has the name, device and concurrency of the first."""

    def __init__(self, first: StageEngine, second: StageEngine, rule: ExitRule) -> None:
        self.name, self.device = first.name, first.device
        self.concurrency, self.float_type = first.concurrency, first.float_type
        self._first, self._second, self._rule = first, second, rule

    def infer(self, tiles: Tiles) -> Output:
        """See `Engine.infer`."""
        probabilities, scores, tokens = self._first.run(tiles)  # (N, C), (N,), (N, T, D)
        continues = ~self._rule.leaves(probabilities, scores)
        if continues.any():
            rest = tokens if continues.all() else tokens[continues]
            probabilities[continues], scores[continues] = self._second.run(rest)
        return Output(probabilities, scores, 1 + continues.astype(np.uint8))

    def close(self) -> None:
        """See `Engine.close`."""
        self._first.close()
        self._second.close()


def load_model(
    factory: EngineFactory,
    graph: Graph,
    early_exit: ExitPlan | None,
    threads: int,
    *,
    latency: bool = False,
) -> Engine:
    """Load a model of one graph, or of two with an early exit between them.

    Raises:
        EngineUnavailableError: as the factory does, and if its engine runs no parts of models.
    """
    first = factory(graph, threads, latency=latency)
    if early_exit is None:
        return first
    try:
        if not _runs_stages(first):
            raise EngineUnavailableError(f"{first.name} runs no model with an early exit")
        second = factory(early_exit.graph, threads, latency=latency)
        assert _runs_stages(second)
    except BaseException:
        first.close()
        raise
    return EarlyExitEngine(first, second, early_exit.rule)


def _runs_stages(engine: Engine) -> TypeGuard[StageEngine]:
    return engine.device == "CPU" and hasattr(engine, "run")
