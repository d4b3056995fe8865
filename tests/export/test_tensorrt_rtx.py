"""TensorRT-RTX takes the INT8 graphs, sees every linear quantized, builds them without a GPU."""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from edgelung.artifacts.manifest import Calibration
from edgelung.core.precision import Precision
from edgelung.engines.base import GraphBytes
from edgelung.engines.tensorrt.build import Profile, build_engine
from edgelung.engines.tensorrt.flavour import load_flavour
from edgelung.export.graph import build_graph
from edgelung.export.plan import Plan
from edgelung.export.ranges import input_scales
from edgelung.export.stats import collect_stats
from edgelung.export.student import Student

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")


@pytest.mark.parametrize(
    ("precision", "card"),
    [
        (Precision.INT8, "SM86"),
        (Precision.INT8_FP16, "SM86"),
        (Precision.FP8, "SM89"),
        (Precision.FP8, "SM120"),
    ],
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
    # All blocks but the last have both products of attention in FP8, and the scores in a CPU's INT8
    # file; of FP8 the patch embedding stays FP16.
    blocks = student.depth - 1
    intended = len(scales) + (blocks - 1 if fp8 else -blocks * on_fp16)

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
    more = 0 if on_fp16 else 2 * blocks + 1
    assert len(eight) == intended + more
    # The other products of activations, and the head; of FP8 the patch embedding.
    activations = 2 * student.depth - (2 * blocks if fp8 else 0 if on_fp16 else blocks)
    assert len(products) - len(eight) == activations + 1 + fp8

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("tiles", (1, 64, 64, 3), (4, 64, 64, 3), (8, 64, 64, 3))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, card), 0)
    assert builder.build_serialized_network(network, config) is not None, "refused"


@pytest.mark.parametrize("target", ["sm_89", "sm_120"])
def test_attention_in_fp8_is_one_kernel(make_student: Callable[..., Student], target: str) -> None:
    """Of every block but the last, which stays in FP16. The engine holds its kernels' sources."""
    student = make_student(size=128, width=192, depth=2)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    scales = input_scales(collect_stats(student, [tiles], 1, lambda n: None), "min-max")
    del scales["patch_embed.proj"]

    def fused(scales: dict[str, float]) -> Counter:
        graph = build_graph(student, precision=Precision.FP8, input_scales=scales)
        data = GraphBytes(graph.SerializeToString())
        rtx = load_flavour("tensorrt-rtx")
        plan = build_engine(rtx, data, Profile(opt_batch=4, max_batch=8), target=target).plan
        types = re.findall(rb"Kernel_traits = fmha::.*?_(\w+?mma_\w+)_traits", plan, re.DOTALL)
        return Counter(kind.decode() for kind in types)

    assert fused(scales) == {"qmma_e4m3_fp32": 1, "hmma_fp32": 1}
    linears = {name: scale for name, scale in scales.items() if not name.endswith("scores")}
    assert fused(linears) == {"hmma_fp32": 2}
