"""A plausible slide without a slide: smooth random tissue, its overview, its tiles, its summary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from edgelung.artifacts.slide_summary import SlideSummary, Tissue
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.slides.base import Grid, Level, Overview, StatedScale
from edgelung.slides.mask import TissueMask
from edgelung.slides.shares import class_shares
from edgelung.tiles.errors import TileError
from edgelung.tiles.status import Status

CLASSES = ("lung_aca", "lung_n", "lung_scc")
MASK_DOWNSAMPLE = 64.0


@dataclass(frozen=True)
class SlideSample:
    """What the pipeline has of a slide when it ends."""

    name: str
    width: int
    height: int
    mpp: float
    overview: Overview
    mask: npt.NDArray[np.bool_]
    mask_downsample: float
    tiles: SlideTiles
    summary: SlideSummary


MakeSlide = Callable[..., SlideSample]


@pytest.fixture(scope="session")
def array_slide() -> type["ArraySlide"]:
    """The class of slides in memory."""
    return ArraySlide


@pytest.fixture(scope="session")
def make_slide() -> MakeSlide:
    """Makes a slide, once for the same options; they are those of `slide_sample`."""
    return cache(slide_sample)


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, int], knots: int
) -> npt.NDArray[np.float32]:
    """A random field (h, w) with about `knots` hills along its longer side, −1…1."""
    few = [max(3, round(knots * size / max(shape)) + 2) for size in shape]
    noise = rng.uniform(-1, 1, few).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BICUBIC))


def slide_sample(
    width: int = 24_000,
    height: int = 18_000,
    *,
    name: str = "slide-017.svs",
    classes: Sequence[str] = CLASSES,
    side: int = 448,
    overlap: float = 0.0,
    mpp: float = 0.5,
    seed: int = 0,
    downsample: float = 16.0,
) -> SlideSample:
    rng = np.random.default_rng(seed)
    mask_shape = (-(-height // int(MASK_DOWNSAMPLE)), -(-width // int(MASK_DOWNSAMPLE)))
    y, x = np.mgrid[-1 : 1 : mask_shape[0] * 1j, -1 : 1 : mask_shape[1] * 1j]
    mask = smooth_field(rng, mask_shape, 7) + 0.9 - 1.3 * (x**2 + y**2) > 0.1
    step = side * (1 - overlap)
    count = len(classes)
    rows, columns = (int((size - side) // step) + 1 for size in (height, width))
    grid = np.array([(c, r) for r in range(rows) for c in range(columns)]).reshape(-1, 2)
    corners = np.rint(grid * step).astype(np.int64)
    every = SlideTiles(
        classes=tuple(classes),
        x=corners[:, 0],
        y=corners[:, 1],
        side=side,
        step=step,
        probabilities=np.zeros((len(corners), count), np.float32),
        statuses=[""] * len(corners),
        errors=[""] * len(corners),
    )
    kept = tissue_of(every, mask) >= 0.5
    grid, corners = grid[kept], corners[kept]
    fields = np.stack([smooth_field(rng, (rows, columns), 6) for _ in classes], axis=-1)
    logits = 6 * fields[grid[:, 1], grid[:, 0]] + rng.normal(0, 0.5, (len(grid), count))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    statuses = np.where(probabilities.max(1) < 0.5, Status.REVIEW, Status.OK).astype(object)
    damaged = rng.choice(len(grid), len(grid) // 100, replace=False)
    statuses[damaged] = Status.CORRUPT
    probabilities[damaged] = np.nan
    reasons = {Status.OK: "", Status.REVIEW: "confidence below 0.5", Status.CORRUPT: "bad code"}
    tiles = SlideTiles(
        classes=tuple(classes),
        x=corners[:, 0],
        y=corners[:, 1],
        side=side,
        step=step,
        probabilities=probabilities,
        statuses=[str(status) for status in statuses],
        errors=[reasons[status] for status in statuses],
    )
    overview = Overview(_stained(mask, width, height, downsample), downsample)
    summary = _summary(name, width, height, mpp, mask, tiles, overlap)
    return SlideSample(name, width, height, mpp, overview, mask, MASK_DOWNSAMPLE, tiles, summary)


def tissue_of(tiles: SlideTiles, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Share of tissue of each tile, 0…1 (N,)."""
    cells = np.stack([tiles.x, tiles.y], axis=1).astype(np.int32)
    grid = Grid(0, 8, tiles.side, 1, 1.0, cells)
    return TissueMask(mask, MASK_DOWNSAMPLE, "drawn").shares(grid)


