"""A model in two graphs with an early exit between them: sure tiles need only the first.

    tiles ─► first graph ─► probabilities, score, tokens ─┬► sure, and like the training tiles: done
                                                          └► tokens ─► second graph: done

Each tile is decided by its own numbers, so its answer does not depend on the batch. On a CPU a tile
costs the same in any batch, so what continues is run at once, in a smaller batch. The tokens of the
tiles that continue are copied once, into one array. On a GPU the same is done on the device
(`device_exit.py`).
"""

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from edgelung.artifacts.manifest import EarlyExit
from edgelung.engines.base import (
    Engine,
    EngineFactory,
    EngineUnavailableError,
    Graph,
    Output,
    StageEngine,
    Tiles,
)
from edgelung.engines.device_engine import DeviceEngine
from edgelung.engines.device_exit import DeviceExitEngine, require_stages
from edgelung.engines.exit_rule import ExitRule


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
    engines = [first]
    try:
        if not (isinstance(first, DeviceEngine) or _runs_stages(first)):
            raise EngineUnavailableError(f"{first.name} runs no model with an early exit")
        engines.append(second := factory(early_exit.graph, threads, latency=latency))
        if isinstance(first, DeviceEngine):
            assert isinstance(second, DeviceEngine)
            require_stages(first, second)
            return DeviceExitEngine(first, second, early_exit.rule)
        assert _runs_stages(first)
        assert _runs_stages(second)
    except BaseException:
        for engine in engines:
            engine.close()
        raise
    return EarlyExitEngine(first, second, early_exit.rule)


def _runs_stages(engine: Engine) -> TypeGuard[StageEngine]:
    return engine.device == "CPU" and hasattr(engine, "run")
