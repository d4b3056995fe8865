"""The tiles of a slide with their predictions: one row per tile, columns as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.tiles.status import Status


@dataclass(frozen=True)
class SlideTiles:
    """All tiles of a slide in the order of the grid, row by row.

    Attributes:
        classes: names of the model's classes.
        x, y: upper left corner, int64 (N,); pixels of level 0, from the bounds of the slide.
        side: side of every tile, pixels of level 0.
        step: from a tile's corner to its neighbour's, pixels of level 0 (less than `side` where
            tiles overlap).
        probabilities: float32 (N, C); NaN where a tile has none.
        statuses: one status per tile.
        errors: the reasons; '' for 'ok'.
    """

    classes: Sequence[str]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    side: int
    step: float
    probabilities: npt.NDArray[np.float32]
    statuses: Sequence[str]
    errors: Sequence[str]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Index of the class (N,); -1 where the tile has no label."""
        decided = np.asarray([status == Status.OK for status in self.statuses], bool)
        filled = np.nan_to_num(self.probabilities, nan=-1.0)
        return np.where(decided, filled.argmax(1) if len(self) else 0, -1)

    @property
    def confidences(self) -> npt.NDArray[np.float32]:
        """Largest probability (N,); NaN where a tile has none."""
        largest: npt.NDArray[np.float32] = self.probabilities.max(1)
        return largest
