"""The flipped tiles of a variant: which they are, their order, and how many are shown."""

import numpy as np
import numpy.typing as npt
import pytest

from edgelung.report import variants as module
from edgelung.report.variants import FlippedTile, flipped_tiles, variant_figures

CLASSES = ("a", "b")
LABELS = {"gate": np.array([0, 0, 1, 1])}
PATHS = {"gate": ["1.png", "2.png", "3.png", "4.png"]}
REFERENCE = {"gate": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]])}
VARIANT = {"gate": np.array([[0.8, 0.2], [0.4, 0.6], [0.75, 0.25], [0.2, 0.8]])}


def grey(path: str) -> npt.NDArray[np.uint8]:
    return np.full((8, 8, 3), 128, np.uint8)


def test_flipped_tiles_are_listed_most_confident_first() -> None:
    tiles = flipped_tiles(VARIANT, REFERENCE, LABELS, PATHS, CLASSES)
    assert [tile.path for tile in tiles] == ["3.png", "2.png"]


def test_a_flipped_tile_holds_both_labels_and_their_probabilities() -> None:
    tile = flipped_tiles(VARIANT, REFERENCE, LABELS, PATHS, CLASSES)[0]
    assert tile == FlippedTile("gate", "3.png", "b", "b", "a", (0.7, 0.3), (0.25, 0.75))


def test_full_precision_has_no_figures_of_its_own() -> None:
    figures = variant_figures({"fp32": REFERENCE, "int8": VARIANT}, LABELS, PATHS, CLASSES, grey)
    assert list(figures.scatter) == list(figures.flipped) == list(figures.flips) == ["int8"]
    assert "<svg" in figures.scatter["int8"]


def test_all_flips_are_counted_though_few_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TILES", 1)
    figures = variant_figures({"fp32": REFERENCE, "int8": VARIANT}, LABELS, PATHS, CLASSES, grey)
    assert figures.flipped["int8"] == 2
    (shown,) = figures.flips["int8"]
    assert shown.tile.path == "3.png"
    assert shown.picture.startswith("data:image/jpeg;base64,")
