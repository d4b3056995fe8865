"""ONNX Runtime's CUDA provider without a GPU: bound memory, CUDA graphs, fused operators.

The driver and the provider are fakes (fake_gpu.py, fake_onnxruntime.py); the numbers are real.
"""

import logging
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from engine_helpers import all_passed, expected, expected_scores, noise

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines import choose, onnxruntime_cuda
from edgelung.engines.base import EngineUnavailableError, GraphBytes
from edgelung.engines.onnx_fusion import fuse
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.onnxruntime_cuda import fused_graph

NAME = "onnxruntime-cuda"


def opened(bundle: Bundle, precision: str = "fp32") -> Any:
    return choose.ENGINES[NAME](bundle.variants[precision].graph, 1)


def test_a_batch_runs_from_bound_memory_on_one_stream(
    bundle: Bundle, gpu: Any, cuda_sessions: list
) -> None:
    engine, tiles = opened(bundle), noise(5)
    output = engine.infer(tiles)
    np.testing.assert_array_equal(output.probabilities, expected(bundle, tiles))
    np.testing.assert_array_equal(output.ood, expected_scores(bundle, tiles))
    (session,) = cuda_sessions
    assert session.options["use_tf32"] == "0"
    operations = [op for stream, op in gpu.log if stream == session.stream]
    assert operations == ["copy in", "onnxruntime", "copy out", "copy out", "wait"]
    engine.close()
    assert gpu.live == {}
    engine.close()  # twice is no error


def test_a_batch_size_that_comes_back_is_replayed(
    bundle: Bundle, gpu: Any, cuda_sessions: list
) -> None:
    engine = opened(bundle)
    for seed, count in enumerate((4, 3, 4, 4, 3, 3, 4, 130)):
        tiles = noise(count, seed=seed)
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))
    runs = Counter(cuda_sessions[0].runs)
    assert runs["record", 4] == runs["record", 3] == 1
    assert (runs["replay", 4], runs["replay", 3]) == (3, 2)
    assert runs["run", 128] == runs["run", 2] == 1  # more than the largest batch runs in parts
    assert len(cuda_sessions[0].recorded) == 2


@pytest.mark.parametrize("broken", ["record", "replay"])
def test_a_graph_that_fails_or_gives_other_numbers_is_not_used(
    bundle: Bundle, cuda_sessions: list, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine, tiles = opened(bundle), noise(4)
    cuda_sessions[0].broken = broken
    for _ in range(4):
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))
    assert ("replay", 4) not in cuda_sessions[0].runs
    assert caplog.text.count("without CUDA graphs") == 1


def test_without_graphs_none_is_asked_for(
    bundle: Bundle, cuda_sessions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELUNG_CUDA_GRAPHS", "0")
    engine = opened(bundle)
    for _ in range(3):
        engine.infer(noise(2))
    assert "enable_cuda_graph" not in cuda_sessions[0].options
    assert set(cuda_sessions[0].runs) == {("run", 2)}


def test_a_provider_that_refuses_graphs_runs_without(
    bundle: Bundle, cuda_sessions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime_cuda.open_session

    def refusing(*arguments: Any) -> Any:
        if "enable_cuda_graph" in arguments[3]:
            raise EngineUnavailableError("not all nodes are on the GPU")
        return real(*arguments)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", refusing)
    engine, tiles = opened(bundle), noise(2)
    for _ in range(3):
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))


def test_tiles_of_any_size_are_resized_on_the_device(
    bundle: Bundle, gpu: Any, twin: None, cuda_sessions: list
) -> None:
    from edgelung.tiles.reader import resize

    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (*s, 3), np.uint8) for s in ((64, 64), (90, 70), (9, 200))]
    engine = opened(bundle)
    assert engine.resizes
    read = np.stack([np.asarray(resize(image, 64)) for image in images])
    for _ in range(3):
        found = engine.infer_pixels(images).probabilities
        np.testing.assert_array_equal(found, expected(bundle, read))


def operators(data: bytes) -> Counter:
    return Counter(node.op_type for node in onnx.load_model_from_string(data).graph.node)


