"""What the report shows of each variant: probabilities against full precision's, the tiles whose
label flips, and which parts INT8 hurts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from edgelung.artifacts.bundle import Sensitivity
from edgelung.report.figures import BLUE, ORANGE, picture, svg

MOST_TILES = 24  # flipped tiles that are shown of a variant; the page says how many there are

Floats = npt.NDArray[np.floating[Any]]
Pixels = Callable[[str], npt.NDArray[np.uint8]]


def variant_figures(
    probabilities: Mapping[str, Mapping[str, Floats]],
    labels: Mapping[str, npt.NDArray[np.int64]],
    paths: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    pixels: Pixels,
    ranking: Sensitivity | None,
) -> dict[str, Any]:
    """`probabilities`: variant → set → (N, classes), full precision under 'fp32'; `labels` and
    `paths` of each set's tiles; `pixels`: uint8 RGB of a path. → scatter and flips by variant,
    and the sensitivity plot."""
    reference = probabilities["fp32"]
    others = {name: found for name, found in probabilities.items() if name != "fp32"}
    flips = {
        name: _flips(found, reference, labels, paths, classes) for name, found in others.items()
    }
    return {
        "scatter": {
            name: _scatter(name, found, reference, labels) for name, found in others.items()
        },
        "flipped": {name: len(rows) for name, rows in flips.items()},
        "flips": {
            name: [row | {"picture": picture(pixels(row["path"]))} for row in rows[:MOST_TILES]]
            for name, rows in flips.items()
        },
        "sensitivity": _sensitivity(ranking) if ranking else None,
    }


def _flips(
    found: Mapping[str, Floats],
    reference: Mapping[str, Floats],
    labels: Mapping[str, npt.NDArray[np.int64]],
    paths: Mapping[str, Sequence[str]],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """The tiles whose label is another than full precision's, the surest first."""
    rows = []
    for subset, ours in found.items():
        theirs = reference[subset]
        for i in np.flatnonzero(ours.argmax(axis=1) != theirs.argmax(axis=1)).tolist():
            before, after = int(theirs[i].argmax()), int(ours[i].argmax())
            rows.append(
                {
                    "set": subset,
                    "path": paths[subset][i],
                    "truth": classes[labels[subset][i]],
                    "before": classes[before],
                    "after": classes[after],
                    "p_before": [float(theirs[i, k]) for k in (before, after)],
                    "p_after": [float(ours[i, k]) for k in (before, after)],
                }
            )
    return sorted(rows, key=lambda row: -row["p_after"][1])


def _scatter(
    name: str,
    found: Mapping[str, Floats],
    reference: Mapping[str, Floats],
    labels: Mapping[str, npt.NDArray[np.int64]],
) -> str:
    """Probability of the true class: full precision against the variant, a dot a tile."""
    figure, axes = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#8888", linewidth=1)
    for subset, colour in (("gate", BLUE), ("test", ORANGE)):
        if subset in found:
            rows = np.arange(len(labels[subset]))
            x, y = (p[subset][rows, labels[subset]] for p in (reference, found))
            axes.plot(x, y, ".", color=colour, markersize=3, label=subset, rasterized=True)
    axes.set(xlabel="full precision", ylabel=name, title="probability of the true class")
    axes.legend(frameon=False, loc="upper left")  # 'best' looks at every dot
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _sensitivity(ranking: Sensitivity) -> str:
    """Change of the output by part of the network in INT8, alone and all but it; log scale."""
    parts = [*ranking.blocks, *ranking.linears]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.17 * len(parts)), layout="constrained")
    rows = np.arange(len(parts))
    floor = 1e-9
    for key, marker, colour in (("alone", "o", BLUE), ("all_but", "x", ORANGE)):
        values = [max(getattr(part, key), floor) for part in parts]
        axes.plot(values, rows, marker, color=colour, label=key.replace("_", " "), markersize=4)
    axes.axvline(max(ranking.everything, floor), color="#888", linewidth=1, label="all in INT8")
    axes.axhline(len(ranking.blocks) - 0.5, color="#8888", linewidth=1)
    axes.set_yticks(rows, [part.name for part in parts], fontsize=7)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.set(xscale="log", xlabel="divergence from full precision, nats")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)
