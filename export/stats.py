"""Statistics of the full-precision activations on the calibration tiles, in bounded memory.

Histograms count the leading 15 bits of each |x| as float32: all of the exponent and seven bits of
the fraction. Such a bin is at most 0.8 % of its value wide and needs no range beforehand, so one
pass is enough, and the counts add up to the same integers whatever the batches are.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgelung.engines.base import Tiles
from edgelung.export.graph import PIXEL_OFFSET, PIXEL_STEP, build_graph, statistics_outputs
from edgelung.export.parallel import map_in_order
from edgelung.export.student import Student

BINS = 2**15
# Tiles per run of the graph, however they arrive: the batch size can then not change a single bit.
BATCH = 8
SAMPLED_TOKENS = 8  # per tile, to measure the error of a scale migration

Array = npt.NDArray[np.float32]


@dataclass
class ActivationStats:
    """Statistics of one input that can be quantized.

    Attributes:
        counts: int64 (BINS,), histogram of |x|.
        largest: float32 (D,), the largest |x| of each channel.
        mean: float64 (D,), the mean of each channel.
        samples: float32 (n, D) each, whole tokens.
    """

    counts: npt.NDArray[np.int64]
    largest: Array
    mean: npt.NDArray[np.float64]
    samples: list[Array] = field(default_factory=list)

    @property
    def range(self) -> float:
        """The largest |x| of all channels."""
        return float(self.largest.max())

    @property
    def tokens(self) -> Array:
        """The samples as one array (n, D)."""
        return np.concatenate(self.samples)


@dataclass(frozen=True)
class CalibrationStats:
    """Statistics of a model in full precision.

    Attributes:
        inputs: by name (`graph.quantizable`), without the patch embedding.
        patch: float64 (P·P·3,), the mean input of the patch embedding, pixels as (p − 128)/64.
        peak: the largest |activation| anywhere, residual stream and attention scores included.
    """

    inputs: dict[str, ActivationStats]
    patch: npt.NDArray[np.float64]
    peak: float


def collect_stats(
    student: Student,
    batches: Iterable[Tiles],
    threads: int,
    on_batch: Callable[[int], None],
    samples: bool = False,
) -> CalibrationStats:
    """Run full precision over tiles and collect what calibration needs.

    Args:
        student: the model.
        batches: uint8 (N, H, W, 3), of any sizes.
        threads: how many batches run at once, on one thread each.
        on_batch: called with the number of tiles after each batch.
        samples: keep whole tokens of every tile too; they grow with the number of tiles.
    """
    run = _runner(student, samples)
    inputs: dict[str, ActivationStats] = {}
    tiles_read, peak = 0, 0.0
    patch = np.zeros(3 * student.patch**2)
    # In the order of the tiles: floating-point sums depend on it.
    for batch in map_in_order(run, _regroup(batches), threads):
        for name, stats in batch.inputs.items():
            _add(inputs, name, stats)
        patch += batch.tiles * batch.mean_patch
        peak = max(peak, batch.peak)
        tiles_read += batch.tiles
        on_batch(batch.tiles)
    for stats in inputs.values():
        stats.mean /= tiles_read
        peak = max(peak, stats.range)
    return CalibrationStats(inputs, patch / tiles_read, peak)


@dataclass(frozen=True)
class _BatchStats:
    """Statistics of one batch; the means of its inputs are sums over the tiles."""

    tiles: int
    inputs: dict[str, ActivationStats]
    mean_patch: npt.NDArray[np.float64]
    peak: float


def _runner(student: Student, samples: bool) -> Callable[[Tiles], _BatchStats]:
    """Return the function that computes the statistics of one batch, for several threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # the arena never releases the memory of the largest batch
    graph = build_graph(student, statistics=True).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    outputs = statistics_outputs(student)
    names = ["peaks", *(name for group in outputs.values() for name in group)]

    def run(tiles: Tiles) -> _BatchStats:
        arrays = dict(zip(names, session.run(names, {"tiles": tiles}), strict=True))
        inputs = {
            name: ActivationStats(
                counts=count(arrays[some]),
                largest=arrays[largest].max(axis=0),
                mean=arrays[mean].sum(axis=0, dtype=np.float64),
                samples=[_sampled(arrays[some])] if samples else [],
            )
            for name, (some, largest, mean) in outputs.items()
        }
        peak = float(arrays["peaks"].max())
        return _BatchStats(len(tiles), inputs, _mean_patch(tiles, student.patch), peak)

    return run


def _sampled(tokens: Array) -> Array:
    """About SAMPLED_TOKENS of the tokens (N, t, D) of each tile, as (n, D)."""
    stride = max(1, tokens.shape[1] // SAMPLED_TOKENS)
    return tokens[:, ::stride].reshape(-1, tokens.shape[2]).copy()


def _add(inputs: dict[str, ActivationStats], name: str, batch: ActivationStats) -> None:
    """Add the statistics of one batch to those of an input."""
    if name not in inputs:
        width = len(batch.largest)
        inputs[name] = ActivationStats(
            np.zeros(BINS, np.int64), np.zeros(width, np.float32), np.zeros(width)
        )
    total = inputs[name]
    total.counts += batch.counts
    total.largest = np.maximum(total.largest, batch.largest)
    total.mean += batch.mean
    total.samples += batch.samples


def _mean_patch(tiles: Tiles, size: int) -> npt.NDArray[np.float64]:
    """The mean of all patches of the tiles, (size·size·3,), as the patch embedding reads them."""
    n, height, width, _ = tiles.shape
    patches = tiles.reshape(n, height // size, size, width // size, size, 3)
    mean: npt.NDArray[np.float64] = patches.mean(axis=(0, 1, 3)).ravel()
    return (mean - PIXEL_OFFSET) / PIXEL_STEP


def count(values: Array) -> npt.NDArray[np.int64]:
    """Count the values in each bin of magnitude: int64 (BINS,)."""
    leading = np.ascontiguousarray(values).view(np.uint32).ravel() >> np.uint32(16)
    return np.bincount(leading & np.uint32(BINS - 1), minlength=BINS)


def bin_centres() -> npt.NDArray[np.float64]:
    """The middle of each bin, float64 (BINS,); bins of infinities and NaN included."""
    edges = (np.arange(BINS + 1, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):
        middle: npt.NDArray[np.float64] = (edges[:-1].astype(np.float64) + edges[1:]) / 2
    return middle


def _regroup(batches: Iterable[Tiles]) -> Iterator[Tiles]:
    """Yield the same tiles in batches of BATCH."""
    waiting: list[Tiles] = []
    for tiles in batches:
        for tile in tiles:
            waiting.append(tile)
            if len(waiting) == BATCH:
                yield np.stack(waiting)
                waiting = []
    if waiting:
        yield np.stack(waiting)
