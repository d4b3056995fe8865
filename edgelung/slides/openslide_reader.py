"""Slides read by OpenSlide: what the direct path does not read, or not to the same pixels.

OpenSlide's errors stick to a handle: after one, every call fails. A tile that fails is therefore
read once more through a new handle, which tells a damaged tile from a neighbour of one.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgelung.core.errors import EdgelungError, one_line
from edgelung.slides.base import EIGHTHS, Grid, Level, Overview, StatedScale, check_scale
from edgelung.slides.bounds import Rectangle, find_bounds, find_regions, levels_within
from edgelung.slides.levels import positive
from edgelung.slides.libraries import need_openslide
from edgelung.slides.overview import Picture, plan
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.resize import Tile

if TYPE_CHECKING:
    from openslide import OpenSlide
    from PIL import Image

CACHE_BYTES = 64 * 2**20
BLOCK = 512  # pixels of a level that an overview reads at once
_FORMATS = {
    "aperio": "Aperio SVS",
    "dicom": "DICOM",
    "generic-tiff": "tiled TIFF",
    "hamamatsu": "Hamamatsu",
    "leica": "Leica SCN",
    "mirax": "MIRAX",
    "philips": "Philips TIFF",
    "sakura": "Sakura",
    "synthetic": "OpenSlide's synthetic slide",
    "trestle": "Trestle TIFF",
    "ventana": "Ventana",
    "zeiss": "Zeiss CZI",
}
_SCALES = {"aperio": "aperio.MPP", "generic-tiff": "the TIFF's resolution tags"}


class SharedHandle:
    """One OpenSlide handle for all threads, replaced after an error."""

    def __init__(self, path: Path) -> None:
        """Open the slide. Raises EdgelungError where OpenSlide is missing or cannot open it."""
        self._library = need_openslide(str(path))
        self._path = path
        self._cache = self._library.OpenSlideCache(CACHE_BYTES)
        self._repairing = threading.Lock()
        try:
            self._handle = self._open()
        except self._library.OpenSlideUnsupportedFormatError:
            raise EdgelungError(
                f"{path} is no slide that OpenSlide reads; expected a slide such as SVS, NDPI, "
                "MRXS, SCN, DICOM or tiled TIFF"
            ) from None
        except (self._library.OpenSlideError, OSError) as error:
            raise EdgelungError(
                f"{path} cannot be opened: OpenSlide says '{one_line(error)}'; is the copy "
                "complete, with all files of the slide?"
            ) from None

    @property
    def handle(self) -> "OpenSlide":
        """The handle in use."""
        return self._handle

    def read(self, x: int, y: int, level: int, width: int, height: int) -> Tile:
        """RGB (height, width, 3) of a region, alpha over white.

        `x`, `y`: its corner in pixels of the file's level 0.

        Raises:
            TileError: `corrupt` where OpenSlide cannot read it.
        """
        return over_white(self.read_rgba(x, y, level, width, height))

    def read_rgba(self, x: int, y: int, level: int, width: int, height: int) -> Tile:
        """As `read`, but (height, width, 4), with alpha: 0 where the slide holds nothing."""
        handle = self._handle
        try:
            region = handle.read_region((x, y), level, (width, height))
        except self._library.OpenSlideError:
            region = self._read_anew(handle, x, y, level, width, height)
        return np.asarray(region)

    def close(self) -> None:
        """Close the handle."""
        self._handle.close()

    def _open(self) -> "OpenSlide":
        handle: OpenSlide = self._library.OpenSlide(self._path)
        handle.set_cache(self._cache)
        return handle

    def _read_anew(
        self, failed: "OpenSlide", x: int, y: int, level: int, width: int, height: int
    ) -> "Image.Image":
        """Read with a handle that no other thread uses; a good one replaces the one that failed.

        That is not closed here: other threads may be using it.
        """
        with self._repairing:
            try:
                fresh = self._open()
                try:
                    region = fresh.read_region((x, y), level, (width, height))
                except self._library.OpenSlideError:
                    fresh.close()
                    raise
            except (self._library.OpenSlideError, OSError) as error:
                raise TileError(Status.CORRUPT, f"OpenSlide: {one_line(error)}") from None
            if self._handle is failed:
                self._handle = fresh
            else:
                fresh.close()
            return region


class OpenSlideSlide:
    """A slide that OpenSlide reads, as `base.Slide`.

    Attributes:
        series: of a DICOM slide; '' for others.
        regions: the parts of the canvas that are slides of their own; empty where it is one.
    """

    reader = "openslide"
    eighths: Sequence[int] = (EIGHTHS,)

    def __init__(
        self,
        path: Path,
        note: str = "",
        scale: StatedScale | None = None,
        scene: str = "",
        part: Rectangle | None = None,
    ) -> None:
        """Open the slide. Raises EdgelungError.

        Args:
            path: a file that OpenSlide opens.
            note: why OpenSlide reads it, for `kind`.
            scale: in place of what OpenSlide says.
            scene: its name.
            part: of the canvas; None for the bounds.
        """
        self.path, self.scene = path, scene
        self._shared = SharedHandle(path)
        handle = self._shared.handle
        try:
            properties = dict(handle.properties)
            sizes = [(int(width), int(height)) for width, height in handle.level_dimensions]
            factors = [float(factor) for factor in handle.level_downsamples]
            part = part or find_bounds(path, properties, sizes[0])
        except BaseException:
            self.close()
            raise
        self.offset = part.x, part.y
        self.levels: Sequence[Level] = levels_within(part, sizes, factors)
        self.regions = find_regions(properties, sizes[0])
        self.series = properties.get("dicom.SeriesInstanceUID", "")
        vendor = properties.get("openslide.vendor", "")
        self.kind = f"{_FORMATS.get(vendor, one_line(vendor, 40))}; read by OpenSlide"
        self.kind += note and f", {note}"
        self.scale = scale or stated_scale(properties)

    def overview(self, most_pixels: int) -> Overview:
        reduction = plan(self.levels, self.eighths, most_pixels)
        picture = Picture(reduction)
        for y in range(0, reduction.height, BLOCK):
            high = min(BLOCK, reduction.height - y)
            for x in range(0, reduction.width, BLOCK):
                wide = min(BLOCK, reduction.width - x)
                try:
                    picture.add(x, y, self.read(reduction.level, x, y, wide, high))
                except TileError:
                    picture.leave_out(x, y, wide, high)
            picture.finish(y + high)
        return picture.overview()

    def open_tiles(self, grid: Grid) -> "OpenSlideTiles":
        check_scale(grid, self.eighths)
        return OpenSlideTiles(self, grid)

    def close(self) -> None:
        self._shared.close()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Tile:
        """RGB of a region; `x`, `y`: pixels of the level within the bounds. Raises TileError."""
        factor = self.levels[level].downsample
        x0, y0 = self.offset[0] + round(x * factor), self.offset[1] + round(y * factor)
        return self._shared.read(x0, y0, level, width, height)


def open_by_openslide(path: Path) -> list[OpenSlideSlide]:
    """A slide, or each part of one that was scanned by itself. Raises EdgelungError."""
    slide = OpenSlideSlide(path)
    if not slide.regions:
        return [slide]
    slide.close()
    return [
        OpenSlideSlide(path, scene=f"region {number}", part=part)
        for number, part in enumerate(slide.regions, 1)
    ]


class OpenSlideTiles:
    """The tiles of a grid, as `base.TileReader`."""

    def __init__(self, slide: OpenSlideSlide, grid: Grid) -> None:
        self._slide, self._grid = slide, grid

    def read(self, index: int) -> Tile:
        grid = self._grid
        return self._slide.read(grid.level, *grid.corner(index), grid.side, grid.side)

    def close(self) -> None:
        """Nothing is held: the slide keeps its handle."""


def over_white(rgba: Tile) -> Tile:
    """Straight alpha (H, W, 4) over white, rounded: RGB (H, W, 3). No alpha at all is white."""
    alpha = rgba[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgba[..., :3])
    weight = alpha.astype(np.uint16)
    blended: Tile = ((rgba[..., :3] * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
    return blended


def stated_scale(properties: Mapping[str, str]) -> StatedScale:
    """What OpenSlide says of the scale, with the place where the file says it."""
    mpp_x = positive(properties.get("openslide.mpp-x", ""))
    mpp_y = positive(properties.get("openslide.mpp-y", ""))
    objective = positive(properties.get("openslide.objective-power", ""))
    vendor = properties.get("openslide.vendor", "")
    source = ""
    if mpp_x is not None or mpp_y is not None:
        source = _SCALES.get(vendor, f"openslide.mpp-x ({one_line(vendor, 40)})")
    return StatedScale(mpp_x, mpp_y, objective, source)
