"""Figures of the variants on the page of a bundle.

Per variant: a scatter plot of its probabilities against full precision, and the tiles whose label
flips. For the bundle: which parts of the network INT8 harms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from edgelung.artifacts.bundle import Sensitivity
from edgelung.core.precision import FULL_PRECISION
from edgelung.report.figures import BLUE, ORANGE, picture, svg

MAX_TILES = 24  # flipped tiles shown per variant; the page gives the total

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Pixels = Callable[[str], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class FlippedTile:
    """A tile that the variant labels `after` and full precision `before`."""

    subset: str
    path: str
    truth: str
    before: str
    after: str
    p_before: tuple[float, float]  # of `before` and `after`, in full precision
    p_after: tuple[float, float]  # of `before` and `after`, in the variant


@dataclass(frozen=True)
class ShownFlip:
    """A flipped tile with its picture as a data URI."""

    tile: FlippedTile
    picture: str


@dataclass(frozen=True)
class VariantFigures:
    """Figures by variant, without full precision. Plots are SVG text."""

    scatter: dict[str, str]
    flipped: dict[str, int]  # all flipped tiles
    flips: dict[str, list[ShownFlip]]  # at most MAX_TILES, the most confident first
    sensitivity: str | None


def variant_figures(
    probabilities: Mapping[str, Mapping[str, Floats]],
    labels: Mapping[str, Labels],
    paths: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    pixels: Pixels,
    ranking: Sensitivity | None,
) -> VariantFigures:
    """Draw the figures of all variants.

    Args:
        probabilities: variant → set → float (N, classes); full precision under 'fp32'.
        labels: set → int64 (N,), true classes.
        paths: set → path of each tile, length N.
        classes: names of the classes.
        pixels: reads a tile by its path: RGB, uint8 (H, W, 3).
        ranking: sensitivity of the parts of the network to INT8; None if it was not measured.
    """
    reference = probabilities[FULL_PRECISION]
    others = {name: sets for name, sets in probabilities.items() if name != FULL_PRECISION}
    flips = {
        name: flipped_tiles(sets, reference, labels, paths, classes)
        for name, sets in others.items()
    }
    return VariantFigures(
        scatter={name: _scatter(name, sets, reference, labels) for name, sets in others.items()},
        flipped={name: len(tiles) for name, tiles in flips.items()},
        flips={
            name: [ShownFlip(tile, picture(pixels(tile.path))) for tile in tiles[:MAX_TILES]]
            for name, tiles in flips.items()
        },
        sensitivity=_sensitivity(ranking) if ranking else None,
    )


def flipped_tiles(
    variant: Mapping[str, Floats],
    reference: Mapping[str, Floats],
    labels: Mapping[str, Labels],
    paths: Mapping[str, Sequence[str]],
    classes: Sequence[str],
) -> list[FlippedTile]:
    """Tiles whose label differs from full precision, the variant's most confident first."""
    tiles = []
    for subset, ours in variant.items():
        theirs = reference[subset]
        for i in np.flatnonzero(ours.argmax(axis=1) != theirs.argmax(axis=1)).tolist():
            before, after = int(theirs[i].argmax()), int(ours[i].argmax())
            tiles.append(
                FlippedTile(
                    subset=subset,
                    path=paths[subset][i],
                    truth=classes[labels[subset][i]],
                    before=classes[before],
                    after=classes[after],
                    p_before=(float(theirs[i, before]), float(theirs[i, after])),
                    p_after=(float(ours[i, before]), float(ours[i, after])),
                )
            )
    return sorted(tiles, key=lambda tile: -tile.p_after[1])


def _scatter(
    name: str,
    variant: Mapping[str, Floats],
    reference: Mapping[str, Floats],
    labels: Mapping[str, Labels],
) -> str:
    """Plot the probability of the true class, full precision against the variant."""
    figure, axes = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#8888", linewidth=1)
    for subset, colour in (("gate", BLUE), ("test", ORANGE)):
        if subset in variant:
            rows = np.arange(len(labels[subset]))
            x, y = (p[subset][rows, labels[subset]] for p in (reference, variant))
            axes.plot(x, y, ".", color=colour, markersize=3, label=subset, rasterized=True)
    axes.set(xlabel="full precision", ylabel=name, title="probability of the true class")
    axes.legend(frameon=False, loc="upper left")  # 'best' would compare every dot, which is slow
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _sensitivity(ranking: Sensitivity) -> str:
    """Plot, per part, how far INT8 in that part alone, or in all others, moves the output."""
    parts = [*ranking.blocks, *ranking.linears]
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.17 * len(parts)), layout="constrained")
    rows = np.arange(len(parts))
    floor = 1e-9  # a log axis cannot show 0
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
