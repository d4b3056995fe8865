"""Counts over the rows of a run: all that its summary says about the predictions."""

from collections import Counter
from collections.abc import Mapping, Sequence

from edgelung.artifacts.summary import Verification
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.gate import LIMITS
from edgelung.inference.record import Record
from edgelung.tiles.find import LEADS_OUT
from edgelung.tiles.status import NO_FAILURE, Status


class NoTilesError(EdgelungError):
    """The folder holds nothing to predict."""


class Tally:
    """Counts of rows; a few numbers per class, nothing per file.

    Attributes:
        statuses: rows by status.
        labels: rows by predicted class, decided ones only.
        links: links that lead out of the folder and were not followed.
        stages: predicted rows by the stage of the model that answered, if it has an early exit.
        other_sizes: predicted rows whose size in pixels is far from the training tiles.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.statuses: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.other_sizes = self.links = 0
        self._compared = self._same_label = 0
        self._max_difference = 0.0

    def add(self, record: Record) -> None:
        """Count one row."""
        self.statuses[record.status] += 1
        self.other_sizes += record.other_size
        if record.stage is not None:
            self.stages[str(record.stage)] += 1
        self.links += record.status == Status.SKIPPED and record.error == LEADS_OUT
        if (label := record.decided) is not None:
            self.labels[self.classes[label]] += 1
        if record.reference is not None and record.probabilities is not None:
            self._compare(record.probabilities, record.reference)

    def _compare(self, probabilities: Sequence[float], reference: Sequence[float]) -> None:
        variant_label = probabilities.index(max(probabilities))
        reference_label = reference.index(max(reference))
        self._compared += 1
        self._same_label += variant_label == reference_label
        difference = max(abs(a - b) for a, b in zip(reference, probabilities, strict=True))
        self._max_difference = max(self._max_difference, difference)

    @property
    def files(self) -> int:
        """Number of rows."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Rows without a prediction, apart from files that are no images."""
        return sum(n for status, n in self.statuses.items() if status not in NO_FAILURE)

    def check_tiles(self) -> None:
        """Raise NoTilesError if there was no tile: the folder must be a mistake."""
        check_any_tile(self.statuses, self.links)

    def verification(self) -> Verification | None:
        """The comparison with full precision; None where it did not run."""
        differing = self._compared - self._same_label
        return verification(self._compared, differing, self._max_difference)


def verification(tiles: int, differing: int, max_difference: float) -> Verification | None:
    """The comparison of so many tiles with full precision; None without one."""
    if tiles <= 0:  # an edited summary may hold any number
        return None
    agreement = (tiles - differing) / tiles
    return Verification(
        tiles=tiles,
        agreement=agreement,
        differing_labels=differing,
        max_probability_difference=max_difference,
        min_agreement=LIMITS.min_agreement,
        passed=agreement >= LIMITS.min_agreement,
    )


def check_any_tile(statuses: Mapping[str, int], links: int) -> None:
    """Raise NoTilesError if rows of these statuses hold no tile.

    `links`: how many of them are links that lead out of the folder.
    """
    if not statuses:
        raise NoTilesError("found no file at all; expected a folder with tiles in it")
    if set(statuses) != {Status.SKIPPED}:
        return
    if links:
        raise NoTilesError(
            f"found no image, but {links} link(s) that lead out of the folder; add --follow-links "
            "if they are to be followed"
        )
    files = sum(statuses.values())
    raise NoTilesError(f"found {files} files and no image among them; expected tiles")
