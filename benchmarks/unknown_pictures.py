"""Pictures that are no tissue, and changes of colour: what `unknown.py` shows the model."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Tile = npt.NDArray[np.uint8]


def made_pictures(count: int = 20, side: int = 224) -> dict[str, list[Tile]]:
    """Pictures that are no tissue, by kind."""
    rng = np.random.default_rng(0)

    def plain(colour: Sequence[float], spread: float) -> Tile:
        noise = rng.normal(0, spread, (side, side, 3))
        return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)

    return {
        "white glass": [plain(rng.uniform(225, 252, 3), rng.uniform(0, 6)) for _ in range(count)],
        "black": [plain(rng.uniform(0, 30, 3), rng.uniform(0, 6)) for _ in range(count)],
        "grey": [plain([rng.uniform(60, 190)] * 3, rng.uniform(0, 6)) for _ in range(count)],
        "noise": [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)],
        "text": [_text(rng, side) for _ in range(count)],
        "gradient": [_gradient(rng, side) for _ in range(count)],
    }


def _text(rng: np.random.Generator, side: int) -> Tile:
    """A photograph of a printed page, more or less."""
    paper = tuple(int(v) for v in rng.integers(200, 250, 3))
    image = Image.new("RGB", (2 * side, 2 * side), paper)
    draw = ImageDraw.Draw(image)
    for line in range(0, 2 * side, 18):
        words = "".join(rng.choice(list("abcdefghij klmno pqrst uvwxyz ")) for _ in range(80))
        draw.text((4, line), words, fill=(20, 20, 30))
    turned = image.rotate(float(rng.uniform(-8, 8)), fillcolor=paper).filter(ImageFilter.SMOOTH)
    return np.asarray(turned.crop((side // 2, side // 2, 3 * side // 2, 3 * side // 2)))


def _gradient(rng: np.random.Generator, side: int) -> Tile:
    ramp = np.linspace(0, 1, side)[:, None, None] * np.ones((1, side, 1))
    first, second = rng.uniform(0, 255, (2, 3))
    return (first + ramp * (second - first)).astype(np.uint8)


def colour_changes() -> dict[str, Callable[[Tile], Tile]]:
    """Changes of a tile's colours and focus, by name."""

    def gain(red: float, green: float, blue: float) -> Callable[[Tile], Tile]:
        return lambda tile: np.clip(tile * np.array([red, green, blue]), 0, 255).astype(np.uint8)

    def blurred(radius: float) -> Callable[[Tile], Tile]:
        def change(tile: Tile) -> Tile:
            return np.asarray(Image.fromarray(tile).filter(ImageFilter.GaussianBlur(radius)))

        return change

    def stain(haematoxylin: float, eosin: float) -> Callable[[Tile], Tile]:
        return lambda tile: _stained(tile, haematoxylin, eosin)

    changes: dict[str, Callable[[Tile], Tile]] = {"none": lambda tile: tile}
    for step in (0.03, 0.06, 0.1, 0.15, 0.2):
        changes[f"white balance {step:g}"] = gain(1 + step, 1, 1 - step)
        changes[f"darker by {step:g}"] = gain(1 - step, 1 - step, 1 - step)
    for step in (0.1, 0.2, 0.3, 0.5):
        changes[f"haematoxylin + {step:g}"] = stain(1 + step, 1)
        changes[f"eosin - {step:g}"] = stain(1, 1 - step)
    for radius in (1.0, 2.0, 3.0):
        changes[f"blur {radius:g} px"] = blurred(radius)
    return changes


def _stained(tile: Tile, haematoxylin: float, eosin: float) -> Tile:
    """The tile with more or less of each stain (Ruifrok and Johnston 2001)."""
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / 256)
    amounts = density @ np.linalg.inv(stains) * np.array([haematoxylin, eosin, 1.0])
    pixels = 256 * np.exp(-(amounts @ stains)) - 1
    return np.clip(pixels, 0, 255).astype(np.uint8).reshape(tile.shape)
