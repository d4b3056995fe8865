"""Every engine: the same arithmetic, any batch, a refusal where it is not what was asked for."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from engine_helpers import all_passed, noise
from onnx import TensorProto, helper, numpy_helper

from edgelung.artifacts.bundle import Bundle, open_bundle, write_bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.engines import onnxruntime as onnxruntime_engine
from edgelung.engines import openvino as openvino_engine
from edgelung.engines.base import EngineUnavailableError, Graph, Output
from edgelung.engines.cuda import gpu_present
from edgelung.engines.onnxruntime import CPU, OnnxRuntimeEngine, open_session
from edgelung.engines.openvino import OpenVinoEngine

ENGINES = [OnnxRuntimeEngine, OpenVinoEngine]


@pytest.mark.parametrize(
    ("factory", "precision"),
    [
        *((factory, precision) for factory in ENGINES for precision in ("fp32", "fp16")),
        (OnnxRuntimeEngine, "int8"),
        pytest.param(OpenVinoEngine, "int8", marks=pytest.mark.vnni),
    ],
)
def test_probabilities_and_any_batch(bundle: Bundle, factory: type, precision: str) -> None:
    engine = factory(bundle.variants[precision].graph, 2)
    tiles = noise(7)
    together = engine.infer(tiles).probabilities
    assert together.shape == (7, 3)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-4)
    alone = np.concatenate([engine.infer(tiles[i : i + 1]).probabilities for i in range(7)])
    # Six decimals reach the CSV: neighbours in a batch must not show in a row.
    np.testing.assert_allclose(together, alone, atol=5e-7)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("fp32", 1e-5), pytest.param("int8", 0.02, marks=pytest.mark.vnni)],
)
def test_engines_agree(bundle: Bundle, precision: str, tolerance: float) -> None:
    engines = [engine(bundle.variants[precision].graph, 2) for engine in ENGINES]
    first, second = (engine.infer(noise(9)).probabilities for engine in engines)
    np.testing.assert_allclose(first, second, atol=tolerance)


def test_results_are_the_callers_own(bundle: Bundle) -> None:
    for factory in ENGINES:
        engine = factory(bundle.variants["fp32"].graph, 1)
        first = engine.infer(noise(2)).probabilities
        kept = first.copy()
        engine.infer(255 - noise(2))
        np.testing.assert_array_equal(first, kept)


def test_a_provider_that_fell_back_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    fallen = SimpleNamespace(get_providers=lambda: ["AzureExecutionProvider", "CPU"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: fallen)
    with pytest.raises(EngineUnavailableError, match="it runs"):
        OnnxRuntimeEngine(bundle.variants["fp32"].graph, 1)


def missing(graph: Graph, threads: int, *, latency: bool = False) -> None:
    raise EngineUnavailableError("openvino is not installed")


def test_a_named_engine_that_cannot_run_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choose.ENGINES, "openvino", missing)
    with pytest.raises(EdgelungError, match="openvino is not installed"):
        choose.open_engine(bundle, "openvino", "fp32")


def test_auto_falls_to_the_next_engine_and_says_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choose.ENGINES, "openvino", missing)
    chosen = choose.open_engine(bundle, None, Precision.FP32)
    assert chosen.engine.name == "onnxruntime"
    assert "openvino is not installed" in chosen.reason


def test_a_large_int8_sum_is_exact() -> None:
    """Also on a CPU without VNNI, where the fastest kernels cut it off at 32,767."""
    graph = quantized_product(np.full((64, 8), 127, np.int8))
    session = open_session(graph, CPU, 1)
    (found,) = session.run(None, {"x": np.full((4, 64), 127, np.float32)})
    np.testing.assert_array_equal(found, np.full((4, 8), 64 * 127 * 127, np.float32))
    # With VNNI the sum is right in any case, so the setting is looked at too.
    options = onnxruntime_engine._session_options(onnxruntime, CPU, 1)
    assert options.get_session_config_entry("session.x64quantprecision") == "1"


def quantized_product(weights: np.ndarray) -> bytes:
    """x (N, K) times INT8 weights (K, M) in a Q/DQ graph, all scales 1."""
    one, zero = np.float32(1), np.int8(0)
    q, dq = "QuantizeLinear", "DequantizeLinear"
    nodes = [
        helper.make_node(q, ["x", "one", "zero"], ["xq"]),
        helper.make_node(dq, ["xq", "one", "zero"], ["xd"]),
        helper.make_node(dq, ["w", "one", "zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    constants = {"one": one, "zero": zero, "w": weights}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 19)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def test_without_vnni_openvino_computes_no_int8(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_engine, "saturates_int8", lambda: True)
    proven = all_passed(bundle)
    chosen = choose.open_engine(proven)
    assert (chosen.engine.name, chosen.variant.precision) == ("onnxruntime", "int8")
    assert chosen.reason.count("no VNNI") == 1
    named = choose.open_engine(proven, "openvino")
    assert (named.engine.name, named.variant.precision) == ("openvino", "fp32")
    assert named.reason.count("no VNNI") == 1
    assert named.reason.startswith("auto: the next of int8, fp32, fp16 that passed the gate; ")
    with pytest.raises(EdgelungError, match=r"can run int8 here: openvino: .* no VNNI"):
        choose.open_engine(proven, "openvino", Precision.INT8)


def test_auto_never_offers_what_did_not_pass(bundle: Bundle) -> None:
    # The small bundle has too few tiles for a verdict.
    assert bundle.variants["int8"].gate.verdict == "inconclusive"
    chosen = choose.open_engine(bundle)
    assert chosen.variant.precision == "fp32"
    assert "int8 not offered" in chosen.reason


def test_auto_takes_int8_once_it_passed(bundle: Bundle) -> None:
    proven = all_passed(bundle)
    assert choose.open_engine(proven).variant.precision == "int8"


def test_auto_leaves_an_engine_that_is_wrong_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choose.ENGINES, "openvino", Off)
    chosen = choose.open_engine(bundle)
    assert chosen.engine.name == "onnxruntime"
    assert "openvino: onnxruntime does not reproduce the bundle's golden tiles" in chosen.reason
    assert "nothing was predicted" not in chosen.reason


def test_auto_takes_no_other_variant_if_all_engines_are_wrong(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle with one faulty graph is not trusted with another."""

    class OffInInt8(Off):
        def __init__(self, graph: Graph, threads: int, *, latency: bool = False) -> None:
            super().__init__(graph, threads, latency=latency)
            self.offset = np.float32([0.2, -0.2, 0]) * ("int8" in graph.name)

    monkeypatch.setattr(choose, "ENGINES", dict.fromkeys(choose.CPU_ENGINES, OffInInt8))
    with pytest.raises(EdgelungError, match=r"no engine can run int8 here: openvino: .*golden"):
        choose.open_engine(all_passed(bundle))
    assert choose.open_engine(bundle).variant.precision == "fp32"


