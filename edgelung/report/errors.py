"""Errors of a model by group: a few sources often hold most of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgelung.artifacts.run_predictions import RunPredictions

SHOWN_GROUPS = 8  # on the page, the groups with the most errors first
SHOWN_ROWS = 50  # of the table of all groups


@dataclass(frozen=True)
class GroupErrors:
    """A group with errors. `wrong`: rows of its wrong tiles, the most confident first."""

    group: str
    tiles: int
    wrong: tuple[int, ...]


@dataclass(frozen=True)
class GroupScore:
    """How many tiles of a group are right. `labels`: its true classes."""

    group: str
    labels: tuple[str, ...]
    fold: int
    tiles: int
    right: int


def group_scores(predictions: RunPredictions, fold_of: Mapping[str, int]) -> list[GroupScore]:
    """Every group, that with the lowest accuracy first; of equal ones the largest.

    `fold_of`: path → the fold that tested it.
    """
    is_right = predictions.probabilities.argmax(axis=1) == predictions.labels
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(predictions.groups):
        rows.setdefault(group, []).append(row)
    scores = [
        GroupScore(
            group,
            tuple(sorted({predictions.classes[predictions.labels[row]] for row in members})),
            fold_of[predictions.paths[members[0]]],
            len(members),
            int(is_right[members].sum()),
        )
        for group, members in rows.items()
    ]
    return sorted(scores, key=lambda one: (one.right / one.tiles, -one.tiles, one.group))


def errors_by_group(predictions: RunPredictions) -> list[GroupErrors]:
    """The groups with errors, those with the most errors first."""
    probabilities = predictions.probabilities
    is_wrong = probabilities.argmax(axis=1) != predictions.labels
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(predictions.groups):
        rows.setdefault(group, []).append(row)
    errors = []
    for group, members in rows.items():
        wrong = [row for row in members if is_wrong[row]]
        wrong.sort(key=lambda row: -probabilities[row].max())
        if wrong:
            errors.append(GroupErrors(group, len(members), tuple(wrong)))
    return sorted(errors, key=lambda one: (-len(one.wrong), one.group))


def concentration(errors: Sequence[GroupErrors], groups: int) -> str:
    """One sentence: how few groups hold at least half of the errors. `groups`: of the test set."""
    counts = np.array([len(one.wrong) for one in errors], np.int64)
    if not counts.size:
        return f"No error in any of {groups} groups."
    held = counts.cumsum()
    few = int(np.searchsorted(held, held[-1] / 2)) + 1
    hold = "holds" if few == 1 else "hold"
    return f"{few} of {groups} groups {hold} {held[few - 1]} of {held[-1]} errors."
