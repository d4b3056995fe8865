"""Images that a program has decoded already → the tile that the reader gives for such pixels."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.core.errors import EdgelungError, one_line
from edgelung.tiles.colour import check_peak, exif_orientation, to_8_bits, to_rgb, upright
from edgelung.tiles.errors import Status, TileError, damaged
from edgelung.tiles.resize import Tile, resize
from edgelung.tiles.spec import ReaderSpec
from edgelung.tiles.table import check_size


def tile_from_array(pixels: npt.NDArray[np.uint8], spec: ReaderSpec) -> Tile:
    """Resize RGB pixels, uint8 (H, W, 3), to (size, size, 3), as the reader does.

    Raises:
        TileError: if there are too many pixels.
    """
    height, width, _ = pixels.shape
    check_size(width, height, spec.size)
    return resize(pixels, spec.size)


def tile_or_error(decode: Callable[[], Tile]) -> Tile | TileError:
    """Return a tile, uint8 (size, size, 3), or why there is none."""
    try:
        return decode()
    except TileError as error:  # not kept itself: its traceback holds the decoder's memory
        return TileError(error.status, error.reason)
    except MemoryError:
        return TileError(Status.TOO_LARGE, "not enough memory to decode it")
    except Exception as error:  # decoders raise many types: a result, as in a folder run
        return TileError(Status.CORRUPT, one_line(error))


def tile_from_image(image: Image.Image, spec: ReaderSpec) -> Tile:
    """Convert a Pillow image to 8-bit RGB, turn it as its EXIF says, and resize it.

    The rules are those for files: alpha over white, palettes, grey and CMYK to RGB, 16-bit grey by
    its high byte. Modes I and F have no defined white and are refused. A JPEG that Pillow decoded
    at full size gives slightly other pixels than its file, which the reader decodes at a smaller
    scale.

    Raises:
        TileError: if the image cannot be decoded, is refused, or has too many pixels.
    """
    check_size(*image.size, spec.size)
    try:
        image.load()  # Pillow decodes at the first use
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise damaged(error) from error
    if image.mode in ("I", "F"):
        raise TileError(
            Status.UNSUPPORTED, f"a PIL image of mode {image.mode} has no defined white"
        )
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)
        check_peak(int(samples.max()))
        rgb = Image.fromarray(to_8_bits(samples, 16)).convert("RGB")
    else:
        rgb = to_rgb(image)
    return resize(upright(rgb, exif_orientation(image.info.get("exif", b""))), spec.size)


def check_array(pixels: npt.NDArray[np.generic]) -> None:
    """Raise EdgelungError unless `pixels` is uint8 (H, W, 3) with H and W above 0."""
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size:
        return
    raise EdgelungError(
        f"found an array of {pixels.dtype} [{', '.join(map(str, pixels.shape))}]; expected uint8 "
        "[H, W, 3], RGB in 0…255"
    )
