"""Images that a program has decoded already → the tile that the reader gives for such pixels."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.core.errors import EdgelungError, one_line
from edgelung.tiles.colour import check_peak, to_8_bits, to_rgb, upright
from edgelung.tiles.errors import TileError
from edgelung.tiles.resize import Tile, resize
from edgelung.tiles.spec import ReaderSpec
from edgelung.tiles.table import check_size

_EXIF_ORIENTATION = 0x0112


def tile_from_array(pixels: npt.NDArray[np.uint8], spec: ReaderSpec) -> Tile:
    """Resize RGB pixels, uint8 (H, W, 3), to (size, size, 3), as the reader does.

    Raises:
        TileError: if there are too many pixels.
    """
    check_array(pixels)
    height, width, _ = pixels.shape
    check_size(width, height, spec.size)
    return resize(pixels, spec.size)


def tile_from_image(image: Image.Image, spec: ReaderSpec) -> Tile:
    """Convert a Pillow image to 8-bit RGB, turn it as its EXIF says, and resize it.

    The rules are those for files: alpha over white, grey and CMYK to RGB, 16-bit grey by its high
    byte. A JPEG that Pillow decoded at full size gives slightly other pixels than its file, which
    the reader decodes at a smaller scale.

    Raises:
        TileError: if the image cannot be decoded, has too many pixels, or has no defined white.
    """
    check_size(*image.size, spec.size)
    try:
        image.load()  # Pillow decodes at the first use
    except Exception as error:  # plugins raise OSError, SyntaxError, struct.error and others
        raise TileError("corrupt", one_line(error)) from error
    orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    return resize(upright(_in_8_bits(image), orientation), spec.size)


def _in_8_bits(image: Image.Image) -> Tile | Image.Image:
    """8-bit RGB of a loaded image."""
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint16)
        check_peak(int(samples.max()))
        return np.repeat(to_8_bits(samples, 16)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise TileError("unsupported", f"pixels of type {image.mode} have no defined white")
    return to_rgb(image)


def check_array(pixels: npt.NDArray[np.generic]) -> None:
    """Raise EdgelungError unless `pixels` is uint8 (H, W, 3) with H and W above 0."""
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size:
        return
    raise EdgelungError(
        f"found an array of {pixels.dtype} [{', '.join(map(str, pixels.shape))}]; expected uint8 "
        "[H, W, 3], RGB in 0…255"
    )
