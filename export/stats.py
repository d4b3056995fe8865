"""What full precision meets on the calibration tiles, gathered in memory that does not grow.

Histograms count the leading 15 bits of each |x| as float32 (all of the exponent, seven bits of the
fraction): bins of at most 0.8 % of their value that need no range beforehand, so one pass is
enough, and counts that add up to the same integers in whatever parts they come.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgelung.engines.base import Tiles
from edgelung.export.graph import PIXEL_OFFSET, PIXEL_STEP, build_graph, observed_outputs
from edgelung.export.student import Student

BINS = 2**15
# Tiles that run at once, however they arrive: the batch size can then not change a single bit.
BATCH = 8
SAMPLED_TOKENS = 8  # of each tile, for the measured error of a scale migration

Array = npt.NDArray[np.float32]


@dataclass
class Seen:
    """An input that can be quantized: `counts` int64 [BINS] of |x|, and of each channel (D,) the
    largest |x| and the mean; `samples` float32 (n, D) of whole tokens."""

    counts: npt.NDArray[np.int64]
    largest: Array
    mean: npt.NDArray[np.float64]
    samples: list[Array] = field(default_factory=list)

    @property
    def range(self) -> float:
        """The largest |x| of all."""
        return float(self.largest.max())

    @property
    def tokens(self) -> Array:
        """The samples as one array (n, D)."""
        return np.concatenate(self.samples)


@dataclass(frozen=True)
class Observed:
    """What full precision met.

    `inputs`: by name (`graph.quantizable`), the patch embedding apart; of that the mean input
    `patch` (P·P·3,), pixels as (p − 128)/64. `peak`: largest |activation| anywhere, the residual
    stream and attention scores included.
    """

    inputs: dict[str, Seen]
    patch: npt.NDArray[np.float64]
    peak: float


def observe(
    student: Student,
    batches: Iterable[Tiles],
    threads: int,
    on_batch: Callable[[int], None],
    samples: bool = False,
) -> Observed:
    """Run full precision over uint8 tiles (any batches) and keep what calibration needs.

    With `samples` whole tokens of every tile too, which grow with the number of tiles.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # the arena keeps the largest batch's memory for good
    model = build_graph(student, observe=True).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = observed_outputs(student)
    wanted = ["peaks", *(name for group in outputs.values() for name in group)]
    inputs: dict[str, Seen] = {}
    tiles_seen, peak = 0, 0.0
    patch = np.zeros(3 * student.patch**2)
    for tiles in _in_batches(batches):
        found = dict(zip(wanted, session.run(wanted, {"tiles": tiles}), strict=True))
        peak = max(peak, float(found["peaks"].max()))
        for name, (some, largest, mean) in outputs.items():
            _add(inputs, name, found[some], found[largest], found[mean], samples)
        patch += len(tiles) * _mean_patch(tiles, student.patch)
        tiles_seen += len(tiles)
        on_batch(len(tiles))
    for seen in inputs.values():
        seen.mean /= tiles_seen
        peak = max(peak, seen.range)
    return Observed(inputs, patch / tiles_seen, peak)


def _add(
    inputs: dict[str, Seen], name: str, some: Array, largest: Array, mean: Array, samples: bool
) -> None:
    """Add one batch: tokens (N, t, D), largest and mean (N, D)."""
    width = some.shape[2]
    if name not in inputs:
        inputs[name] = Seen(np.zeros(BINS, np.int64), np.zeros(width, np.float32), np.zeros(width))
    seen = inputs[name]
    seen.counts += count(some)
    seen.largest = np.maximum(seen.largest, largest.max(axis=0))
    seen.mean += mean.sum(axis=0, dtype=np.float64)
    if samples:
        stride = max(1, some.shape[1] // SAMPLED_TOKENS)
        seen.samples.append(some[:, ::stride].reshape(-1, width).copy())


def _mean_patch(tiles: Tiles, size: int) -> npt.NDArray[np.float64]:
    """The mean of all patches of the tiles, (size·size·3,), as the patch embedding sees them."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // size, size, width // size, size, 3)
    mean: npt.NDArray[np.float64] = patches.mean(axis=(0, 1, 3)).ravel()
    return (mean - PIXEL_OFFSET) / PIXEL_STEP


def count(values: Array) -> npt.NDArray[np.int64]:
    """How many of `values` fall into each bin of magnitude, int64 [BINS]."""
    leading = np.ascontiguousarray(values).view(np.uint32).ravel() >> np.uint32(16)
    return np.bincount(leading & np.uint32(BINS - 1), minlength=BINS)


def centres() -> npt.NDArray[np.float64]:
    """The middle of each bin, float64 [BINS]; bins of infinities and NaN included."""
    edges = (np.arange(BINS + 1, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        middle: npt.NDArray[np.float64] = (edges[:-1].astype(np.float64) + edges[1:]) / 2
    return middle


def _in_batches(batches: Iterable[Tiles]) -> Iterator[Tiles]:
    """The same tiles, BATCH at a time."""
    left: list[Tiles] = []
    for tiles in batches:
        for tile in tiles:
            left.append(tile)
            if len(left) == BATCH:
                yield np.stack(left)
                left = []
    if left:
        yield np.stack(left)
