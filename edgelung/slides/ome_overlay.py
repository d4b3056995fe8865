"""The heat maps as a pyramidal OME-TIFF: one channel per class, to lie over the slide.

One pixel of the overlay is `downsample` pixels of level 0 in each direction, a power of two, and
both begin at the same corner. The OME-XML holds the physical size of a pixel, so a viewer that
places images by it (OMERO, napari, QuPath's image alignment) lays the overlay over the slide.
Values: 0 without a tile, else 1 + 254 p.
"""

import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung import __version__
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.core.errors import visible
from edgelung.core.extras import load_extra
from edgelung.core.files import atomic_write
from edgelung.slides.colours import Colour, class_colour
from edgelung.slides.heatmap import probability_values
from edgelung.slides.tile_raster import Raster, TileRaster

OVERLAY = "heatmap.ome.tif"
PIXELS_PER_TILE = 4  # at least, of the step: so tiles that overlap differ
TILE = 256  # pixels of the TIFF's own tiles
_IDS = uuid.UUID("5e9f2f0e-0d0b-5b0e-8a55-6c1f6d6f2a11")


def overlay_raster(tiles: SlideTiles, width: int, height: int) -> Raster:
    """The raster of the overlay of a slide of `width` × `height` pixels."""
    step = max(tiles.step, float(PIXELS_PER_TILE))
    return Raster.of_slide(width, height, 2.0 ** math.floor(math.log2(step / PIXELS_PER_TILE)))


def write_overlay(
    path: Path, tiles: SlideTiles, slide: str, size: tuple[int, int], mpp: float
) -> None:
    """Write the overlay, in flat memory.

    Args:
        path: the file.
        tiles: the tiles.
        slide: the slide's name.
        size: width and height of the slide, pixels of level 0.
        mpp: micrometres per pixel of level 0.
    """
    tifffile = load_extra("tifffile", "the OME-TIFF of the heat maps")
    rasters = [overlay_raster(tiles, *size)]
    while max(rasters[-1].width, rasters[-1].height) > TILE:
        last = rasters[-1]
        rasters.append(Raster.of_slide(*size, last.downsample * 2))
    with (
        atomic_write(path) as file,
        # An open file of a descriptor has no name, but tifffile wants one.
        tifffile.TiffWriter(tifffile.FileHandle(file, name=path.name), ome=True) as writer,
    ):
        for number, raster in enumerate(rasters):
            on = TileRaster(tiles, raster)
            extra = (
                {"subfiletype": 1}
                if number
                else {
                    "subifds": len(rasters) - 1,
                    "metadata": _metadata(tiles, slide, raster, mpp),
                }
            )
            writer.write(
                _tiff_tiles(on),
                shape=(len(tiles.classes), raster.height, raster.width),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                software=False,
                **extra,
            )


def _tiff_tiles(on: TileRaster) -> Iterator[npt.NDArray[np.uint8]]:
    """The tiles of all channels, one after the other, row by row."""
    for index in range(len(on.tiles.classes)):
        for band in on.bands(probability_values(on, index), TILE):
            for left in range(0, on.raster.width, TILE):
                yield np.ascontiguousarray(band[:, left : left + TILE])


def _metadata(tiles: SlideTiles, slide: str, raster: Raster, mpp: float) -> dict[str, object]:
    name = visible(slide)
    size = mpp * raster.downsample
    return {
        "axes": "CYX",
        "Name": f"{name}: probabilities",
        "Creator": f"edgelung {__version__}",
        "UUID": str(uuid.uuid5(_IDS, name)),  # the same for the same slide
        "Channel": {
            "Name": list(map(visible, tiles.classes)),
            "Color": [_signed(class_colour(index)) for index in range(len(tiles.classes))],
        },
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": size,
        "PhysicalSizeYUnit": "µm",
    }


def _signed(colour: Colour) -> int:
    """A colour as OME-XML holds it: RGBA in a signed 32-bit number."""
    return int.from_bytes(bytes([*colour, 255]), "big", signed=True)
