"""The one resize from an image of any shape to a square tile."""

import importlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

Tile = npt.NDArray[np.uint8]

resize_rgb: Callable[..., None] | None
try:
    resize_rgb = importlib.import_module("edgelung.kernels._resize").resize_rgb
except ImportError:  # not built, or the CPU is too old for it: Pillow gives the same pixels
    resize_rgb = None


def resize(pixels: Tile | Image.Image, size: int, out: Tile | None = None) -> Tile:
    """Resize uint8 RGB (H, W, 3) to (size, size, 3): width first, then height, each pass rounded.

    Uses the compiled `kernels/resize_cpu.cpp` where the package was built with a C++ compiler.
    `out`: C-contiguous (size, size, 3) to write to, such as the tile's place in its batch.
    """
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    if resize_rgb is None:
        out[:] = resize_by_pillow(pixels, size)
        return out
    source = np.ascontiguousarray(pixels)
    if source.shape == out.shape:
        out[:] = source
    else:
        height, width, _ = source.shape
        resize_rgb(source, height, width, out, size)
    return out


def resize_by_pillow(pixels: Tile | Image.Image, size: int) -> Tile:
    """The same resize by Pillow, slower: the definition that the compiled code must match.

    Two calls, one per axis: given both axes at once, Pillow 13 starts with the height of a tall
    image and Pillow 12 with the width, which changes many pixels by one level.
    """
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(pixels)
    for shape in ((size, pixels.height), (size, size)):
        if pixels.size != shape:
            pixels = pixels.resize(shape, Image.Resampling.BILINEAR)
    return np.asarray(pixels)
