"""Figures of the variants on the page of a bundle.

Per variant: a scatter plot of its probabilities against full precision, and the tiles whose label
flips. For the bundle: ROC and reliability curves on the test tiles.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.core.precision import FULL_PRECISION
from edgelung.evaluation.metrics import Floats, Labels
from edgelung.report.chart import Axis, Series, chart
from edgelung.report.figures import picture, reliability_chart, roc_chart

MAX_TILES = 24  # flipped tiles shown per variant; the page gives the total

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
    judged: list[str]  # ROC and reliability on the test tiles


def variant_figures(
    probabilities: Mapping[str, Mapping[str, Floats]],
    labels: Mapping[str, Labels],
    paths: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    pixels: Pixels,
) -> VariantFigures:
    """Draw the figures of all variants.

    Args:
        probabilities: variant → set → float (N, classes); full precision under 'fp32'.
        labels: set → int64 (N,), true classes.
        paths: set → path of each tile, length N.
        classes: names of the classes.
        pixels: reads a tile by its path: RGB, uint8 (H, W, 3).
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
        judged=_judged(probabilities, labels, classes),
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
    series = []
    for subset in ("gate", "test"):
        if subset in variant:
            rows = np.arange(len(labels[subset]))
            x, y = (p[subset][rows, labels[subset]].tolist() for p in (reference, variant))
            series.append(Series(subset, list(zip(x, y, strict=True)), line=False))
    axes = Axis("full precision"), Axis(name)
    return chart("Probability of the true class", *axes, series, diagonal=True)


def _judged(
    probabilities: Mapping[str, Mapping[str, Floats]],
    labels: Mapping[str, Labels],
    classes: Sequence[str],
) -> list[str]:
    """ROC curves of full precision and reliability of every variant, on the test tiles."""
    test = {name: sets["test"] for name, sets in probabilities.items() if "test" in sets}
    if FULL_PRECISION not in test or not len(labels["test"]):
        return []
    roc = roc_chart(test[FULL_PRECISION], labels["test"], classes)
    return [roc, reliability_chart(test, labels["test"])]
