"""How often the intervals of validation and test do not overlap.

    python benchmarks/set_differences.py benchmarks/results/set-differences.json

Two sets of three classes are drawn: groups of 20 tiles, some of them hard (any accuracy), the
others easy (most tiles right). 'By chance': both sets have the same share of hard groups.
'Different': the second set has more of them. See the concern `validation-differs`.
"""

import argparse
import json
from pathlib import Path

import machine
import numpy as np

from edgelung.artifacts.results import Interval
from edgelung.evaluation.intervals import intervals

CLASSES, TILES = 3, 20
GROUPS = (5, 10, 28)  # per class; 28 as the starter's test set
HARD = (0.05, 0.1, 0.2, 0.4)  # shares of hard groups
DIFFERENT = (0.05, 0.3)  # of the first and of the second set
PAIRS = 120


def draw(groups: int, hard: float, rng: np.random.Generator) -> Interval:
    """The interval of balanced accuracy of a set that was drawn."""
    truth = np.repeat(np.arange(CLASSES), groups * TILES)
    is_hard = rng.uniform(size=CLASSES * groups) < hard
    easy = rng.beta(60, 1, size=is_hard.size)
    accuracy = np.where(is_hard, rng.uniform(size=is_hard.size), easy)
    right = rng.uniform(size=truth.size) < np.repeat(accuracy, TILES)
    predicted = np.where(right, truth, (truth + 1) % CLASSES)
    names = np.repeat(np.arange(is_hard.size), TILES).astype(str).tolist()
    return intervals(predicted, truth, names, CLASSES).balanced_accuracy


def apart(groups: int, first: float, second: float, rng: np.random.Generator) -> float:
    """The share of pairs of sets whose intervals do not overlap."""
    count = 0
    for _ in range(PAIRS):
        one, two = draw(groups, first, rng), draw(groups, second, rng)
        count += one[0] > two[1] or two[0] > one[1]
    return count / PAIRS


def main() -> None:
    """Simulate and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    rng = np.random.default_rng(0)
    rows = []
    for groups in GROUPS:
        chance = {str(hard): apart(groups, hard, hard, rng) for hard in HARD}
        rows.append(
            {"groups": groups, "by_chance": chance, "different": apart(groups, *DIFFERENT, rng)}
        )
        print(rows[-1], flush=True)
    content = {
        "about": "Shares of simulated pairs of sets whose 95 % intervals do not overlap.",
        "pairs": PAIRS,
        "hard_groups_if_different": DIFFERENT,
        "rows": rows,
        "machine": machine.describe(),
    }
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
