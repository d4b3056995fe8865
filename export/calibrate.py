"""INT8 steps for the inputs of the linears, from validation tiles."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx
from edgelung.export.graph import PIXEL_STEP, build_graph, linear_names
from edgelung.export.student import Student

from edgelung.engines.base import Tiles

# From here on FP16 (largest value 65,504) is too close to overflow to trust.
HALF_LIMIT = 32_000.0


def observe_ranges(
    student: Student, batches: Iterable[Tiles], threads: int, on_batch: Callable[[int], None]
) -> dict[str, float]:
    """Largest |input| of every linear over the tiles, by name (min-max calibration).

    The maximum over tiles is one number a linear, whatever the batch size and the number of tiles.
    """
    model = build_graph(student, observe=True)
    ranges = _observe(model, batches, threads, on_batch)  # (linears, tiles)
    return dict(zip(linear_names(student), ranges.max(axis=1).tolist(), strict=True))


def input_scales(ranges: dict[str, float]) -> dict[str, float]:
    """The symmetric INT8 step of each linear's input, from its range.

    Pixels need no observation: (p − 128)/64 in steps of 1/64 are the integers −128…127, exactly.
    """
    scales = {name: max(largest, 1e-6) / 127 for name, largest in ranges.items()}
    return scales | {"patch_embed.proj": 1 / PIXEL_STEP}


def _observe(
    model: onnx.ModelProto, batches: Iterable[Tiles], threads: int, on_batch: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = []
    for tiles in batches:
        found.append(session.run(["ranges"], {"tiles": tiles})[0])
        on_batch(len(tiles))
    return np.concatenate(found, axis=1)
