"""INT8 steps for what can be quantized, from the histograms of its magnitudes.

Every method answers with the magnitude that 127 stands for; what lies beyond it is clipped.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgelung.export.graph import PIXEL_STEP, SCORES
from edgelung.export.stats import Observed, Seen, centres

# From here on FP16 (largest value 65,504) is too close to overflow to trust.
HALF_LIMIT = 32_000.0
PERCENTILE = 0.9999  # of |x|
LEVELS = 127
LEAST_STEP = 2**-14  # the smallest normal number of FP16: a step must not be rounded to nothing

Floats = npt.NDArray[np.float64]


def input_scales(observed: Observed, method: str) -> dict[str, float]:
    """The symmetric INT8 step of each input by one of METHODS.

    Queries and keys are not clipped, whatever the method: the largest of them decide where
    attention goes, and clipping them moved probabilities twice as far as rounding them coarser
    (0.00022 against 0.00010, on 480 tiles of a trained DeiT-tiny).
    Pixels need no observation: (p − 128)/64 in steps of 1/64 are the integers −128…127, exactly.
    """
    scales = {}
    for name, seen in observed.inputs.items():
        threshold = min_max if name.endswith(SCORES) else METHODS[method]
        scales[name] = max(min(threshold(seen), seen.range) / LEVELS, LEAST_STEP)
    return {"patch_embed.proj": 1 / PIXEL_STEP} | scales


def min_max(seen: Seen) -> float:
    """Nothing is clipped."""
    return seen.range


def percentile(seen: Seen) -> float:
    """One magnitude in 10,000 is clipped."""
    values, counts = _filled(seen)
    share = np.cumsum(counts) / counts.sum()
    return float(values[np.searchsorted(share, PERCENTILE)])


def mean_squared_error(seen: Seen) -> float:
    """The threshold with the least squared error of rounding and clipping together."""
    values, counts = _filled(seen)
    widths = values / 128  # of the bins: where a step is finer, rounding errors are uniform

    def error(threshold: float) -> float:
        step = threshold / LEVELS
        exact = values - step * np.minimum(np.rint(values / step), LEVELS)
        rounding = np.where((widths > step) & (values < threshold), step**2 / 12, exact**2)
        return float((rounding * counts).sum())

    return _best(error, seen.range)


def entropy(seen: Seen) -> float:
    """The threshold whose clipped and rounded histogram diverges least from the whole one.

    Kullback-Leibler over 2,048 even bins, as in Migacz, '8-bit inference with TensorRT' (2017).
    """
    bins = 2048
    whole = _even(seen, bins)
    best, least = seen.range, np.inf
    for kept in range(LEVELS + 1, bins + 1, 16):
        reference = whole[:kept].copy()
        reference[-1] += whole[kept:].sum()
        # 128 levels, each spread evenly over those of its bins that are not empty.
        level = np.arange(kept) * (LEVELS + 1) // kept
        full = whole[:kept] > 0
        share = np.bincount(level, whole[:kept]) / np.maximum(np.bincount(level, full), 1)
        rounded = np.where(full, share[level], 0)
        if rounded.sum() == 0:
            continue
        p, q = reference / reference.sum(), rounded / rounded.sum()
        some = p > 0
        # A clipped tail may fall on an empty bin: it then counts as nearly impossible.
        divergence = float((p[some] * np.log(p[some] / np.maximum(q[some], 1e-9))).sum())
        if divergence < least:
            best, least = seen.range * kept / bins, divergence
    return best


METHODS: dict[str, Callable[[Seen], float]] = {
    "min-max": min_max,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mean_squared_error,
}


def _filled(seen: Seen) -> tuple[Floats, Floats]:
    """Middle and count of the bins that hold something."""
    some = np.flatnonzero(seen.counts)
    return np.minimum(centres()[some], seen.range), seen.counts[some].astype(np.float64)


def _even(seen: Seen, bins: int) -> Floats:
    """The histogram over even bins of 0 … range; a wide bin's count is spread over those it covers.

    Zeros are left out, as TensorRT does: they are exact at any step.
    """
    edges = (np.arange(len(seen.counts) + 1, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    some = np.flatnonzero(seen.counts[1:]) + 1
    if len(some) == 0:
        return np.zeros(bins)
    upper = np.minimum(edges[some + 1].astype(np.float64), seen.range)
    lower = np.minimum(edges[some].astype(np.float64), upper)
    total = np.concatenate([[0.0], np.cumsum(seen.counts[some])])
    # The cumulative count as a polyline through the bins' edges, read off at the even edges.
    x = np.stack([lower, np.maximum(upper, lower)], axis=1).ravel()
    y = np.stack([total[:-1], total[1:]], axis=1).ravel()
    cumulative = np.interp(np.linspace(0, seen.range, bins + 1), x, y, left=0.0)
    spread: Floats = np.diff(cumulative)
    return spread


def _best(error: Callable[[float], float], largest: float) -> float:
    """The best of 100 thresholds up to `largest`, evenly spaced in their logarithm."""
    if largest <= 0:
        return largest
    candidates = largest * np.geomspace(0.02, 1.0, 100)
    return float(min(candidates, key=error))
