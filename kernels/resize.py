"""A batch of tiles of differing sizes resized in one go, on the device or by the host twin.

`Plan` says where everything of a batch lies in two blocks of memory (one that is uploaded, one
that only the kernels touch) and which kernels to launch on them. It knows no CUDA: the device
(`edgelung.engines.cuda`) and the host twin run the same plan.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Three = tuple[int, int, int]
Launch = tuple[str, Three, Three, tuple[np.integer[Any], ...]]  # kernel, grid, block, arguments

# The structs of resize.h.
AXIS = np.dtype(
    [
        ("starts", "<u8"),
        ("counts", "<u8"),
        ("weights", "<u8"),
        ("in_size", "<i4"),
        ("taps", "<i4"),
    ]
)
TILE = np.dtype(
    [
        ("pixels", "<u8"),
        ("middle", "<u8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("vertical", "<i4"),
        ("horizontal", "<i4"),
    ]
)
KERNELS = ("resize_weights", "resize_rows", "resize_columns")
ALIGN = 256
MAX_TILES = 65_535  # CUDA's limit of a grid's last dimension
COLUMNS, ROWS = 32, 8  # threads of a block: a warp along the row, so that its reads lie together
MAX_GRID_ROWS = 65_535


class Plan:
    """The resize of tiles of these `shapes` (height, width) to `size` × `size`.

    `upload_bytes` holds the descriptors and the pixels, in this order; `scratch_bytes` the weights
    and what lies between the two passes.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], size: int) -> None:
        if not 1 <= len(shapes) <= MAX_TILES:
            raise ValueError(f"{len(shapes)} tiles; a batch holds 1 to {MAX_TILES}")
        if any(min(shape) < 1 for shape in shapes):
            raise ValueError("a tile without pixels")
        self.shapes, self.size = tuple(shapes), size
        # One set of weights per size, however many tiles share it.
        lengths = sorted({length for shape in shapes for length in shape})
        self._axis_of = {length: i for i, length in enumerate(lengths)}
        self._tiles_at = _up(len(lengths) * AXIS.itemsize)
        end = _up(self._tiles_at + len(shapes) * TILE.itemsize)
        self._pixels_at = []
        for height, width in shapes:
            self._pixels_at.append(end)
            end = _up(end + height * width * 3)
        self.upload_bytes = end
        end = 0
        self._weights_at = []
        for length in lengths:
            self._weights_at.append(end)
            end = _up(end + size * 4 * (2 + most_taps(length, size)))
        self._middle_at = []
        for height, _ in shapes:
            self._middle_at.append(end)
            end = _up(end + height * size * 3)
        self.scratch_bytes = end

    def fill(self, block: Pixels, tiles: Sequence[Pixels], upload: int, scratch: int) -> None:
        """Write descriptors and pixels into `block` (uint8, at least `upload_bytes`).

        `upload` and `scratch` are the addresses that the kernels will see the two blocks at.
        """
        axes = block[: len(self._axis_of) * AXIS.itemsize].view(AXIS)
        for length, i in self._axis_of.items():
            at = scratch + self._weights_at[i]
            row = 4 * self.size
            axes[i] = (at, at + row, at + 2 * row, length, most_taps(length, self.size))
        end = self._tiles_at + len(tiles) * TILE.itemsize
        descriptors = block[self._tiles_at : end].view(TILE)
        for i, (tile, (height, width)) in enumerate(zip(tiles, self.shapes, strict=True)):
            if tile.shape != (height, width, 3) or tile.dtype != np.uint8:
                raise ValueError(f"tile {i} is {tile.dtype} {tile.shape}, planned {height, width}")
            at = self._pixels_at[i]
            block[at : at + tile.size].reshape(tile.shape)[:] = tile
            descriptors[i] = (
                upload + at,
                scratch + self._middle_at[i],
                height,
                width,
                self._axis_of[height],
                self._axis_of[width],
            )

    def launches(self, upload: int, out: int) -> list[Launch]:
        """Kernel, grid, block and arguments of each launch; `out` is [N, size, size, 3]."""
        across = _ceil(self.size, COLUMNS)
        tallest = max(height for height, _ in self.shapes)
        rows = min(_ceil(tallest, ROWS), MAX_GRID_ROWS)
        block = (COLUMNS, ROWS, 1)
        axes, tiles = np.uint64(upload), np.uint64(upload + self._tiles_at)
        size, count = np.int32(self.size), len(self.shapes)
        return [
            (
                "resize_weights",
                (_ceil(self.size, COLUMNS), len(self._axis_of), 1),
                (COLUMNS, 1, 1),
                (axes, size),
            ),
            ("resize_rows", (across, rows, count), block, (tiles, axes, size)),
            (
                "resize_columns",
                (across, _ceil(self.size, ROWS), count),
                block,
                (tiles, axes, size, np.uint64(out)),
            ),
        ]


def most_taps(length: int, size: int) -> int:
    """Most weights that one output of an axis can have (as in resize.h)."""
    return 2 * max(1, _ceil(length, size)) + 1


class HostTwin:
    """The kernels compiled by g++ (`edgelung.kernels.build.build_host`): proof without a GPU."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def resize(self, tiles: Sequence[Pixels], size: int) -> Pixels:
        """Resize uint8 RGB tiles (H, W, 3) to uint8 (N, size, size, 3)."""
        plan = Plan([(tile.shape[0], tile.shape[1]) for tile in tiles], size)
        block, scratch = aligned(plan.upload_bytes), aligned(plan.scratch_bytes)
        out = np.empty((len(tiles), size, size, 3), np.uint8)
        upload = block.ctypes.data
        plan.fill(block, tiles, upload, scratch.ctypes.data)
        for kernel, grid, threads, arguments in plan.launches(upload, out.ctypes.data):
            function = getattr(self._library, f"host_{kernel}")
            function.restype = None
            words = [
                ctypes.c_int32(int(a)) if isinstance(a, np.int32) else ctypes.c_uint64(int(a))
                for a in arguments
            ]
            function((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*threads), *words)
        return out

    def most_taps(self, length: int, size: int) -> int:
        """`most_taps` of the header."""
        return int(self._library.host_most_taps(length, size))


def aligned(count: int) -> Pixels:
    """`count` uint8 that begin where device memory would: at a multiple of 256."""
    raw = np.empty(count + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + count]


def _up(value: int) -> int:
    return _ceil(value, ALIGN) * ALIGN


def _ceil(value: int, step: int) -> int:
    return -(-value // step)
