"""Tiles without tissue: told from tissue by their pixels."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgelung.tiles.blank import why_blank

SIDE = 224


def tissue(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Something like stained tissue: purple dots with sharp edges on pink."""
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), (225, 170, 205), np.int16)
    rows, columns = np.mgrid[:side, :side]
    for _ in range(120):
        row, column = rng.integers(0, side, 2)
        inside = (rows - row) ** 2 + (columns - column) ** 2 < rng.integers(16, 60)
        pixels[inside] = (120, 70, 150)
    noise = rng.normal(0, 4, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def noisy(colour: tuple[int, int, int], spread: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, spread, (SIDE, SIDE, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_tissue_is_not_blank(seed: int) -> None:
    assert why_blank(tissue(seed)) == ""


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (noisy((255, 255, 255), 0), "glass"),
        (noisy((240, 236, 230), 5), "glass"),
        (noisy((0, 0, 0), 0), "black"),
        (noisy((30, 25, 28), 6), "black"),
        (noisy((128, 128, 128), 2), "one colour"),
        (noisy((200, 150, 180), 0), "one colour"),
        (noisy((40, 140, 60), 20), "pen"),
        (noisy((30, 40, 160), 20), "pen"),
    ],
)
def test_what_is_no_tissue_has_its_reason(pixels: np.ndarray, reason: str) -> None:
    assert why_blank(pixels).startswith(reason)


def test_a_tile_out_of_focus_is_told_and_a_slight_blur_is_not() -> None:
    assert why_blank(blurred(tissue(), 6)).startswith("out of focus")
    assert why_blank(blurred(tissue(), 1)) == ""


@pytest.mark.parametrize("side", [64, 448, 900])
def test_sizes_of_tiles_are_judged_alike(side: int) -> None:
    large = np.asarray(Image.fromarray(tissue()).resize((side, side)))
    assert why_blank(large) == ""
    assert why_blank(np.full((side, side // 2, 3), 250, np.uint8)).startswith("glass")


def test_the_smallest_image_is_judged_too() -> None:
    assert why_blank(np.full((1, 1, 3), 120, np.uint8)).startswith("one colour")
