"""Choose the INT8 step of every quantized input from the histogram of its magnitudes.

Every method returns a threshold: the magnitude that 127 stands for. Larger values are clipped.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgelung.export.graph import PIXEL_STEP, SCORES
from edgelung.export.stats import ActivationStats, CalibrationStats, bin_centres

PERCENTILE = 0.9999  # of |x|
LEVELS = 127
MIN_STEP = 2**-14  # the smallest normal number of FP16: a step must not be rounded to zero

Floats = npt.NDArray[np.float64]


def input_scales(stats: CalibrationStats, method: str) -> dict[str, float]:
    """The symmetric INT8 step of each input, by one of METHODS.

    Queries and keys are never clipped: the largest of them decide where attention goes, and
    clipping them moved probabilities twice as far as a coarser step (0.00022 against 0.00010, on
    480 tiles of a trained DeiT-tiny). Pixels need no statistics: (p − 128)/64 in steps of 1/64 are
    exactly the integers −128…127.
    """
    scales = {}
    for name, entry in stats.inputs.items():
        threshold = min_max if name.endswith(SCORES) else METHODS[method]
        scales[name] = max(min(threshold(entry), entry.range) / LEVELS, MIN_STEP)
    return {"patch_embed.proj": 1 / PIXEL_STEP} | scales


def min_max(stats: ActivationStats) -> float:
    """The largest magnitude: nothing is clipped."""
    return stats.range


def percentile(stats: ActivationStats) -> float:
    """The threshold that clips one magnitude in 10,000."""
    values, counts = _filled(stats)
    share = np.cumsum(counts) / counts.sum()
    return float(values[np.searchsorted(share, PERCENTILE)])


def mean_squared_error(stats: ActivationStats) -> float:
    """The threshold with the least squared error of rounding and clipping together."""
    values, counts = _filled(stats)
    widths = values / 128  # of the bins; rounding errors are uniform where the step is wider

    def error(threshold: float) -> float:
        step = threshold / LEVELS
        exact = values - step * np.minimum(np.rint(values / step), LEVELS)
        rounding = np.where((widths > step) & (values < threshold), step**2 / 12, exact**2)
        return float((rounding * counts).sum())

    return _best(error, stats.range)


def entropy(stats: ActivationStats) -> float:
    """The threshold whose clipped and rounded histogram diverges least from the original.

    Kullback-Leibler divergence over 2,048 even bins. Source: Migacz, '8-bit inference with
    TensorRT' (2017).
    """
    bins = 2048
    whole = _even(stats, bins)
    best, least = stats.range, np.inf
    for kept in range(LEVELS + 1, bins + 1, 16):
        reference = whole[:kept].copy()
        reference[-1] += whole[kept:].sum()
        # 128 levels, each spread evenly over its bins that are not empty.
        level = np.arange(kept) * (LEVELS + 1) // kept
        full = whole[:kept] > 0
        share = np.bincount(level, whole[:kept]) / np.maximum(np.bincount(level, full), 1)
        rounded = np.where(full, share[level], 0)
        if rounded.sum() == 0:
            continue
        p, q = reference / reference.sum(), rounded / rounded.sum()
        some = p > 0
        # A clipped tail may fall on an empty bin, where q is 0.
        divergence = float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())
        if divergence < least:
            best, least = stats.range * kept / bins, divergence
    return best


METHODS: dict[str, Callable[[ActivationStats], float]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mean_squared_error,
}


def _filled(stats: ActivationStats) -> tuple[Floats, Floats]:
    """Centre and count of the bins that are not empty."""
    occupied = np.flatnonzero(stats.counts)
    return np.minimum(bin_centres()[occupied], stats.range), stats.counts[occupied].astype(
        np.float64
    )


def _even(stats: ActivationStats, bins: int) -> Floats:
    """The histogram over even bins of 0…range; the count of a wide bin is spread over them.

    Zeros are left out, as TensorRT does: they are exact at any step.
    """
    edges = (np.arange(len(stats.counts) + 1, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    occupied = np.flatnonzero(stats.counts[1:]) + 1
    if len(occupied) == 0:
        return np.zeros(bins)
    upper = np.minimum(edges[occupied + 1].astype(np.float64), stats.range)
    lower = np.minimum(edges[occupied].astype(np.float64), upper)
    total = np.concatenate([[0.0], np.cumsum(stats.counts[occupied])])
    # Interpolate the cumulative count linearly between the edges of the bins.
    x = np.stack([lower, np.maximum(upper, lower)], axis=1).ravel()
    y = np.stack([total[:-1], total[1:]], axis=1).ravel()
    cumulative = np.interp(np.linspace(0, stats.range, bins + 1), x, y, left=0.0)
    spread: Floats = np.diff(cumulative)
    return spread


def _best(error: Callable[[float], float], largest: float) -> float:
    """The threshold with the least error, of 100 up to `largest` in equal ratios."""
    if largest <= 0:
        return largest
    candidates = largest * np.geomspace(0.02, 1.0, 100)
    return float(min(candidates, key=error))
