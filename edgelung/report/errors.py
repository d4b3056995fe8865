"""Errors of a model by group: a few sources often hold most of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgelung.artifacts.run_predictions import RunPredictions

SHOWN_GROUPS = 8  # on the page, the groups with the most errors first


@dataclass(frozen=True)
class GroupErrors:
    """A group with errors. `wrong`: rows of its wrong tiles, the most confident first."""

    group: str
    tiles: int
    wrong: tuple[int, ...]


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
