"""The deployed graph: torch's numbers, whole operators, Q/DQ only where it belongs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper

from edgelung.artifacts.graph_profile import Role, check_graph
from edgelung.artifacts.onnx_wire import GraphError
from edgelung.artifacts.run import RunFolder
from edgelung.core.precision import Precision
from edgelung.engines.base import GraphBytes
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.evaluation.known import fit_known
from edgelung.export.eight_bit import FP8, quantize_weight
from edgelung.export.graph import build_graph, linear_names, quantizable
from edgelung.export.graph_writer import OPSET, float_info
from edgelung.export.ranges import input_scales
from edgelung.export.stats import collect_stats
from edgelung.export.student import Student, read_student

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def deit(size: int = 64, width: int = 96, depth: int = 3, heads: int = 3) -> torch.nn.Module:
    """A small distilled DeiT whose every parameter is random, biases and norms included."""
    torch.manual_seed(0)
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=3,
        img_size=size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.08 if p.ndim > 1 else 0.1))
    return model


def student_of(model: torch.nn.Module, size: int = 64, heads: int = 3) -> Student:
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    return Student("test", ("a", "b", "c"), size, 16, heads, MEAN, STD, weights)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return deit()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)


def torch_probabilities(
    model: torch.nn.Module, pixels: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    images = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    with torch.no_grad():
        return (model(images) / temperature).softmax(1).numpy()


def run_graph(graph: onnx.ModelProto, pixels: np.ndarray, folder: Path) -> np.ndarray:
    return OnnxRuntimeEngine(GraphBytes(graph.SerializeToString()), 1).infer(pixels).probabilities


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FP32, 2e-6), (Precision.FP16, 5e-3)]
)
def test_torch_and_the_graph_agree(
    model, pixels, tmp_path: Path, temperature: float, precision: Precision, tolerance: float
) -> None:
    graph = build_graph(student_of(model), temperature=temperature, precision=precision)
    expected = torch_probabilities(model, pixels, temperature)
    assert expected.std() > 0.03, "the comparison needs probabilities that differ"
    np.testing.assert_allclose(run_graph(graph, pixels, tmp_path), expected, atol=tolerance)


def test_other_shapes_agree_too(tmp_path: Path) -> None:
    model = deit(size=48, width=64, depth=1, heads=2)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 48, 48, 3), np.uint8)
    graph = build_graph(student_of(model, size=48, heads=2))
    expected = torch_probabilities(model, pixels)
    np.testing.assert_allclose(run_graph(graph, pixels, tmp_path), expected, atol=2e-6)


def test_the_contract(model) -> None:
    graph = build_graph(student_of(model))
    assert graph.opset_import[0].version == OPSET >= 20
    (entry,), (result,) = graph.graph.input, graph.graph.output
    assert (entry.name, entry.type.tensor_type.elem_type) == ("tiles", onnx.TensorProto.UINT8)
    shape = [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
    assert shape == ["N", 64, 64, 3]
    assert (result.name, result.type.tensor_type.elem_type) == ("probs", onnx.TensorProto.FLOAT)
    kinds = Counter(node.op_type for node in graph.graph.node)
    assert kinds["LayerNormalization"] == 2 * 3 + 1
    assert kinds["Gelu"] == 3
    assert not {"Pow", "Erf", "ReduceMean", "QuantizeLinear"} & set(kinds)
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def constants(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}


def test_half_precision_is_typed_and_its_weights_are_normal_numbers(model) -> None:
    graph = build_graph(student_of(model), precision=Precision.FP16)
    found = constants(graph)
    floats = {name: value for name, value in found.items() if value.dtype.kind == "f"}
    assert {n for n, v in floats.items() if v.dtype != np.float16} == {"head.weight", "head.bias"}
    folded = found["patch_embed.proj.weight"]
    own = model.state_dict()["patch_embed.proj.weight"].numpy().astype(np.float16)
    smallest_normal = np.finfo(np.float16).tiny

    def subnormal(values: np.ndarray) -> float:
        return float((np.abs(values) < smallest_normal).mean())

    assert subnormal(folded) <= subnormal(own) + 1e-3
    naive = (own.astype(np.float64) / (255 * np.reshape(STD, (1, 3, 1, 1)))).astype(np.float16)
    assert subnormal(naive) > 10 * subnormal(folded), "the fold would not have mattered"


@pytest.fixture(scope="module")
def quantized(model, pixels) -> onnx.ModelProto:
    stats = collect_stats(student_of(model), [pixels], 1, lambda n: None)
    scales = input_scales(stats, "min-max")
    return build_graph(student_of(model), precision=Precision.INT8, input_scales=scales)


def test_int8_stays_close(model, pixels, quantized, tmp_path: Path) -> None:
    found = run_graph(quantized, pixels, tmp_path)
    np.testing.assert_allclose(found, torch_probabilities(model, pixels), atol=0.05)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_FP16])
def test_q_dq_stands_on_linears_and_scores_and_nowhere_else(
    model, pixels, precision: Precision
) -> None:
    student = student_of(model)
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    scales = input_scales(stats, "min-max")
    quantized = build_graph(student, precision=precision, input_scales=scales)
    nodes = {output: node for node in quantized.graph.node for output in node.output}
    found = constants(quantized)
    names, scores = linear_names(student), 2
    assert len(names) == 1 + 2 * 4 + 5
    assert len(quantizable(student)) == len(names) + scores == len(scales)
    # On a CPU a linear that is split is a product a part.
    on_fp16 = precision is Precision.INT8_FP16
    parts = {} if on_fp16 else {"qkv": 3, "kv": 2}
    products = [
        f"{name}.{i}" if several else name
        for name in names
        for several in [parts.get(name.split(".")[-1])]
        for i in range(several or 1)
    ]
    for name in products:
        node = next(n for n in quantized.graph.node if n.name == name)
        assert node.op_type == "MatMul"
        data, weight = nodes[node.input[0]], nodes[node.input[1]]
        while data.op_type in ("Reshape", "Transpose"):  # of pixels
            data = nodes[data.input[0]]
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert nodes[data.input[0]].op_type == "QuantizeLinear"
        assert found[weight.input[0]].dtype == np.int8
        assert found[weight.input[1]].ndim == 1, "per channel"
    kinds = Counter(node.op_type for node in quantized.graph.node)
    assert kinds["QuantizeLinear"] == len(names) + 2 * scores
    assert kinds["DequantizeLinear"] == len(names) + len(products) + 2 * scores
    attentions = [nodes[n.input[0]] for n in quantized.graph.node if n.op_type == "Softmax"][:-1]
    for i, asked in enumerate(attentions):
        queries, keys = nodes[asked.input[0]], nodes[nodes[asked.input[1]].input[0]]
        expected = "DequantizeLinear" if i < scores else "Transpose"
        assert queries.op_type == keys.op_type == expected
        assert i == scores or queries.input[1:] == keys.input[1:], "one step for both"
    assert kinds["Split"] == (3 if on_fp16 else 0)
    for name, value in found.items():
        if value.dtype == np.int8 and not name.endswith(".weight"):
            assert (value == 0).all(), "symmetric: TensorRT takes no other zero point"


def test_quantized_pixels_are_exact(quantized) -> None:
    """(p − 128)/64 in steps of 1/64 are integers, so the patch embedding sees the very pixels."""
    found = constants(quantized)
    assert found["patch_embed.proj.input_scale"] == 1 / 64
    assert found["patch_embed.proj.input_scale"].shape == ()  # one step for all, says ONNX
    every = np.arange(256)
    steps = (every - 128) / 64 / found["patch_embed.proj.input_scale"]
    assert (steps == np.rint(steps)).all()
    assert steps.min() == -128
    assert steps.max() == 127


def test_fp8_stays_close(model, pixels, tmp_path: Path) -> None:
    student = student_of(model)
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    scales = {name: input_scales(stats, "min-max")[name] for name in linear_names(student)[1:]}
    means = {name: entry.mean for name, entry in stats.inputs.items()}
    graph = build_graph(student, precision=Precision.FP8, input_scales=scales, input_means=means)
    types = Counter(t.data_type for t in graph.graph.initializer if t.name.endswith(".weight"))
    assert types[onnx.TensorProto.FLOAT8E4M3FN] == len(scales)
    found = run_graph(graph, pixels, tmp_path)
    expected = torch_probabilities(model, pixels)
    assert 1e-5 < np.abs(found - expected).max() < 0.1


def test_fp8_attention_has_both_factors_of_both_products(model, pixels, tmp_path: Path) -> None:
    """As TensorRT fuses it: softmax at 1/448, its queries scaled before they are rounded."""
    student = student_of(model)
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    scales = input_scales(stats, "min-max")
    plain, fp8 = (
        build_graph(
            student,
            precision=Precision.FP8,
            input_scales={n: s for n, s in scales.items() if attention or "scores" not in n},
        )
        for attention in (False, True)
    )
    producers = {name: node for node in fp8.graph.node for name in node.output}
    of_attention = (n for n in fp8.graph.node if n.name.startswith("MatMul"))  # linears have names
    factors = []
    for product in list(of_attention)[: 2 * (student.depth - 1)]:
        for name in product.input:
            node = producers[name]
            if node.op_type == "Transpose":  # of the keys
                node = producers[node.input[0]]
            assert node.op_type == "DequantizeLinear"
            factors.append(node.input[1])
    assert factors.count("blocks.0.attn.softmax_scale") == 1
    assert constants(fp8)["blocks.0.attn.softmax_scale"] == np.float16(1 / 448)
    # Values may be eight times as large as their weighted means before they are clipped.
    most = 448 * constants(fp8)["blocks.0.attn.values_scale"].astype(float)
    assert most == pytest.approx(8 * 127 * scales["blocks.0.attn.proj"], rel=1e-3)
    expected = torch_probabilities(model, pixels)
    for graph in (plain, fp8):
        found = run_graph(graph, pixels, tmp_path)
        assert 1e-5 < np.abs(found - expected).max() < 0.1


def test_values_of_attention_stay_within_the_room_that_fp8_leaves(model, pixels) -> None:
    """The bound of `quantize_fp8_values`, on a model whose values were not looked at."""
    student = student_of(model)
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    scales = input_scales(stats, "min-max")
    graph = build_graph(student)
    nodes = [n for n in graph.graph.node if n.name.endswith("attn.qkv.2")]
    products = {node.output[0] for node in nodes}
    biased = [n for n in graph.graph.node if n.input[0] in products]
    graph.graph.output.extend(float_info(n.output[0], ["N", None, None]) for n in biased)
    engine = OnnxRuntimeEngine(GraphBytes(graph.SerializeToString()), 1)
    _, *values = engine.run(pixels)
    assert len(values) == student.depth - 1
    for i, found in enumerate(values):
        assert np.abs(found).max() < 8 * 127 * scales[f"blocks.{i}.attn.proj"]


def test_fp8_keeps_four_bits_of_a_weight_however_small() -> None:
    weight = np.float32([[1.0, 1 / 64, 0.3], [-2000.0, 1.0, 0.0]])
    rounded, steps = quantize_weight(weight, FP8)
    assert rounded.dtype == FP8.dtype
    assert np.abs(rounded.astype(np.float32)).max() == 448
    back = rounded.astype(np.float32) * steps[:, None]
    np.testing.assert_allclose(back[0], weight[0], rtol=1 / 16)
    np.testing.assert_allclose(back[1], weight[1], atol=2000 / 448 / 512, rtol=1 / 16)


def test_input_scales_need_a_precision_of_eight_bits(model) -> None:
    with pytest.raises(ValueError, match="fp16 has no 8-bit type"):
        build_graph(student_of(model), precision=Precision.FP16, input_scales={"head": 0.1})


def test_weights_are_rounded_per_channel() -> None:
    weight = np.array([[1.0, 0.5, -0.25], [-100.0, 50.0, 0.0]])
    integers, steps = quantize_weight(weight)
    np.testing.assert_allclose(steps, [1 / 127, 100 / 127], rtol=1e-6)
    assert integers.tolist() == [[127, 64, -32], [-127, 64, 0]]
    assert (quantize_weight(-weight)[0] == -integers).all()
    zero, step = quantize_weight(np.zeros((2, 2)))
    assert (zero == 0).all()
    assert (step == 1).all()


def test_a_run_is_read_without_torch(run: Path) -> None:
    student = read_student(RunFolder(run))
    assert (student.size, student.patch, student.heads) == (64, 16, 3)
    assert (student.width, student.depth, student.tokens) == (192, 12, 18)
    assert student.classes == ("lung_aca", "lung_n", "lung_scc")


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize(
    ("size", "width", "depth", "heads"),
    [(32, 192, 3, 3), (32, 384, 2, 6), (32, 768, 1, 12), (224, 96, 2, 3)],
)
def test_graphs_of_all_student_sizes_fit_the_profile(
    precision: Precision, size: int, width: int, depth: int, heads: int
) -> None:
    student = student_of(deit(size, width, depth, heads), size, heads)
    about = precision.about
    scales = dict.fromkeys(quantizable(student), 0.1) if about.weights != about.base else {}
    graph = build_graph(student, precision=precision, input_scales=scales)
    check_graph(graph.SerializeToString(), Role.CLASSIFIER, {"size": size, "classes": 3})


@pytest.fixture(scope="module")
def knowing(model: torch.nn.Module, pixels: np.ndarray) -> Student:
    """The student, with what the features of some tiles look like."""
    student = student_of(model)
    features = features_after(model, pixels, block=2)
    return replace(student, known=fit_known(features, np.array([0, 0, 1, 1, 2, 2]), block=2))


def features_after(model: torch.nn.Module, pixels: np.ndarray, block: int) -> np.ndarray:
    """The mean patch token after a block, in torch: (N, D)."""
    found: list[torch.Tensor] = []
    hook = model.blocks[block - 1].register_forward_hook(lambda *call: found.append(call[2]))
    torch_probabilities(model, pixels)
    hook.remove()
    return found[0][:, 2:].mean(dim=1).numpy()


def other_pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 128, (5, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FP32, 1e-4), (Precision.FP16, 3e-2)]
)
def test_the_graph_computes_the_score(
    model, knowing: Student, precision: Precision, tolerance: float
) -> None:
    graph = build_graph(knowing, precision=precision)
    output = OnnxRuntimeEngine(GraphBytes(graph.SerializeToString()), 1).infer(other_pixels())
    expected = knowing.known.scores(features_after(model, other_pixels(), block=2))
    assert output.ood is not None
    assert output.ood.shape == (5,)
    np.testing.assert_allclose(output.ood, expected, rtol=tolerance)


def test_the_score_changes_no_probability(model, knowing: Student, tmp_path: Path) -> None:
    without = run_graph(build_graph(student_of(model)), other_pixels(), tmp_path)
    with_score = run_graph(build_graph(knowing), other_pixels(), tmp_path)
    np.testing.assert_array_equal(without, with_score)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_a_graph_with_a_score_is_one_that_edgelung_runs(
    knowing: Student, precision: Precision
) -> None:
    data = build_graph(knowing, precision=precision).SerializeToString()
    sizes = {"size": 64, "classes": 3}
    check_graph(data, Role.SCORED_CLASSIFIER, sizes)
    with pytest.raises(GraphError, match="the outputs"):
        check_graph(data, Role.CLASSIFIER, sizes)
    plain = build_graph(replace(knowing, known=None), precision=precision).SerializeToString()
    with pytest.raises(GraphError, match="the outputs"):
        check_graph(plain, Role.SCORED_CLASSIFIER, sizes)
