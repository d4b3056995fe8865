"""Samples of any depth → 8-bit RGB, alpha over white, and the EXIF orientation."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.resize import Tile
from edgelung.tiles.tiff_directory import first_directory

Samples = npt.NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

# Cameras store 10, 12 or 14 bits in 16. A file that does not say so and whose largest sample stays
# below this could be one of them, and would come out almost black.
MIN_PEAK_16 = 2**14

# EXIF orientation → the transposition that undoes it.
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


def check_peak(peak: int, what: str = "sample") -> None:
    """Raise TileError where 16-bit samples that end at `peak` may hold fewer bits than they say."""
    if peak < MIN_PEAK_16:
        raise TileError(
            Status.UNSUPPORTED,
            f"no 16-bit {what} is above {peak}: the file seems to use fewer bits than it says",
        )


def check_alpha(alpha: npt.NDArray[Any]) -> None:
    """Raise TileError where every pixel is transparent: colours that nobody meant to hide."""
    if not alpha.any():
        raise TileError(Status.UNSUPPORTED, "every pixel is transparent (only alpha 0)")


def to_8_bits(samples: Samples, bits: int) -> Tile:
    """Scale samples of 1…16 bits to 8: the high byte where there are more, linear where fewer."""
    if bits == 8:
        return samples.astype(np.uint8, copy=False)
    if bits > 8:
        return (samples >> (bits - 8)).astype(np.uint8)
    scale = np.arange(2**bits) * 255 / (2**bits - 1)
    pixels: Tile = np.round(scale).astype(np.uint8)[samples]
    return pixels


def over_white(rgba: Tile) -> Image.Image:
    """Composite RGBA with straight alpha (H, W, 4) over white; raises TileError if all is 0."""
    check_alpha(rgba[..., 3])
    image = Image.fromarray(rgba)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def premultiplied_over_white(rgba: Tile) -> Tile:
    """As `over_white`, of colours that are already multiplied by alpha (H, W, 4)."""
    check_alpha(rgba[..., 3])
    white = 255 - rgba[..., 3:].astype(np.uint16)
    pixels: Tile = np.minimum(rgba[..., :3] + white, 255).astype(np.uint8)
    return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's 8-bit image in any mode → RGB, transparency over white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        return over_white(np.asarray(image.convert("RGBA")))
    return image.convert("RGB")


def upright(pixels: Tile | Image.Image, orientation: int) -> Tile | Image.Image:
    """Undo the EXIF `orientation`; values other than 2…8 leave the pixels as they are."""
    turn = _ORIENTATION.get(orientation)
    if turn is None:
        return pixels
    return (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).transpose(turn)


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, with or without its `Exif` mark; 1 where none is readable.

    EXIF is the only source: an orientation in XMP is ignored in every container.
    """
    try:
        directory = first_directory(exif.removeprefix(b"Exif\0\0"), needs_next=False)
        return directory.integer(_EXIF_ORIENTATION, 1)
    except TileError:  # a broken EXIF block says nothing about the pixels
        return 1
