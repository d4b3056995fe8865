"""Runs side by side: the paper's Table II, paired where models predicted the same tiles."""

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

TileKey = tuple[str, str, str]  # path, true class, SHA-256: names repeat from set to set


class Difference(Struct, frozen=True, kw_only=True):
    """Balanced accuracy of a model minus that of `against`, with its paired 95 % interval."""

    against: str
    balanced_accuracy: float
    interval: Interval


class ComparedModel(Struct, frozen=True, kw_only=True):
    """One model of a run. `difference` is None for a model that is nobody's pair."""

    run: str
    role: str
    model: str
    split: str
    fewest_groups: int  # test groups of the class that has the fewest
    test: ModelTest
    difference: Difference | None = None

    @property
    def title(self) -> str:
        """Run, role and timm name."""
        return f"{self.run}: {self.role} {self.model}"


class Comparison(Struct, frozen=True, kw_only=True):
    """The models in the order of their runs."""

    models: list[ComparedModel]


@dataclass(frozen=True)
class _Candidate:
    """A model with its test predictions and the files they are of."""

    model: ComparedModel
    predictions: RunPredictions
    tiles: frozenset[TileKey]


def compare_runs(runs: Sequence[Path]) -> Comparison:
    """Test metrics of every model of the runs, in their order, each against one reference.

    The reference is the student of the first run. For models that were tested on other tiles it is
    the first model listed that predicted exactly those. Raises EdgelungError for a folder that is
    not a finished run.
    """
    names = _names(runs)
    candidates = [one for run in runs for one in _models(RunFolder(run), names[run])]
    first_student = next(i for i, one in enumerate(candidates) if one.model.role == "student")
    models = []
    for i, candidate in enumerate(candidates):
        same = (j for j in (first_student, *range(i + 1)) if candidates[j].tiles == candidate.tiles)
        reference = next(same)
        if reference == i:
            models.append(candidate.model)
        else:
            models.append(_with_difference(candidate, candidates[reference]))
    return Comparison(models=models)


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """Each run by the name of its folder, or by its path if another has that name too."""
    names = Counter(run.name for run in runs)
    return {run: run.name if run.name and names[run.name] == 1 else str(run) for run in runs}


def _models(run: RunFolder, name: str) -> list[_Candidate]:
    """The models of one run."""
    config, metrics = run.read_config(), run.read_metrics()
    if "student" not in metrics.models:
        raise EdgelungError(f"{run.metrics_path} names no student; train it again")
    hashes = {row.path: row.sha256 for row in run.read_split()}
    candidates = []
    for role, one in metrics.models.items():
        model = ComparedModel(
            run=name,
            role=role,
            model=one.model,
            split=config.split,
            fewest_groups=config.fewest_test_groups,
            test=one.test,
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
    ours, theirs = candidate.model, reference.model
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
            interval=_paired(reference.predictions, candidate.predictions),
        ),
    )


def _paired(reference: RunPredictions, own: RunPredictions) -> Interval:
    """The interval of own − reference in balanced accuracy, over the tiles in path order."""
    order = np.argsort(np.array(own.paths))
    row_of = {path: row for row, path in enumerate(reference.paths)}
    same_tiles = np.array([row_of[own.paths[i]] for i in order], np.int64)
    to_own = np.array([own.classes.index(name) for name in reference.classes], np.int64)
    theirs: Labels = to_own[reference.probabilities[same_tiles].argmax(axis=1)]
    ours: Labels = own.probabilities[order].argmax(axis=1)
    groups = [own.groups[i] for i in order]
    differences = paired_intervals(theirs, ours, own.labels[order], groups, len(own.classes))
    return differences.balanced_accuracy
