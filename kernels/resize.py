"""Plan the resize of a batch of tiles of different sizes, for the device or the host twin.

A `Plan` lays out a batch in two blocks of memory (one is uploaded, one is only used by the kernels)
and lists the kernels to launch on them. It does not use CUDA: the device (`edgelung.engines.cuda`)
and the host twin run the same plan.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Dim3 = tuple[int, int, int]
Argument = np.uint64 | np.int32 | np.float32
Launch = tuple[str, Dim3, Dim3, tuple[Argument, ...]]  # kernel, grid, block, arguments

# The structs Axis and Tile of resize.h.
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
        ("intermediate", "<u8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("vertical", "<i4"),
        ("horizontal", "<i4"),
    ]
)
KERNELS = ("resize_weights", "resize_rows", "resize_columns")
ALIGN = 256  # bytes, the alignment of device memory
MAX_GRID = 65_535  # CUDA's limit for the second and third dimension of a grid
MAX_TILES = MAX_GRID  # tiles are the third dimension
COLUMNS, ROWS = 32, 8  # threads of a block: a warp reads neighbouring pixels of one row


class Plan:
    """The resize of tiles of the given shapes to `size` × `size` pixels.

    Attributes:
        shapes: (height, width) of each tile.
        size: side of the results, in pixels.
        upload_bytes: size of the block that is uploaded: descriptors, then pixels.
        scratch_bytes: size of the block for the weights and the results of the first pass.

    Raises:
        ValueError: if there are no tiles or too many, or a tile without pixels.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], size: int) -> None:
        if not 1 <= len(shapes) <= MAX_TILES:
            raise ValueError(f"{len(shapes)} tiles; a batch holds 1 to {MAX_TILES}")
        if any(min(shape) < 1 for shape in shapes):
            raise ValueError("a tile without pixels")
        self.shapes, self.size = tuple(shapes), size
        # Tiles of the same height or width share one set of weights.
        lengths = sorted({length for shape in shapes for length in shape})
        self._axis_of = {length: i for i, length in enumerate(lengths)}
        self._tiles_offset = _align(len(lengths) * AXIS.itemsize)
        end = _align(self._tiles_offset + len(shapes) * TILE.itemsize)
        self._pixel_offsets = []
        for height, width in shapes:
            self._pixel_offsets.append(end)
            end = _align(end + height * width * 3)
        self.upload_bytes = end
        end = 0
        self._weight_offsets = []
        for length in lengths:
            self._weight_offsets.append(end)
            end = _align(end + size * 4 * (2 + max_taps(length, size)))
        self._intermediate_offsets = []
        for height, _ in shapes:
            self._intermediate_offsets.append(end)
            end = _align(end + height * size * 3)
        self.scratch_bytes = end

    def fill(self, block: Pixels, tiles: Sequence[Pixels], upload: int, scratch: int) -> None:
        """Write the descriptors and the pixels into `block`.

        Args:
            block: uint8, at least `upload_bytes` long.
            tiles: uint8 RGB (H, W, 3), of the shapes that were planned.
            upload: the address of the uploaded block, as the kernels see it.
            scratch: the address of the scratch block, as the kernels see it.

        Raises:
            ValueError: if a tile has another shape or type than planned.
        """
        axes = block[: len(self._axis_of) * AXIS.itemsize].view(AXIS)
        for length, i in self._axis_of.items():
            starts = scratch + self._weight_offsets[i]
            counts = starts + 4 * self.size  # int32 per output
            weights = counts + 4 * self.size
            axes[i] = (starts, counts, weights, length, max_taps(length, self.size))
        end = self._tiles_offset + len(tiles) * TILE.itemsize
        descriptors = block[self._tiles_offset : end].view(TILE)
        for i, (tile, (height, width)) in enumerate(zip(tiles, self.shapes, strict=True)):
            if tile.shape != (height, width, 3) or tile.dtype != np.uint8:
                raise ValueError(f"tile {i} is {tile.dtype} {tile.shape}, planned {height, width}")
            offset = self._pixel_offsets[i]
            block[offset : offset + tile.size].reshape(tile.shape)[:] = tile
            descriptors[i] = (
                upload + offset,
                scratch + self._intermediate_offsets[i],
                height,
                width,
                self._axis_of[height],
                self._axis_of[width],
            )

    def launches(self, upload: int, out: int) -> list[Launch]:
        """List kernel, grid, block and arguments of each launch, in order.

        `upload` and `out` are addresses; `out` receives uint8 (N, size, size, 3).
        """
        across = _ceil(self.size, COLUMNS)
        tallest = max(height for height, _ in self.shapes)
        rows = min(_ceil(tallest, ROWS), MAX_GRID)
        block = (COLUMNS, ROWS, 1)
        axes, tiles = np.uint64(upload), np.uint64(upload + self._tiles_offset)
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


def max_taps(length: int, size: int) -> int:
    """Return the largest number of weights of one output of an axis, as resize.h does."""
    return 2 * max(1, _ceil(length, size)) + 1


class HostTwin:
    """The kernels compiled by g++ (`edgelung.kernels.build.build_host`), to test without a GPU."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def resize(self, tiles: Sequence[Pixels], size: int) -> Pixels:
        """Resize tiles uint8 RGB (H, W, 3); returns uint8 (N, size, size, 3)."""
        plan = Plan([(tile.shape[0], tile.shape[1]) for tile in tiles], size)
        block, scratch = aligned(plan.upload_bytes), aligned(plan.scratch_bytes)
        out = np.empty((len(tiles), size, size, 3), np.uint8)
        upload = block.ctypes.data
        plan.fill(block, tiles, upload, scratch.ctypes.data)
        for launch in plan.launches(upload, out.ctypes.data):
            self.launch(launch)
        return out

    def launch(self, launch: Launch) -> None:
        """Run all threads of one launch, one after the other."""
        kernel, grid, block, arguments = launch
        function = getattr(self._library, f"host_{kernel}")
        function.restype = None
        dimensions = ((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block))
        function(*dimensions, *map(c_value, arguments))

    def max_taps(self, length: int, size: int) -> int:
        """Call `max_taps` of resize.h."""
        return int(self._library.host_max_taps(length, size))


def c_value(argument: Argument) -> ctypes.c_int32 | ctypes.c_uint64 | ctypes.c_float:
    """Return an argument of a kernel as C takes it."""
    if isinstance(argument, np.float32):
        return ctypes.c_float(float(argument))
    if isinstance(argument, np.int32):
        return ctypes.c_int32(int(argument))
    return ctypes.c_uint64(int(argument))


def aligned(count: int) -> Pixels:
    """Allocate `count` uint8 at an address that is aligned like device memory."""
    raw = np.empty(count + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + count]


def _align(offset: int) -> int:
    """Round up to a multiple of `ALIGN`."""
    return _ceil(offset, ALIGN) * ALIGN


def _ceil(value: int, step: int) -> int:
    """Divide and round up."""
    return -(-value // step)
