"""`make gpu-check` without a GPU: what hangs, dies or is missing is a reason, the rest goes on."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgelung.artifacts.bundle import Bundle
from edgelung.engines import choose

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_check

    return gpu_check


@pytest.fixture
def parts(check: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parts, with three repeats of everything that is timed."""
    import gpu_device
    import gpu_parts

    real = gpu_device.time_calls
    for module in (gpu_device, gpu_parts):
        monkeypatch.setattr(
            module, "time_calls", lambda work, repeats, most=1.0: real(work, 3, 0.1)
        )
    return gpu_parts


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(60)", "had not ended after 2 s"),
        ("import os; os.abort()", "exit code -6"),
        ("raise SystemExit('no engine runs')", "no engine runs"),
        ("raise ValueError('of this kind')", "ValueError: of this kind"),
    ],
)
def test_a_part_that_fails_is_a_reason(check: Any, program: str, reason: str) -> None:
    figures = check.run_part([sys.executable, "-c", program], 2, {})
    assert reason in figures["cannot_run"]


def test_a_part_prints_its_figures_last(check: Any) -> None:
    program = "print('noise of a library'); print('{\"p50\": 1.5}')"
    assert check.run_part([sys.executable, "-c", program], 20, {}) == {"p50": 1.5}
    assert "time was over" in check.run_part([sys.executable], 0, {})["cannot_run"]


def test_without_a_gpu_every_part_says_so(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "gpu_present", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path)])
    assert check.main() == 0
    report = json.loads((tmp_path / "gpu-none.json").read_text())
    assert len(report["parts"]) > 15
    assert {p["cannot_run"] for n, p in report["parts"].items() if n != "doctor"} == {"no GPU"}
    assert "not run: no GPU" in (tmp_path / "gpu-none.md").read_text()


def test_one_part_alone_prints_json(
    check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check.gpu_device, "resize_kernels", lambda: {"288 px": {"differing": 0}})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--part", "resize kernels"])
    assert check.main() == 0
    assert json.loads(capsys.readouterr().out) == {"288 px": {"differing": 0}}


def test_the_parts_over_the_pretended_gpu(
    parts: Any,
    bundle: Bundle,
    gpu: Any,
    twin: None,
    install: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names, signatures and shapes; the figures mean nothing."""
    install("tensorrt")
    monkeypatch.setattr(choose, "gpu_present", lambda: True)
    graph = bundle.variants["fp32"].path
    for graphs in (True, False):
        found = parts.latency(graph, "fp32", graphs)
        assert found["engine"] == "tensorrt"
        assert found["batch 128"]["p50"] > 0
    gpu.name = "NVIDIA GH200 480GB"
    monkeypatch.setattr(parts, "scenarios", lambda e, real=parts.scenarios: real(e, 0.3))
    found = parts.throughput(graph, 1.0)
    assert found["tensorrt"]["offline_tiles_per_second"] > 0
    assert 0 < found["tensorrt"]["share_of_fp16_peak"] < 1
    assert "cannot_run" in found["onnxruntime-cuda"]
    rng = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (80 + i, 90, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "tiles" / f"{i:02}.png")
    found = parts.folder_run(bundle, tmp_path / "tiles", tmp_path)
    assert found["resize_in_the_folder_run"] == "on the GPU"
    stages = {"decode", "copy alone", "resize alone", "model alone", "write"}
    assert stages <= set(found["ms_per_tile"])
    assert all(value > 0 for value in found["ms_per_tile"].values())
    tiles, _ = parts.read_some(tmp_path / "tiles", 16, bundle.reader.size)
    found = parts.parity(bundle, tiles)
    assert found["tensorrt fp32"]["agreement_with_fp32"] == 1
    assert found["tensorrt fp32"]["seconds_to_build_and_load"] > 0


def test_the_device_layer_over_the_pretended_gpu(
    parts: Any, check: Any, gpu: Any, twin: None
) -> None:
    found = check.gpu_device.device_layer()
    assert found["bytes that came back changed"] == 0
    assert found["values that the graph's replay gets wrong"] == 0
    assert found["resize of 16 tiles, one graph, ms"]["p50"] > 0
    assert "close other programs" in found["asked for twice its memory"]
    assert not gpu.live, "memory was kept"


def test_latency_without_tensorrt_is_onnx_runtimes(
    parts: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bundle.variants["fp32"].path
    with pytest.raises(parts.CannotRunError, match="CUDAExecutionProvider"):
        parts.latency(graph, "fp32", False)
    monkeypatch.setitem(choose.ENGINES, "onnxruntime-cuda", choose.ENGINES["onnxruntime"])
    found = parts.latency(graph, "fp32", False)
    assert found["batch 128"]["p50"] > 0
    with pytest.raises(parts.CannotRunError, match="tensorrt"):
        parts.latency(graph, "fp32", True)


def test_cards_are_told_apart(parts: Any) -> None:
    assert parts.peak("NVIDIA L40S") != parts.peak("NVIDIA L4") != parts.peak("NVIDIA L40")
    assert parts.peak("NVIDIA GH200 480GB") != parts.peak("NVIDIA H200")
    with pytest.raises(parts.CannotRunError, match="no data-sheet"):
        parts.peak("NVIDIA T400")
