"""A run folder for notebooks: each artefact is an attribute that is read on first use."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from msgspec import Struct, to_builtins

from edgelung.artifacts.run import (
    EpochRecord,
    RunConfig,
    RunFolder,
    RunMetrics,
    SplitRow,
)
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.errors import EdgelungError


class Run:
    """A run that `edgelung train` wrote. Made by `edgelung.open_run`.

    Each attribute reads its file on first use and caches the content. An attribute raises
    EdgelungError if its file is missing or damaged, for example `metrics` of an unfinished run.

    Attributes:
        folder: the run folder, with the paths of its files.
        is_finished: False during training, or after training was stopped.
        config: run.json: the recipe, the data, the sizes of the subsets.
        split: split.csv: every tile with its class, group and subset.
        history: metrics.jsonl: one record per epoch.
        metrics: metrics.json: figures of every model; rates are fractions in 0…1.
        predictions: the student's probabilities on its validation and test tiles.
    """

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        if not self.folder.config_path.is_file():
            raise EdgelungError(
                f"{path} is not a run folder (no {self.folder.config_path.name} in it); expected "
                "one that `edgelung train` wrote"
            )

    @property
    def is_finished(self) -> bool:
        """True once training, evaluation and report are done."""
        return self.folder.is_finished

    @cached_property
    def config(self) -> RunConfig:
        """run.json: the recipe, the data, the sizes of the subsets."""
        return self.folder.read_config()

    @cached_property
    def split(self) -> list[SplitRow]:
        """split.csv: every tile with its class, group and subset."""
        return self.folder.read_split()

    @cached_property
    def history(self) -> list[EpochRecord]:
        """metrics.jsonl: one record per epoch, in order; losses in nats."""
        return self.folder.read_history()

    @cached_property
    def metrics(self) -> RunMetrics:
        """metrics.json: figures of every model; rates are fractions in 0…1."""
        return self.folder.read_metrics()

    @cached_property
    def predictions(self) -> RunPredictions:
        """The student's probabilities, float64 (N, classes), on its validation and test tiles."""
        return self.folder.read_predictions()

    def predictions_of(self, role: str) -> RunPredictions:
        """Read the predictions of 'teacher', 'baseline' or 'student'."""
        return self.folder.read_predictions(role)

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r})"


def to_records(rows: Iterable[Struct]) -> list[dict[str, object]]:
    """Return one dict per row, for `pandas.DataFrame`: of `run.history` or `run.split`."""
    return [to_builtins(row) for row in rows]
