"""Sensitivity: the linear that was spoilt leads the ranking; the switches are the real thing."""

import numpy as np
import pytest

from edgelung.export.calibrate import input_scales
from edgelung.export.graph import build_graph, quantizable
from edgelung.export.quantize import Plan
from edgelung.export.sensitivity import divergence, runs, sensitivity
from edgelung.export.stats import observe
from edgelung.export.student import Student


@pytest.fixture(scope="module")
def plan(student: Student, pixels: np.ndarray) -> Plan:
    scales = input_scales(observe(student, [pixels], 1, lambda n: None), "min-max")
    return Plan(student, scales | {"blocks.1.mlp.fc2": 3.0}, {}, 1.0, 1.0, {})


def test_the_spoilt_linear_leads(plan: Plan, pixels: np.ndarray) -> None:
    steps: list[int] = []
    found = sensitivity(plan, pixels[:8], 1, steps.append)
    assert len(steps) == runs(plan)
    assert found["linears"][0]["name"] == "blocks.1.mlp.fc2"
    assert found["blocks"][0]["name"] == "blocks.1"
    worst, second = found["linears"][:2]
    assert worst["alone"] > 10 * second["alone"]
    assert worst["all_but"] < 0.1 * found["all"]
    assert {part["name"] for part in found["linears"]} == set(quantizable(plan.student))
    assert [part["name"] for part in found["blocks"]].count("blocks.2") == 1


def test_the_switched_graph_is_the_one_that_ships(plan: Plan, pixels: np.ndarray) -> None:
    """All on is INT8, all off is full precision, one on is that one alone."""
    import onnxruntime as ort

    def run(graph, **inputs: np.ndarray) -> np.ndarray:
        text = graph.SerializeToString()
        session = ort.InferenceSession(text, providers=["CPUExecutionProvider"])
        return session.run(["probs"], {"tiles": pixels[:4], **inputs})[0]

    switched = build_graph(plan.student, input_scales=plan.scales, switches=True)
    names = list(plan.scales)
    one = np.array([name == "blocks.1.mlp.fc2" for name in names])
    scales = {"blocks.1.mlp.fc2": plan.scales["blocks.1.mlp.fc2"]}
    for quantized, graph in (
        (np.ones(len(names), bool), plan.graph()),
        (np.zeros(len(names), bool), build_graph(plan.student)),
        (one, build_graph(plan.student, input_scales=scales)),
    ):
        np.testing.assert_allclose(run(switched, quantized=quantized), run(graph), atol=5e-3)


def test_divergence() -> None:
    p = np.array([[0.5, 0.5]])
    assert divergence(p, p) == 0
    assert divergence(np.array([[0.25, 0.75]]), p) == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )
