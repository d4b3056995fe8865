"""Scale migration: nothing changes in full precision, outliers stop to hurt in INT8."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgelung.core.precision import Precision
from edgelung.engines.onnxruntime import CPU, open_session
from edgelung.export.eight_bit import quantize_weight
from edgelung.export.graph import build_graph
from edgelung.export.ranges import input_scales
from edgelung.export.smoothquant import choose_migration, migrate, migration_sites
from edgelung.export.stats import collect_stats
from edgelung.export.student import Student

FACTOR = np.float32(30)


def run(graph, pixels: np.ndarray) -> np.ndarray:
    session = open_session(graph.SerializeToString(), CPU, 1)
    return session.run(["probs"], {"tiles": pixels})[0]


def quantized_graph(student: Student, scales: dict[str, float], means: dict | None = None):
    return build_graph(
        student, precision=Precision.INT8, input_scales=scales, input_means=means or {}
    )


def stressed(student: Student) -> Student:
    """A few channels of every LayerNorm scaled up and compensated in the linear that reads them."""
    weights = dict(student.weights)
    for i in range(student.depth):
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            for part in ("weight", "bias"):
                name = f"blocks.{i}.{norm}.{part}"
                weights[name] = weights[name].copy()
                weights[name][[3, 40, 77]] *= FACTOR
            name = f"blocks.{i}.{linear}.weight"
            weights[name] = weights[name].copy()
            weights[name][:, [3, 40, 77]] /= FACTOR
    return replace(student, weights=weights)


def repaired(student: Student, pixels: np.ndarray):
    stats = collect_stats(student, [pixels], 1, lambda n: None, samples=True)
    migration, strengths = choose_migration(student, stats)
    return migrate(student, migration), strengths


def int8(student: Student, pixels: np.ndarray, means: bool = False) -> np.ndarray:
    stats = collect_stats(student, [pixels], 1, lambda n: None, samples=True)
    mean = {name: entry.mean for name, entry in stats.inputs.items()} if means else {}
    scales = input_scales(stats, "min-max")
    return run(quantized_graph(student, scales, mean), pixels)


def test_migration_changes_nothing_in_full_precision(student: Student, pixels) -> None:
    migrated, strengths = repaired(student, pixels)
    assert set(strengths) <= set(migration_sites(student))
    assert strengths, "random weights leave something to migrate"
    expected = run(build_graph(student), pixels)
    np.testing.assert_allclose(run(build_graph(migrated), pixels), expected, atol=2e-6)
    largest = [np.abs(migrated.weights[k] - student.weights[k]).max() for k in student.weights]
    assert max(largest) > 0.01, "it did change the weights"


def test_outliers_lose_plain_int8_and_not_the_repaired(student: Student, pixels) -> None:
    """×30 in three channels leaves the others four steps of the 127."""
    expected = run(build_graph(student), pixels)
    stress = stressed(student)
    np.testing.assert_allclose(run(build_graph(stress), pixels), expected, atol=2e-6)

    def distance(probabilities: np.ndarray) -> float:
        return float(np.abs(probabilities - expected).mean())

    calm, plain = distance(int8(student, pixels)), distance(int8(stress, pixels))
    mended = distance(int8(repaired(stress, pixels)[0], pixels))
    assert plain > 5 * calm
    assert mended < 1.2 * calm


@pytest.mark.parametrize("place", ["norm1", "norm2", "attn.v", "attn.scores"])
def test_each_place_is_found_out_by_itself(student: Student, pixels, place: str) -> None:
    """A migration by hand at one place: the same function, other weights."""
    s = np.linspace(0.2, 5, student.width).astype(np.float32)
    for block in range(student.depth):
        migrated = migrate(student, {f"blocks.{block}.{place}": s})
        expected = run(build_graph(student), pixels[:4])
        np.testing.assert_allclose(run(build_graph(migrated), pixels[:4]), expected, atol=2e-6)


def test_queries_and_keys_get_the_same_range(student: Student, pixels) -> None:
    stats = collect_stats(repaired(student, pixels)[0], [pixels], 1, lambda n: None)
    scores = {n: s for n, s in stats.inputs.items() if n.endswith("scores")}
    assert len(scores) == student.depth - 1
    for entry in scores.values():
        queries, keys = np.split(entry.largest, 2)
        assert queries.shape == (student.width,)
        np.testing.assert_allclose(queries, keys, rtol=1e-3)


def test_a_channel_that_nobody_asks_for_is_left_a_number(student: Student, pixels) -> None:
    weights = dict(student.weights)
    for part in ("weight", "bias"):
        name = f"blocks.0.attn.qkv.{part}"
        weights[name] = weights[name].copy()
        weights[name][[5, student.width + 6]] = 0  # a query's row, a key's
    dead = replace(student, weights=weights)
    migrated, _ = repaired(dead, pixels)
    assert all(np.isfinite(w).all() for w in migrated.weights.values())
    expected = run(build_graph(dead), pixels)
    np.testing.assert_allclose(run(build_graph(migrated), pixels), expected, atol=2e-6)


def test_unequal_queries_and_keys_are_mended(student: Student, pixels) -> None:
    """Keys ×100, queries ÷100: a shared step would leave queries no level but zero."""
    weights = dict(student.weights)
    for i in range(student.depth):
        for part in ("weight", "bias"):
            name = f"blocks.{i}.attn.qkv.{part}"
            weights[name] = weights[name].copy()
            weights[name][: student.width] /= 100
            weights[name][student.width : 2 * student.width] *= 100
    unequal = replace(student, weights=weights)
    expected = run(build_graph(student), pixels)

    def distance(other: Student) -> float:
        stats = collect_stats(other, [pixels], 1, lambda n: None)
        scales = {k: v for k, v in input_scales(stats, "min-max").items() if k.endswith("scores")}
        return float(np.abs(run(quantized_graph(other, scales), pixels) - expected).mean())

    assert distance(unequal) > 20 * distance(repaired(unequal, pixels)[0]) > 0


def test_a_corrected_bias_takes_up_the_mean_of_the_rounding(student: Student, pixels) -> None:
    """Of one linear with coarse weights, fed by a mean far from zero."""
    name = "blocks.0.mlp.fc1"
    stats = collect_stats(student, [pixels], 1, lambda n: None, samples=True).inputs[name]
    weight = student.weights[f"{name}.weight"]
    integers, steps = quantize_weight(weight)
    shift = (integers * steps[:, None] - weight) @ stats.mean
    graphs = [quantized_graph(student, {name: 1.0}, means) for means in ({}, {name: stats.mean})]
    plain, corrected = (
        next(numpy_helper.to_array(t) for t in g.graph.initializer if t.name == f"{name}.bias")
        for g in graphs
    )
    assert np.abs(shift).max() > 1e-4
    np.testing.assert_allclose(plain - corrected, shift, atol=1e-6)


def test_the_patch_embedding_has_its_bias_corrected_too(student: Student, pixels) -> None:
    """Of the mean output over the patches: what rounding shifts it by is gone."""
    name = "patch_embed.proj"
    stats = collect_stats(student, [pixels], 1, lambda n: None)
    outputs = []
    for scales, means in (({}, {}), ({name: 1 / 64}, {}), ({name: 1 / 64}, {name: stats.patch})):
        graph = quantized_graph(student, scales, means)
        add = next(n for n in graph.graph.node if n.op_type == "Add").output[0]  # (N, 16, D)
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(add))
        session = open_session(graph.SerializeToString(), CPU, 1)
        outputs.append(session.run([add], {"tiles": pixels})[0].mean(axis=(0, 1)))  # (D,)
    exact, rounded, corrected = outputs
    assert np.abs(rounded - exact).max() > 1e-4
    assert np.abs(corrected - exact).max() < 0.02 * np.abs(rounded - exact).max()
