"""The choice on a GPU: measured once, remembered, and never an engine that is wrong."""

import sys
from typing import Any

import numpy as np
import pytest
from engine_helpers import all_passed

from edgelung.artifacts.bundle import Bundle
from edgelung.engines import choose, fastest
from edgelung.engines.base import Graph, Output
from edgelung.engines.tensorrt.engine import TensorRtEngine


@pytest.fixture
def proven(bundle: Bundle) -> Bundle:
    """A bundle whose variants all passed their gates."""
    return all_passed(bundle)


def pace(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> list[str]:
    """Let engines take the given seconds; returns the list of what was timed."""
    timed: list[str] = []

    def measured(engine: Any, tiles: np.ndarray) -> float:
        assert len(tiles) == 32
        engine.infer(tiles)
        precision = engine.graph_name.split(".")[1]
        timed.append(f"{engine.name} {precision}")
        return seconds[timed[-1]]

    class Named(TensorRtEngine):
        def __init__(self, graph: Graph, threads: int, *, latency: bool = False) -> None:
            super().__init__(graph, threads, name="tensorrt", latency=latency)
            self.graph_name = graph.name

    monkeypatch.setitem(choose.ENGINES, "tensorrt", Named)
    monkeypatch.setattr(fastest, "seconds_per_batch", measured)
    monkeypatch.setattr(choose, "gpu_present", lambda: True)
    monkeypatch.setattr(choose, "GPU_ENGINES", ("tensorrt", "tensorrt-rtx"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    return timed


def test_auto_times_the_variants_and_remembers(
    proven: Bundle, gpu: Any, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt")
    times = {
        "tensorrt fp32": 3e-3,
        "tensorrt fp16": 1e-3,
        "tensorrt int8": 2e-3,
        "tensorrt int8-fp16": 1.5e-3,
    }
    timed = pace(monkeypatch, times)
    chosen = choose.open_engine(proven)
    assert (chosen.engine.name, chosen.variant.precision) == ("tensorrt", "fp16")
    assert sorted(timed) == sorted(times)
    assert "fp16 1.00 ms" in chosen.reason
    assert "INT8 is slower than FP16 here" in chosen.reason
    assert "int8, int8-fp16, fp8: tensorrt-rtx is not installed" in chosen.reason
    assert chosen.reason.count("is not installed") == 1, "one reason, said once"
    assert chosen.golden_difference < 1e-3
    chosen.engine.close()
    assert gpu.live == {}
    timed.clear()
    again = choose.open_engine(proven)
    assert timed == []
    assert again.variant.precision == "fp16"
    assert "remembered" in again.reason
    again.engine.close()
    gpu.name = "Other RTX"  # another card: timed again
    times["tensorrt int8"] = 1e-4
    assert choose.open_engine(proven).variant.precision == "int8"


def test_auto_offers_on_a_gpu_only_what_passed(
    bundle: Bundle, gpu: Any, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt")
    timed = pace(monkeypatch, {"tensorrt fp32": 3e-3, "tensorrt fp16": 0, "tensorrt int8": 0})
    chosen = choose.open_engine(bundle)  # nothing but full precision passed here
    assert (chosen.engine.name, chosen.variant.precision) == ("tensorrt", "fp32")
    assert timed == ["tensorrt fp32"]
    assert "int8 not offered" in chosen.reason
    asked = choose.open_engine(bundle, "tensorrt", "int8")
    assert asked.variant.precision == "int8"


def test_auto_goes_to_the_cpu_where_the_gpu_fails(
    bundle: Bundle, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "gpu_present", lambda: True)
    monkeypatch.setattr(choose, "GPU_ENGINES", ("tensorrt",))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    chosen = choose.open_engine(bundle)
    assert chosen.engine.name == "openvino"
    assert "a GPU is here, but" in chosen.reason
    assert "tensorrt is not installed" in chosen.reason


def test_a_wrong_gpu_engine_does_not_win(
    bundle: Bundle, gpu: Any, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt")
    pace(monkeypatch, {"tensorrt fp32": 1e-3})
    right = choose.ENGINES["tensorrt"]

    class Off(right):  # type: ignore[misc, valid-type]
        def infer(self, tiles: np.ndarray) -> Output:
            found = super().infer(tiles)
            moved = found.probabilities + np.float32([0.005, -0.005, 0])
            return found._replace(probabilities=moved)

    monkeypatch.setitem(choose.ENGINES, "tensorrt", Off)
    chosen = choose.open_engine(bundle)
    assert chosen.engine.name == "openvino"
    assert "golden tiles" in chosen.reason
    assert gpu.live == {}