@pytest.mark.parametrize(("verdict", "precision"), [("pass", "int8"), ("fail", "fp32")])
def test_the_verdict_in_the_file_decides(copied_bundle: Path, verdict: str, precision: str) -> None:
    """From bundle.json through opening to the choice."""
    manifest = json.loads((copied_bundle / "bundle.json").read_text())
    manifest["variants"]["int8"]["gate"]["verdict"] = verdict
    del manifest["files"]
    write_bundle(copied_bundle, manifest)
    assert choose.open_engine(open_bundle(copied_bundle)).variant.precision == precision


@pytest.mark.parametrize("name", ["tensorrt", "cuda"])
def test_unknown_engines_are_named(bundle: Bundle, name: str) -> None:
    with pytest.raises(EdgelungError, match=name):
        choose.open_engine(bundle, name)


class Off(OnnxRuntimeEngine):
    """An engine that is wrong by little. (A barely trained model hardly sees colours swapped.)"""

    offset = np.float32([0.005, -0.005, 0])

    def infer(self, tiles: np.ndarray) -> Output:
        found = super().infer(tiles)
        return found._replace(probabilities=found.probabilities + self.offset)


class NotANumber(OnnxRuntimeEngine):
    def infer(self, tiles: np.ndarray) -> Output:
        found = super().infer(tiles)
        return found._replace(probabilities=found.probabilities * np.nan)


@pytest.mark.parametrize("broken", [Off, NotANumber])
def test_the_golden_tiles_stop_a_wrong_engine(
    bundle: Bundle, broken: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(choose.ENGINES, "onnxruntime", broken)
    with pytest.raises(EdgelungError, match="golden"):
        choose.open_engine(bundle, "onnxruntime", "fp32")


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("onnxruntime-cuda", ("CUDAExecutionProvider", {"use_tf32": "0"})),
        ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_a_provider_that_does_not_load_is_unavailable(
    bundle: Bundle, name: str, provider: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked without TF32 and without fallback; what its libraries say becomes one line."""
    asked: list[object] = []

    def session(graph: str, options: object, providers: list[object], **more: object) -> None:
        asked.extend([*providers, more])
        raise RuntimeError("libnvinfer.so.10: cannot open shared object file\n  and more")

    monkeypatch.setattr(onnxruntime_engine, "_missing_library", lambda ort, provider: None)
    names = ["CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(EngineUnavailableError, match=r"libnvinfer.so.10: cannot open") as error:
        choose.ENGINES[name](bundle.variants["fp32"].graph, 1)
    assert "\n" not in str(error.value)
    assert asked == [provider, {"enable_fallback": 0}]


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_missing_library_is_named_and_onnxruntime_prints_nothing(
    bundle: Bundle, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if gpu_present():
        pytest.skip("this machine has a GPU, where the providers may load")
    onnxruntime.set_default_logger_severity(2)  # its default, which prints
    with pytest.raises(EngineUnavailableError) as error:
        choose.ENGINES[name](bundle.variants["fp32"].graph, 1)
    if sys.platform == "linux":
        assert re.search(r"does not load: lib\S+\.so\S*: cannot open", str(error.value))
    assert capfd.readouterr() == ("", "")