@pytest.mark.parametrize(
    ("precision", "kinds", "tolerance"),
    [
        ("fp32", {"MultiHeadAttention": 12, "SkipLayerNormalization": 24}, 2e-6),
        (
            "fp16",
            {"Attention": 11, "MultiHeadAttention": 1, "SkipLayerNormalization": 24},
            1e-4,
        ),
        ("int8-fp16", {"MultiHeadAttention": 12, "SkipLayerNormalization": 24}, 2.5e-4),
    ],
)
def test_fused_operators_compute_what_the_plain_graph_does(
    bundle: Bundle, precision: str, kinds: dict, tolerance: float
) -> None:
    """On the CPU, which has the same operators in FP32.

    The tolerances see a wrong scale of attention, which moves this hardly trained model little.
    """
    graph = bundle.variants[precision].graph
    fused, count = fuse(graph.read(), fp32=True)
    onnx.checker.check_model(onnx.load_model_from_string(fused))
    found = operators(fused)
    assert {kind: found[kind] for kind in kinds} == kinds
    assert sum(kinds.values()) == count
    assert found["Softmax"] == 1  # of the classes
    tiles = noise(6)
    ours, theirs = (
        OnnxRuntimeEngine(g, 1).infer(tiles) for g in (GraphBytes(fused), GraphBytes(graph.read()))
    )
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=tolerance)
    np.testing.assert_allclose(ours.ood, theirs.ood, rtol=20 * tolerance)


def test_the_reference_and_int8_for_cpus_stay_plain(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        data = bundle.variants[precision].graph.read()
        assert fuse(data) == (data, 0)


def test_the_fused_graph_is_cached_and_the_bundle_stays_plain(
    bundle: Bundle, cuda_sessions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bundle.variants["fp16"].graph
    before = graph.read()
    first = fused_graph(graph)
    monkeypatch.setattr(onnxruntime_cuda, "fuse", lambda data: pytest.fail("fused again"))
    assert fused_graph(graph) == first
    assert graph.read() == before != first


@pytest.mark.parametrize("why", ["no package", "nothing found"])
def test_a_graph_that_cannot_be_fused_runs_as_it_is(
    bundle: Bundle,
    cuda_sessions: list,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(data: bytes) -> tuple[bytes, int]:
        if why == "no package":
            raise ModuleNotFoundError("No module named 'onnx'")
        return data, 0

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(onnxruntime_cuda, "fuse", fail)
    engine, tiles = opened(bundle, "fp16"), noise(2)
    np.testing.assert_array_equal(
        engine.infer(tiles).probabilities, expected(bundle, tiles, "fp16")
    )
    assert caplog.text.count("runs model.fp16.onnx as it is") == 1


def wrongly_fused(data: bytes) -> tuple[bytes, int]:
    """In place of `fuse`: a graph that gives other numbers."""
    model = onnx.load_model_from_string(data)
    head = next(t for t in model.graph.initializer if t.name == "head.bias")
    head.CopyFrom(onnx.numpy_helper.from_array(np.float32([5, 0, 0]), "head.bias"))
    return model.SerializeToString(), 1


def test_a_fused_graph_that_misses_the_golden_tiles_is_replaced_by_the_plain_one(
    bundle: Bundle,
    cuda_sessions: list,
    gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(onnxruntime_cuda, "fuse", wrongly_fused)
    chosen = choose.open_engine(all_passed(bundle), NAME, Precision.FP16)
    assert chosen.golden_difference <= Precision.FP16.about.golden_tolerance
    assert len(cuda_sessions) == 2
    assert "runs the graph without fused operators" in caplog.text
    chosen.engine.close()
    assert gpu.live == {}


def test_a_plain_graph_that_does_not_load_in_its_place_is_one_line(
    bundle: Bundle, cuda_sessions: list, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxruntime_cuda.open_session

    def only_once(*arguments: Any) -> Any:
        if cuda_sessions:
            raise EngineUnavailableError("the device is full")
        return real(*arguments)

    monkeypatch.setattr(onnxruntime_cuda, "fuse", wrongly_fused)
    monkeypatch.setattr(onnxruntime_cuda, "open_session", only_once)
    with pytest.raises(EdgelungError, match=r"does not load: the device is full\. Leave --engine"):
        choose.open_engine(all_passed(bundle), NAME, Precision.FP16)
    assert gpu.live == {}
