"""In which type OpenVINO computes floating point: as asked, as the CPU can, as the gate saw it."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgelung.artifacts.bundle import Variant
from edgelung.artifacts.bundle_files import BundleFile
from edgelung.artifacts.manifest import VariantEntry
from edgelung.artifacts.results import GateResult, OpenVinoCheck
from edgelung.core.precision import Precision
from edgelung.engines import openvino
from edgelung.engines.base import GraphBytes
from edgelung.engines.choose import _factory
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine


class FakeCore:
    abilities = ("FP32", "INT8")
    config: dict[str, Any]

    def get_property(self, device: str, name: str) -> Any:
        return list(self.abilities) if name == "OPTIMIZATION_CAPABILITIES" else "a CPU"

    def read_model(self, data: bytes) -> bytes:
        return data

    def compile_model(self, model: bytes, device: str, config: dict[str, Any]) -> Any:
        FakeCore.config = config
        return SimpleNamespace(get_property=lambda name: ["CPU"], create_infer_request=lambda: None)


@pytest.mark.parametrize(
    ("abilities", "allowed", "hint", "named"),
    [
        (("FP32", "INT8", "BF16"), True, "bf16", "bf16"),
        (("FP32", "INT8", "BF16"), False, "f32", "fp32"),
        (("FP32", "INT8"), True, "f32", "fp32"),
    ],
)
def test_bf16_where_it_is_allowed_and_there_is_some(
    monkeypatch: pytest.MonkeyPatch,
    abilities: tuple[str, ...],
    allowed: bool,
    hint: str,
    named: str,
) -> None:
    monkeypatch.setenv("EDGELUNG_CACHE", "off")
    monkeypatch.setattr(FakeCore, "abilities", abilities)
    fake = SimpleNamespace(Core=FakeCore, get_version=lambda: "1")
    monkeypatch.setattr(openvino, "_openvino", lambda: fake)
    engine = OpenVinoEngine(GraphBytes(b"graph"), 1, bf16=allowed)
    assert FakeCore.config["INFERENCE_PRECISION_HINT"] == hint
    assert engine.float_type == named


@pytest.mark.parametrize(
    ("verdict", "openvino", "allowed"),
    [
        ("pass", {"verdict": "pass", "floating_point": "bf16"}, True),
        ("fail", {"verdict": "pass", "floating_point": "bf16"}, False),
        ("pass", {"verdict": "fail", "floating_point": "bf16"}, False),
        ("pass", {"verdict": "pass", "floating_point": "fp32"}, False),
        ("pass", None, False),
    ],
)
def test_bf16_is_for_variants_that_passed_with_it(
    verdict: str, openvino: dict[str, Any] | None, allowed: bool
) -> None:
    check = None
    if openvino is not None:
        check = OpenVinoCheck(
            **openvino, same_label_as_onnxruntime=1.0, largest_probability_difference=0.0
        )
    gate = GateResult(verdict=verdict, reasons=[], tiles=1, openvino=check)
    entry = VariantEntry(
        file="g.onnx",
        bytes=1,
        base="fp32",
        meant_for="CPU",
        quantized_linears=1,
        judged_by="openvino",
        tiles_per_second={},
        gate=gate,
    )
    variant = Variant(Precision.INT8, BundleFile(Path("b"), "g.onnx", "", 1), entry)
    factory = _factory(OpenVinoEngine, variant)
    if allowed:
        assert isinstance(factory, partial)
        assert factory.keywords == {"bf16": True}
    else:
        assert factory is OpenVinoEngine
    assert _factory(OnnxRuntimeEngine, variant) is OnnxRuntimeEngine


def test_first_calls_from_two_threads_do_not_lock() -> None:
    """The binding's NumPy types, first asked for by two threads at once, would lock them for good;
    in a process of its own, where nothing has asked yet."""
    script = (
        "import threading\n"
        "from edgelung.engines.openvino import _openvino\n"
        "ov, both = _openvino(), threading.Barrier(2)\n"
        "def ask():\n"
        "    both.wait()\n"
        "    ov.Type.u8.to_dtype()\n"
        "threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]\n"
        "[t.start() for t in threads]\n"
        "[t.join(20) for t in threads]\n"
        "assert not any(t.is_alive() for t in threads)\n"
        "import os; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
