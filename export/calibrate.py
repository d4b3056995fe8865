"""INT8 steps for the inputs of the linears, from validation tiles."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgelung.engines.base import Tiles
from edgelung.export.graph import PIXEL_STEP, build_graph, linear_names
from edgelung.export.student import Student

# From here on FP16 (largest value 65,504) is too close to overflow to trust.
HALF_LIMIT = 32_000.0


@dataclass(frozen=True)
class Observed:
    """What full precision met on the calibration tiles.

    `ranges`: largest |input| of each linear by name. `peak`: largest |activation| anywhere, the
    residual stream and attention scores included.
    """

    ranges: dict[str, float]
    peak: float


def observe(
    student: Student, batches: Iterable[Tiles], threads: int, on_batch: Callable[[int], None]
) -> Observed:
    """Run full precision over the tiles and keep the extremes (min-max calibration).

    A maximum over tiles is one number, whatever the batch size and the number of tiles.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = build_graph(student, observe=True).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = linear_names(student)
    largest, peak = np.zeros(len(names)), 0.0
    for tiles in batches:
        ranges, peaks = session.run(["ranges", "peaks"], {"tiles": tiles})  # (linears, N), (., N)
        largest = np.maximum(largest, ranges.max(axis=1))
        peak = max(peak, float(ranges.max()), float(peaks.max()))
        on_batch(len(tiles))
    return Observed(dict(zip(names, largest.tolist(), strict=True)), peak)


def input_scales(ranges: dict[str, float]) -> dict[str, float]:
    """The symmetric INT8 step of each linear's input, from its range.

    Pixels need no observation: (p − 128)/64 in steps of 1/64 are the integers −128…127, exactly.
    """
    scales = {name: max(largest, 1e-6) / 127 for name, largest in ranges.items()}
    return scales | {"patch_embed.proj": 1 / PIXEL_STEP}
