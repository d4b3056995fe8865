"""`edgelung gpu-check` without a GPU: what hangs, dies or is missing is a reason, the rest runs."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgelung.artifacts.bundle import Bundle
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.tools.gpu_check import check, device, engines, folder, parts
from edgelung.tools.gpu_check.timing import CannotRunError, time_calls

SIZE = 64  # pixels of the fixture's tiles


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three repeats of everything that is timed."""
    for module in (device, engines, folder):
        monkeypatch.setattr(
            module, "time_calls", lambda work, repeats, most=1.0: time_calls(work, 3, 0.1)
        )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(60)", "had not ended after 2 s"),
        ("import os; os.abort()", "exit code -6"),
        ("raise SystemExit('no engine runs')", "no engine runs"),
        ("raise ValueError('of this kind')", "ValueError: of this kind"),
    ],
)
def test_a_part_that_fails_is_a_reason(program: str, reason: str) -> None:
    figures = check.run_part([sys.executable, "-c", program], 2, {})
    assert reason in figures["cannot_run"]


def test_a_part_prints_its_figures_last() -> None:
    program = "print('noise of a library'); print('{\"p50\": 1.5}')"
    assert check.run_part([sys.executable, "-c", program], 20, {}) == {"p50": 1.5}
    assert "time was over" in check.run_part([sys.executable], 0, {})["cannot_run"]


def test_without_a_gpu_every_part_says_so(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "gpu_present", lambda: False)
    path = check.gpu_check(bundle_folder, None, tmp_path)
    report = json.loads(path.read_text())
    assert path == tmp_path / "gpu-none.json"
    assert len(report["parts"]) > 15
    assert {p["cannot_run"] for n, p in report["parts"].items() if n != "doctor"} == {"no GPU"}
    assert "not run: no GPU" in path.with_suffix(".md").read_text()


def test_the_command_writes_into_the_current_folder(cli, tmp_path: Path) -> None:
    result = cli("gpu-check", "--seconds", 1)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("gpu-*.json")
    assert result.stdout == f"wrote {path.name} and {path.stem}.md\n"
    assert "resize kernels: " in result.stderr


def test_a_part_is_a_process_that_prints_json(bundle_folder: Path, tmp_path: Path) -> None:
    options = parts.PartOptions(str(bundle_folder), None, str(tmp_path))
    figures = check.run_part(check.part_command("folder run", options), 60, {})
    assert parts.NO_TILES in figures["cannot_run"]


def test_one_part_alone_prints_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(parts.PARTS, "one", lambda options: {"scratch": options.scratch})
    parts.main("one", json.dumps({"bundle": "b", "tiles": None, "scratch": str(tmp_path)}))
    assert json.loads(capsys.readouterr().out) == {"scratch": str(tmp_path)}


@pytest.mark.slow
def test_the_parts_over_the_fake_gpu(
    short: None,
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
    graph = bundle.variants["fp32"].graph
    for graphs in (True, False):
        found = engines.latency(graph, Precision.FP32, graphs, SIZE)
        assert found["engine"] == "tensorrt"
        assert found["batch 128"]["p50"] > 0
    gpu.name = "NVIDIA GH200 480GB"
    monkeypatch.setattr(
        engines, "scenarios", lambda e, size, real=engines.scenarios: real(e, size, 0.3)
    )
    found = engines.throughput(graph, 1.0, SIZE)
    assert found["tensorrt"]["offline_tiles_per_second"] > 0
    assert 0 < found["tensorrt"]["share_of_fp16_peak"] < 1
    assert "cannot_run" in found["onnxruntime-cuda"]
    rng = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (80 + i, 90, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "tiles" / f"{i:02}.png")
    found = folder.folder_run(bundle, tmp_path / "tiles", tmp_path)
    assert found["resize_in_the_folder_run"] == "on the GPU"
    stages = {"decode", "copy alone", "resize alone", "model alone", "write"}
    assert stages <= set(found["ms_per_tile"])
    assert all(value > 0 for value in found["ms_per_tile"].values())
    tiles, _ = folder.read_some(tmp_path / "tiles", 16, bundle.reader.size)
    found = engines.parity(bundle, tiles)
    assert found["tensorrt fp32"]["agreement_with_fp32"] == 1
    assert found["tensorrt fp32"]["seconds_to_build_and_load"] > 0


@pytest.mark.slow
def test_the_device_layer_over_the_fake_gpu(short: None, gpu: Any, twin: None) -> None:
    found = device.device_layer()
    assert found["bytes that came back changed"] == 0
    assert found["values that the graph's replay gets wrong"] == 0
    assert found["resize of 16 tiles, one graph, ms"]["p50"] > 0
    assert "close other programs" in found["asked for twice its memory"]
    assert not gpu.live, "memory was kept"


def test_latency_without_tensorrt_is_onnx_runtimes(
    short: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bundle.variants["fp32"].graph
    with pytest.raises(CannotRunError, match="CUDAExecutionProvider"):
        engines.latency(graph, Precision.FP32, False, SIZE)
    monkeypatch.setitem(choose.ENGINES, "onnxruntime-cuda", choose.ENGINES["onnxruntime"])
    found = engines.latency(graph, Precision.FP32, False, SIZE)
    assert found["batch 128"]["p50"] > 0
    with pytest.raises(CannotRunError, match="tensorrt"):
        engines.latency(graph, Precision.FP32, True, SIZE)


def test_cards_are_told_apart() -> None:
    assert engines.peak("NVIDIA L40S") != engines.peak("NVIDIA L4") != engines.peak("NVIDIA L40")
    assert engines.peak("NVIDIA GH200 480GB") != engines.peak("NVIDIA H200")
    with pytest.raises(CannotRunError, match="no data-sheet"):
        engines.peak("NVIDIA T400")
