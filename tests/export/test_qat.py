"""Quantization-aware distillation: the torch network is the graph, and training mends its INT8."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgelung.artifacts.manifest import Calibration
from edgelung.core.precision import Precision
from edgelung.export.graph import build_graph
from edgelung.export.plan import Plan
from edgelung.export.ranges import input_scales
from edgelung.export.sensitivity import divergence
from edgelung.export.stats import collect_stats
from edgelung.export.student import Student

torch = pytest.importorskip("torch")

from edgelung.engines.base import GraphBytes  # noqa: E402
from edgelung.engines.onnxruntime import OnnxRuntimeEngine  # noqa: E402
from edgelung.export.qat import Network, distill  # noqa: E402


@pytest.fixture(scope="module")
def plan(student: Student, pixels: np.ndarray, calibration_record: Calibration) -> Plan:
    """Steps twenty times too coarse for every linear but the pixels'."""
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    scales = input_scales(stats, "min-max")
    coarse = {k: v * (1 if k.startswith("patch") else 20) for k, v in scales.items()}
    return Plan(student, coarse, {}, 1.0, 1.0, calibration_record)


def by_graph(graph: onnx.ModelProto, pixels: np.ndarray, folder: Path) -> np.ndarray:
    return OnnxRuntimeEngine(GraphBytes(graph.SerializeToString()), 1).infer(pixels).probabilities


def by_network(student: Student, scales: dict[str, float], pixels: np.ndarray) -> np.ndarray:
    network = Network(student, scales, torch.device("cpu"))
    with torch.no_grad():
        return network.logits(network.tokens(torch.from_numpy(pixels))).softmax(1).numpy()


def test_the_network_is_the_graph(student: Student, pixels: np.ndarray, tmp_path: Path) -> None:
    """Exact, and with each linear rounded: with all of them one value at the edge of a step, which
    falls to either side where sums round elsewhere, moves the next."""
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    exact = by_graph(build_graph(student), pixels, tmp_path)
    np.testing.assert_allclose(by_network(student, {}, pixels), exact, atol=1e-5)
    for name, step in input_scales(stats, "percentile").items():
        graph = build_graph(student, precision=Precision.INT8, input_scales={name: step})
        expected = by_graph(graph, pixels, tmp_path)
        difference = np.abs(by_network(student, {name: step}, pixels) - expected).max()
        assert difference < 0.2 * np.abs(expected - exact).max(), name


def test_training_mends_what_calibration_cannot(
    student: Student, plan: Plan, tmp_path: Path
) -> None:
    untouched = {name: weight.copy() for name, weight in plan.student.weights.items()}
    rng = np.random.default_rng(1)
    unseen = rng.integers(0, 256, (64, 64, 64, 3), np.uint8)
    batches = (rng.integers(0, 256, (16, 64, 64, 3), np.uint8) for _ in range(60))
    shown: list[int] = []
    trained = distill(plan, batches, 60, shown.append, learning_rate=3e-4)
    assert sum(shown) == trained.calibration.qat.tiles == 960
    exact = by_graph(build_graph(student), unseen, tmp_path)
    before = divergence(by_graph(plan.graph(), unseen, tmp_path), exact)
    after = divergence(by_graph(trained.graph(), unseen, tmp_path), exact)
    assert after < 0.75 * before
    assert trained.scales == plan.scales
    assert trained.calibration.method == "min-max"
    for name, weight in untouched.items():  # the plan's own student is left alone
        np.testing.assert_array_equal(plan.student.weights[name], weight)
