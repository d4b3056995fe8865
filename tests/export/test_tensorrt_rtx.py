"""TensorRT-RTX takes the INT8 graphs, sees every linear quantized, builds them without a GPU."""

import numpy as np
import pytest

from edgelung.artifacts.manifest import Calibration
from edgelung.core.precision import Precision
from edgelung.export.plan import Plan
from edgelung.export.ranges import input_scales
from edgelung.export.stats import collect_stats
from edgelung.export.student import Student

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")


@pytest.mark.parametrize(
    ("precision", "card"),
    [(Precision.INT8, "SM86"), (Precision.INT8_FP16, "SM86"), (Precision.FP8, "SM120")],
)
def test_it_builds_with_every_intended_linear_in_eight_bits(
    student: Student,
    pixels: np.ndarray,
    calibration_record: Calibration,
    precision: Precision,
    card: str,
) -> None:
    stats = collect_stats(student, [pixels[:8]], 1, lambda n: None)
    scales = input_scales(stats, "min-max")
    means = {name: entry.mean for name, entry in stats.inputs.items()}
    graph = Plan(student, scales, means, 1.0, 1.0, calibration_record).graph(precision)
    on_fp16 = precision.about.base is Precision.FP16
    fp8 = precision is Precision.FP8
    # Of two blocks the scores, on a CPU's file; of FP8 the patch embedding stays FP16.
    intended = len(scales) - (student.depth - 1) * on_fp16 - fp8

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(graph.SerializeToString())
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]

    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made_by = {layer.get_output(0).name: layer for layer in layers}

    def dequantized(tensor: object) -> bool:
        """Whether it comes out of a DequantizeLinear, looking through reshapes and transposes."""
        layer = made_by.get(tensor.name)
        while layer is not None and layer.type == trt.LayerType.SHUFFLE:
            layer = made_by.get(layer.get_input(0).name)
        return layer is not None and layer.type == trt.LayerType.DEQUANTIZE

    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    eight = [p for p in products if dequantized(p.get_input(0)) and dequantized(p.get_input(1))]
    # On an FP32 base, which is meant for CPUs, queries, keys and values are products of their own.
    more = 0 if on_fp16 else 2 * (student.depth - 1) + 1
    assert len(eight) == intended + more
    # The other products of activations, and the head; of FP8 the patch embedding.
    activations = 2 * student.depth - (0 if on_fp16 else student.depth - 1)
    assert len(products) - len(eight) == activations + 1 + fp8

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("tiles", (1, 64, 64, 3), (4, 64, 64, 3), (8, 64, 64, 3))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, card), 0)
    assert builder.build_serialized_network(network, config) is not None, "refused"
