"""Which tiles leave a model at its early exit."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.engines.base import Probabilities, Scores


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
