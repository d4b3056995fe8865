"""Where the tissue is: found in a small picture of the slide, or drawn by the user.

The rule: a pixel is tissue if its saturation (after the glass is made white) is above a threshold.
The threshold is Otsu's, but at least `LEAST` and at most `MOST`: on a slide that is nearly all
tissue, or that has a dark piece beside a pale one, Otsu alone drops the pale one. Pen marks are
taken out by colour. Then gaps are closed, small holes are filled and small islands are dropped.
`docs/explanation/tissue.md` has the evidence.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from types import ModuleType

import numpy as np
import numpy.typing as npt

from edgelung.core.extras import load_extra
from edgelung.slides.base import Grid, Overview
from edgelung.tiles.blank import pen_ink

Mask = npt.NDArray[np.bool_]

WHOLE = "none"
RULE = "saturation by Otsu, limited"
MPP = 8.0  # micrometres per pixel of the picture in which tissue is sought
LEAST, MOST = 8, 20  # of the threshold, in 0…255
MIN_SHARE = 0.25  # of a tile that must be tissue
MOST_PIXELS = 4_000_000  # of the picture; bounds the memory
BRIGHT = 200  # glass has at least this in every channel
MOST_MAGENTA = 6  # of glass
GLASS_SHARE = 0.002  # of the picture; with less, the glass's colour is not known
GAP_UM = 40.0  # closed
HOLE_UM2, ISLAND_UM2 = 2e4, 4e4  # filled, dropped
PEN_UM2 = 4e4  # smaller spots of a pen's colour are tissue
PEN_MARGIN_UM = 50.0


@dataclass(frozen=True)
class TissueMask:
    """The tissue of a slide.

    Attributes:
        pixels: True where there is tissue, (H, W).
        downsample: pixels of level 0 per pixel of the mask.
        rule: how it was found, in words.
        threshold: saturation 0…255; None where the rule has none.
    """

    pixels: Mask
    downsample: float
    rule: str
    threshold: int | None = None

    @property
    def is_drawn(self) -> bool:
        """False for a mask that takes the whole slide."""
        return self.rule != WHOLE

    def shares(self, grid: Grid) -> npt.NDArray[np.float64]:
        """Share of tissue in each square of the grid, 0…1, (N,)."""
        height, width = self.pixels.shape
        factor = grid.downsample / self.downsample
        first = grid.cells * (grid.step * factor)  # (N, 2) in pixels of the mask
        last = first + grid.side * factor
        x0, y0 = np.floor(first).astype(np.int64).T
        x1, y1 = np.maximum(np.ceil(last).astype(np.int64).T, np.stack([x0, y0]) + 1)
        x0, x1 = np.clip(x0, 0, width), np.clip(x1, 0, width)
        y0, y1 = np.clip(y0, 0, height), np.clip(y1, 0, height)
        inside = np.empty(len(grid), np.int64)
        # Row by row: sums over the whole mask would take four bytes for each of its pixels.
        for row in np.unique(grid.cells[:, 1]):
            cells = np.flatnonzero(grid.cells[:, 1] == row)
            band = self.pixels[y0[cells[0]] : y1[cells[0]]]
            sums = np.concatenate([[0], np.cumsum(band.sum(axis=0))])  # (width + 1,)
            inside[cells] = sums[x1[cells]] - sums[x0[cells]]
        shares: npt.NDArray[np.float64] = inside / np.maximum((x1 - x0) * (y1 - y0), 1)
        return shares

    def area_mm2(self, mpp: float) -> float:
        """Area of the tissue in square millimetres, at `mpp` micrometres per pixel of level 0."""
        return float(self.pixels.sum()) * (self.downsample * mpp) ** 2 / 1e6


def find_tissue(overview: Overview, mpp: float) -> TissueMask:
    """The tissue in a picture of the slide; `mpp`: micrometres per pixel of level 0."""
    cv2 = load_extra("cv2", "finding tissue")
    # Always at about the same resolution, so that the same tissue is found whatever the levels are.
    height, width, _ = overview.pixels.shape
    factor = max(round(MPP / (overview.downsample * mpp)), ceil(sqrt(height * width / MOST_PIXELS)))
    size = (-(-width // factor), -(-height // factor))
    small = cv2.resize(overview.pixels, size, interpolation=cv2.INTER_AREA)
    downsample = overview.downsample * factor
    um = downsample * mpp  # of a pixel of the small picture
    pixels = white_glass(cv2.medianBlur(small, 5))
    saturation = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1]
    otsu, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    threshold = int(np.clip(otsu, LEAST, MOST))
    tissue = (saturation > threshold) & ~_pen(cv2, pixels, um)
    if overview.unread is not None:  # perhaps tissue: then its tiles say that they are damaged
        unread = overview.unread.astype(np.uint8) * 255
        tissue |= cv2.resize(unread, size, interpolation=cv2.INTER_AREA) > 0
    return TissueMask(_clean(cv2, tissue, um), downsample, RULE, threshold)


def whole_slide(width: int, height: int) -> TissueMask:
    """All of the slide, whatever it shows; sizes in pixels of level 0."""
    return TissueMask(np.ones((1, 1), bool), float(max(width, height)), WHOLE)


def white_glass(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Scale the channels so that the glass is white: lamps and cameras tint it."""
    # Lamps tint from yellow to blue, stains to magenta: there, green is the least of the three.
    green = pixels[..., 1].astype(np.int16)
    magenta = np.minimum(pixels[..., 0], pixels[..., 2]) - green
    bright = (pixels.min(2) >= BRIGHT) & (magenta <= MOST_MAGENTA)
    if bright.mean() < GLASS_SHARE:
        return pixels
    glass = np.array([np.percentile(pixels[..., c][bright], 90) for c in range(3)])
    table = np.clip(np.arange(256)[:, None] * (255 / glass) + 0.5, 0, 255).astype(np.uint8)
    white = np.empty_like(pixels)
    for channel in range(3):
        white[..., channel] = table[:, channel][pixels[..., channel]]
    return white


def _pen(cv2: ModuleType, pixels: npt.NDArray[np.uint8], um: float) -> Mask:
    """Marks of a felt pen: large spots of colours that stained tissue does not have."""
    red, green, blue = (pixels[..., c].astype(np.int16) for c in range(3))
    ink = pen_ink(red, green, blue)
    ink |= np.maximum(np.maximum(red, green), blue) < 60  # black
    spots = _without_small(cv2, ink, PEN_UM2 / um**2)
    return _dilated(cv2, spots, PEN_MARGIN_UM / um)


def _clean(cv2: ModuleType, tissue: Mask, um: float) -> Mask:
    """Close gaps, fill small holes, drop small islands."""
    width = max(1, round(GAP_UM / um)) | 1
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    closed = cv2.morphologyEx(tissue.astype(np.uint8), cv2.MORPH_CLOSE, ellipse).astype(bool)
    filled = ~_without_small(cv2, ~closed, HOLE_UM2 / um**2)
    return _without_small(cv2, filled, ISLAND_UM2 / um**2)


def _without_small(cv2: ModuleType, mask: Mask, least: float) -> Mask:
    """The mask without its connected parts of fewer than `least` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= least
    large[0] = False  # the background
    kept: Mask = large[labels]
    return kept


def _dilated(cv2: ModuleType, mask: Mask, radius: float) -> Mask:
    width = 2 * max(1, round(radius)) + 1
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), ellipse), bool)