def _stained(
    mask: npt.NDArray[np.bool_], width: int, height: int, downsample: float
) -> npt.NDArray[np.uint8]:
    """White glass with a stained tile of the starter repeated where the mask is."""
    golden = resources.files("edgelung") / "starter" / "golden"
    jpeg = sorted(one.name for one in golden.iterdir() if one.name.endswith(".jpeg"))[0]
    tile = simplejpeg.decode_jpeg((golden / jpeg).read_bytes())
    shape = (int(-(-height // downsample)), int(-(-width // downsample)))
    repeats = [-(-size // part) for size, part in zip(shape, tile.shape, strict=False)]
    pixels = np.tile(tile, (*repeats, 1))[: shape[0], : shape[1]].copy()
    glass = Image.fromarray(~mask).resize(shape[::-1], Image.Resampling.NEAREST)
    pixels[np.asarray(glass)] = 244
    return pixels


def _summary(
    name: str,
    width: int,
    height: int,
    mpp: float,
    mask: npt.NDArray[np.bool_],
    tiles: SlideTiles,
    overlap: float,
) -> SlideSummary:
    shares, blocks = class_shares(tiles, tissue_of(tiles, mask), mpp)
    pixels = float(mask.sum()) * MASK_DOWNSAMPLE**2
    return SlideSummary(
        slide=name,
        status="ok",
        started="2026-01-02T03:04:05+00:00",
        ended="2026-01-02T03:14:06+00:00",
        sessions=["2026-01-02T03:04:05+00:00"],
        width=width,
        height=height,
        format="Aperio SVS; JPEG tiles read directly",
        reader="direct",
        mpp=mpp,
        mpp_source="aperio.MPP",
        notes=["The pixels are slightly anisotropic: 0.4990 × 0.5010 µm."],
        tile_px=tiles.side,
        tile_um=tiles.side * mpp,
        level=1,
        eighths=4,
        overlap=overlap,
        tissue=Tissue(
            rule="saturation above Otsu's threshold, holes closed, pieces below 0.01 mm² removed",
            threshold=21.0,
            downsample=MASK_DOWNSAMPLE,
            share=pixels / width / height,
            area_mm2=pixels * (mpp / 1000) ** 2,
        ),
        tiles=len(tiles),
        statuses={status: tiles.statuses.count(status) for status in sorted(set(tiles.statuses))},
        labels={one: int((tiles.labels == index).sum()) for index, one in enumerate(tiles.classes)},
        shares=shares,
        blocks=blocks,
        bundle="deit of first",
        bundle_sha256="ab" * 32,
        signature="signed by a trusted key, 1234567890abcdef",
        engine="openvino",
        precision="int8",
        device="CPU",
        seconds=75.3,
        tiles_per_second=22.4,
    )


class ArraySlide:
    """A slide of pixels in memory, with the interface of `edgelung.slides.base.Slide`.

    `damaged`: a point of level 0; tiles that hold it cannot be read.
    """

    def __init__(
        self, pixels: npt.NDArray[np.uint8], damaged: tuple[int, int] | None = None
    ) -> None:
        self.path, self.scene, self.kind, self.reader = Path("array.svs"), "", "array", "direct"
        self.levels = [Level(pixels.shape[1], pixels.shape[0], 1.0)]
        self.scale, self.offset, self.eighths = StatedScale(), (0, 0), (8,)
        self.pixels, self.damaged, self.closed = pixels, damaged, 0

    def overview(self, most_pixels: int) -> Overview:
        raise AssertionError("no test of tiles looks at the overview")

    def open_tiles(self, grid: Grid) -> "ArraySlide":
        self._grid = grid
        return self

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        left, top = self._grid.corner(index)
        side = self._grid.side
        part = self.pixels[top : top + side, left : left + side]
        assert part.shape == (side, side, 3), "a tile hangs over the edge"
        if self.damaged:
            x, y = self.damaged[0] - left, self.damaged[1] - top
            if 0 <= x < side and 0 <= y < side:
                raise TileError(Status.CORRUPT, "bad code")
        return part

    def close(self) -> None:
        self.closed += 1
