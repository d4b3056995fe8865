"""Sensitivity: the linear that was spoilt leads the ranking; the switches are the real thing."""

import numpy as np
import pytest

from edgelung.artifacts.manifest import Calibration
from edgelung.core.precision import Precision
from edgelung.engines.onnxruntime import CPU, open_session
from edgelung.export.graph import build_graph, quantizable
from edgelung.export.graph_stages import build_switched_stages, stage_parts
from edgelung.export.plan import Plan
from edgelung.export.ranges import input_scales
from edgelung.export.sensitivity import divergence, measurements, sensitivity
from edgelung.export.stats import collect_stats
from edgelung.export.student import Student


@pytest.fixture(scope="module")
def plan(student: Student, pixels: np.ndarray, calibration_record: Calibration) -> Plan:
    scales = input_scales(collect_stats(student, [pixels], 1, lambda n: None), "min-max")
    return Plan(student, scales | {"blocks.1.mlp.fc2": 3.0}, {}, 1.0, 1.0, calibration_record)


def test_the_spoilt_linear_leads(plan: Plan, pixels: np.ndarray) -> None:
    steps: list[int] = []
    found = sensitivity(plan, pixels[:8], 1, steps.append)
    assert len(steps) == measurements(plan)
    assert found.linears[0].name == "blocks.1.mlp.fc2"
    assert found.blocks[0].name == "blocks.1"
    worst, second = found.linears[:2]
    assert worst.alone > 10 * second.alone
    assert worst.all_but < 0.1 * found.everything
    assert {part.name for part in found.linears} == set(quantizable(plan.student))
    assert [part.name for part in found.blocks].count("blocks.2") == 1


def test_the_switched_stages_are_the_graph_that_ships(plan: Plan, pixels: np.ndarray) -> None:
    """All on is INT8, all off is full precision, one on is that one alone."""

    def run(graph) -> np.ndarray:
        session = open_session(graph.SerializeToString(), CPU, 1)
        return session.run(["probs"], {"tiles": pixels[:4]})[0]

    def run_stages(quantized: np.ndarray) -> np.ndarray:
        switches = dict(zip(plan.scales, quantized, strict=True))
        values = pixels[:4]
        parts = stage_parts(plan.student, plan.scales)
        stages = build_switched_stages(plan.student, plan.scales)
        for stage, names in zip(stages, parts, strict=True):
            session = open_session(stage.SerializeToString(), CPU, 1)
            first = session.get_inputs()[0].name
            inputs = {first: values, "quantized": np.array([switches[name] for name in names])}
            values = session.run(None, inputs)[0]
        return values

    names = list(plan.scales)
    one = np.array([name == "blocks.1.mlp.fc2" for name in names])
    scales = {"blocks.1.mlp.fc2": plan.scales["blocks.1.mlp.fc2"]}
    for quantized, graph in (
        (np.ones(len(names), bool), plan.graph()),
        (np.zeros(len(names), bool), build_graph(plan.student)),
        (one, build_graph(plan.student, precision=Precision.INT8, input_scales=scales)),
    ):
        np.testing.assert_allclose(run_stages(quantized), run(graph), atol=5e-3)


def test_divergence() -> None:
    p = np.array([[0.5, 0.5]])
    assert divergence(p, p) == 0
    assert divergence(np.array([[0.25, 0.75]]), p) == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )
