"""Compare runs: the paper's Table II, with paired differences for models of the same test tiles."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct

from edgelung.artifacts.results import Interval, ModelTest
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.intervals import paired_intervals
from edgelung.evaluation.metrics import Labels

NO_INTERVAL = (
    "Without an interval no difference is shown. It needs 2 test groups in each class, and "
    "a difference that varies between groups."
)

TileKey = tuple[str, str, str]  # path, true class, SHA-256: data sets reuse file names


class Difference(Struct, frozen=True, kw_only=True):
    """Balanced accuracy of a model minus that of `against`, with its paired 95 % interval.

    Without an interval no difference is shown, however large it is: `interval` is None and
    `no_interval` says why. An interval that contains 0 shows no difference either.
    """

    against: str
    balanced_accuracy: float
    interval: Interval | None
    no_interval: str = ""


class ComparedModel(Struct, frozen=True, kw_only=True):
    """One model of a run. `difference` is None for a model without a reference to compare with."""

    run: str
    role: str
    model: str
    split: str
    fewest_groups: int  # test groups in the class with the fewest
    test: ModelTest
    difference: Difference | None = None

    @property
    def title(self) -> str:
        """Run, role and timm name."""
        return f"{self.run}: {self.role} {self.model}"


class Comparison(Struct, frozen=True, kw_only=True):
    """All models, in the order of their runs."""

    models: list[ComparedModel]


@dataclass(frozen=True)
class _Candidate:
    """A model with its test predictions and the tiles that it predicted."""

    model: ComparedModel
    predictions: RunPredictions
    tiles: frozenset[TileKey]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Test metrics of every model of the runs, each compared with one reference model.

    The reference is the student of the first run. For a model that was tested on other tiles, the
    reference is the first listed model with exactly the same test tiles. Raises EdgelungError for a
    folder that is not a finished run.
    """
    names = _names(runs)
    candidates = [model for run in runs for model in _models(RunFolder(run), names[run])]
    first_student = next(i for i, one in enumerate(candidates) if one.model.role == "student")
    models = []
    for i, candidate in enumerate(candidates):
        earlier = (first_student, *range(i + 1))
        reference = next(j for j in earlier if candidates[j].tiles == candidate.tiles)
        if reference == i:
            models.append(candidate.model)
        else:
            models.append(_with_difference(candidate, candidates[reference]))
    return Comparison(models=models)


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """Name each run by its folder, or by its path if another run has the same folder name."""
    names = Counter(run.name for run in runs)
    return {run: run.name if run.name and names[run.name] == 1 else str(run) for run in runs}


def _models(run: RunFolder, name: str) -> list[_Candidate]:
    """The models of one run, with their test predictions."""
    config, metrics = run.read_config(), run.read_metrics()
    if "student" not in metrics.models:
        raise EdgelungError(f"{run.metrics_path} names no student; train it again")
    hashes = {row.path: row.sha256 for row in run.read_split()}
    candidates = []
    for role, model_metrics in metrics.models.items():
        model = ComparedModel(
            run=name,
            role=role,
            model=model_metrics.model,
            split=config.split,
            fewest_groups=config.fewest_test_groups,
            test=model_metrics.test,
        )
        predictions = run.read_predictions(role).subset("test")
        labels = [predictions.classes[label] for label in predictions.labels]
        tiles = frozenset(
            (path, label, hashes.get(path, ""))
            for path, label in zip(predictions.paths, labels, strict=True)
        )
        candidates.append(_Candidate(model, predictions, tiles))
    return candidates


def _with_difference(candidate: _Candidate, reference: _Candidate) -> ComparedModel:
    """The model of the candidate, with its difference to the reference."""
    ours, theirs = candidate.model, reference.model
    interval = _paired(reference.predictions, candidate.predictions)
    no_interval = _why_no_interval(interval, candidate.predictions)
    change = (ours.test.balanced_accuracy or 0) - (theirs.test.balanced_accuracy or 0)
    return ComparedModel(
        run=ours.run,
        role=ours.role,
        model=ours.model,
        split=ours.split,
        fewest_groups=ours.fewest_groups,
        test=ours.test,
        difference=Difference(
            against=theirs.title,
            balanced_accuracy=change,
            interval=None if no_interval else interval,
            no_interval=no_interval,
        ),
    )


def _why_no_interval(interval: Interval, predictions: RunPredictions) -> str:
    """Why resampled groups say nothing about a difference; '' if they do.

    The only group of a class is in every resample, so its share of the difference never varies.
    """
    pairs = set(zip(predictions.labels.tolist(), predictions.groups, strict=True))
    if min(Counter(label for label, _ in pairs).values()) < 2:
        return "one group"
    return "" if interval[0] < interval[1] else "equal in all groups"


def _paired(reference: RunPredictions, candidate: RunPredictions) -> Interval:
    """Interval of candidate − reference in balanced accuracy, over the tiles in path order."""
    order = np.argsort(np.array(candidate.paths))
    row_of = {path: row for row, path in enumerate(reference.paths)}
    same_tiles = np.array([row_of[candidate.paths[i]] for i in order], np.int64)
    # index of a class in the reference → its index in the candidate
    class_map = np.array([candidate.classes.index(name) for name in reference.classes], np.int64)
    theirs: Labels = class_map[reference.probabilities[same_tiles].argmax(axis=1)]
    ours: Labels = candidate.probabilities[order].argmax(axis=1)
    groups = [candidate.groups[i] for i in order]
    differences = paired_intervals(
        theirs, ours, candidate.labels[order], groups, len(candidate.classes)
    )
    return differences.balanced_accuracy
