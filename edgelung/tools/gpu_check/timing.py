"""Timing of calls, and what a part of the check raises if it has no figures."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from edgelung.core.typed_json import Json

Figures = dict[str, Json]  # of one part: what was measured → figures, as they go to the JSON file


class CannotRunError(Exception):
    """Why a part has no figures on this machine."""


def time_calls(work: Callable[[], object], repeats: int, max_seconds: float = 10.0) -> list[float]:
    """Time each of up to `repeats` calls, in seconds, after warming up with a tenth as many.

    After `max_seconds` no further call begins, but at least three are timed.
    """
    for _ in range(max(3, repeats // 10)):
        work()
    seconds: list[float] = []
    while len(seconds) < repeats and (len(seconds) < 3 or sum(seconds) < max_seconds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def percentiles(seconds: Sequence[float]) -> Figures:
    """Return p50, p90 and p99 in milliseconds."""
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99)) * 1e3
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}
