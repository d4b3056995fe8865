"""`edgelung gpu-check` without a GPU: what hangs, dies or is missing is a reason, the rest runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.engines.base import GraphBytes
from edgelung.tiles.reader import decode_tile
from edgelung.tools.gpu_check import check, device, engines, folder, parts, ways
from edgelung.tools.gpu_check.timing import CannotRunError, time_calls

SIZE = 64  # pixels of the fixture's tiles


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three repeats of everything that is timed."""
    for module in (device, engines, folder, ways):
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
    found = engines.latency(graph, Precision.FP32, True, SIZE)
    assert found["batch 128"]["p50"] > 0
    assert "tensorrt" in found["no_tensorrt"]


def test_onnx_runtime_in_all_its_ways(
    short: None, bundle: Bundle, cuda_sessions: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"offline_tiles_per_second": 1.0}
    monkeypatch.setattr(ways, "scenarios", lambda engine, size, seconds: dict(rates))
    found = ways.onnxruntime_ways(bundle.variants["fp16"].graph, 1.0, SIZE)
    assert found["fused"]
    assert "no data-sheet" in found["no_share_of_peak"]
    assert "cannot_run" in found["a copy per run"]  # the fake provider has bound memory only
    for way in ("bound memory, graphs", "bound memory, fused, graphs", "bound memory, fused"):
        assert found[way]["offline_tiles_per_second"] > 0
        assert found[way]["largest_difference"] < 3e-3
    recorded = [bool(session.recorded) for session in cuda_sessions]
    assert recorded == [False, False, True, True]


@pytest.mark.slow  # loads seven graphs in three engines
def test_the_early_exit_beside_whole_models(
    short: None,
    early_exit_bundle: Path,
    twin: None,
    install: Any,
    cuda_sessions: list,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("tensorrt")
    monkeypatch.setattr(ways, "batch_of", lambda tiles, count: tiles[:4])
    monkeypatch.setattr(ways, "WHOLE", (Precision.INT8,))
    bundle = open_bundle(early_exit_bundle)
    tiles = np.stack([decode_tile(tile.file.read(), bundle.reader) for tile in bundle.golden])
    found = ways.early_exit(bundle, tiles)[Precision.INT8_EARLY_EXIT]
    assert 0 < found["leave"] < 1
    for name in ("tensorrt", "onnxruntime-cuda"):
        assert found[name]["same_stage_as_on_cpu"] == 1
        assert found[name]["largest_difference_at_the_same_stage"] < 1e-5
        assert found[name]["int8, tiles per second"] > 0
    with pytest.raises(CannotRunError, match="no variant with an early exit"):
        ways.early_exit(replace(bundle, variants={}), tiles)


@pytest.mark.slow  # writes DeiT-T, then loads its graphs in an engine five times
def test_an_early_exit_in_fp16_at_given_shares(
    short: None,
    gpu: Any,
    twin: None,
    install: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("tensorrt")
    gpu.memory_bytes = 1 << 33
    monkeypatch.setattr(ways, "AUTO_GPU_ENGINES", ("tensorrt",))
    monkeypatch.setattr(ways, "batch_of", lambda tiles, count: tiles[:4])
    paths = (tmp_path / "1.onnx", tmp_path / "2.onnx", tmp_path / "whole.onnx")
    architecture = "deit_tiny_distilled_patch16_224"
    parts.write_random_stages(paths[:2], architecture)
    parts.write_random_graph(paths[2], architecture)
    graphs = [GraphBytes(path.read_bytes(), path.name) for path in paths]
    found = ways.exit_speed(*graphs, parts.DEIT_B_SIZE)["tensorrt"]
    for share in (0.2, 0.3, 0.5):
        assert found[f"{share:.0%} continue"]["continued"] == pytest.approx(share, abs=0.02)
        assert found[f"{share:.0%} continue"]["times_the_whole_model"] > 0


def test_cards_are_told_apart() -> None:
    assert engines.peak("NVIDIA L40S") != engines.peak("NVIDIA L4") != engines.peak("NVIDIA L40")
    assert engines.peak("NVIDIA GH200 480GB") != engines.peak("NVIDIA H200")
    with pytest.raises(CannotRunError, match="no data-sheet"):
        engines.peak("NVIDIA T400")
