"""`edgelung doctor`: every row, what would mend it, and the golden tiles on every engine."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edgelung.artifacts.bundle import Bundle
from edgelung.core.system import saturates_int8
from edgelung.engines import choose, cuda, openvino
from edgelung.engines.names import EngineName
from edgelung.engines.tensorrt.flavour import INSTALL
from edgelung.tools import doctor
from edgelung.tools.doctor import Finding

ROWS = [
    "Python",
    "edgelung",
    "GPU",
    "compute capability",
    "driver",
    "CUDA",
    "TensorRT",
    "TensorRT-RTX",
    "pycuda",
    "cuda-bindings",
    "ONNX Runtime",
    "ONNX Runtime CUDA",
    "OpenVINO",
    "nvimgcodec",
    "CPU resize",
    "cubins",
    "engine cache",
]


def test_every_row_in_json(cli, tmp_path: Path) -> None:
    result = cli("doctor", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert [f["what"] for f in report["findings"]] == [
        *ROWS,
        "trusted keys",
        "user's edgelung.toml",
    ]
    assert {f["state"] for f in report["findings"]} <= {"ok", "missing", "none"}
    assert report["selftest"] is None
    if not cuda.gpu_present():
        engine = "onnxruntime" if saturates_int8() else "openvino"
        assert report["choice"].startswith(f"{engine} on the CPU, INT8 before FP32")


def test_the_table_for_people(cli) -> None:
    result = cli("doctor")
    assert result.returncode == 0, result.stderr
    for row in ROWS:
        assert row in result.stdout
    assert "infer would run" in result.stdout


def test_the_selftest_runs_what_is_there(bundle_folder: Path, cli) -> None:
    result = cli("doctor", "--selftest", "--model", bundle_folder, "--json")
    assert result.returncode == 0, result.stderr
    tests = {(t["engine"], t["precision"]): t for t in json.loads(result.stdout)["selftest"]}
    assert {engine for engine, _ in tests} == set(choose.ENGINES)
    for engine in ("openvino", "onnxruntime"):
        for precision in ("fp32", "fp16", "int8"):
            if (engine, precision) == ("openvino", "int8") and saturates_int8():
                assert "no VNNI" in tests[engine, precision]["reason"]
                continue
            assert tests[engine, precision]["state"] == "ok"
            assert tests[engine, precision]["golden_difference"] < 0.1
    unavailable = [t for t in tests.values() if t["state"] == "unavailable"]
    assert all(t["reason"] for t in unavailable)


def test_without_a_bundle_the_starter_is_tested(cli) -> None:
    result = cli("doctor", "--selftest", "--json")
    assert result.returncode == 0, result.stderr
    tests = {(t["engine"], t["precision"]): t for t in json.loads(result.stdout)["selftest"]}
    assert tests["onnxruntime", "int8"]["state"] == "ok"
    assert tests["openvino", "int8"]["state"] == ("unavailable" if saturates_int8() else "ok")


def test_without_vnni_openvino_is_tested_in_floating_point(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "saturates_int8", lambda: True)
    tests = {(test.engine, test.precision): test for test in doctor.run_selftest(bundle)}
    assert tests["openvino", "fp32"].state == tests["openvino", "fp16"].state == "ok"
    assert tests["openvino", "int8"].state == "unavailable"
    assert "no VNNI" in tests["openvino", "int8"].reason


def test_a_wrong_engine_fails_the_selftest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(choose.OnnxRuntimeEngine):
        def infer(self, tiles: Any) -> Any:
            found = super().infer(tiles)
            return found._replace(probabilities=1 - found.probabilities)

    monkeypatch.setattr(choose, "ENGINES", {EngineName.ONNXRUNTIME: Wrong})
    assert {test.state for test in doctor.run_selftest(bundle)} == {"wrong"}


def findings(**states: str) -> list[Finding]:
    known = dict.fromkeys(ROWS, "none") | states
    return [Finding(what, state, f"the {what}") for what, state in known.items()]


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({}, "none: neither"),
        ({"ONNX Runtime": "ok"}, "onnxruntime on the CPU"),
        ({"ONNX Runtime": "ok", "OpenVINO": "ok"}, "openvino on the CPU"),
        ({"GPU": "ok", "OpenVINO": "ok"}, "openvino on the CPU, INT8 before FP32 (the GPU is here"),
        (
            {"GPU": "ok", "TensorRT": "ok", "OpenVINO": "ok"},
            "auto: at first use it times tensorrt with",
        ),
        (
            {"GPU": "ok", "TensorRT-RTX": "ok", "ONNX Runtime CUDA": "ok"},
            "auto: at first use it times tensorrt-rtx, onnxruntime-cuda with",
        ),
        ({"TensorRT-RTX": "ok", "OpenVINO": "ok"}, "openvino on the CPU"),  # it only builds here
    ],
)
def test_which_engine_would_run(
    states: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "saturates_int8", lambda: False)
    assert doctor.choose_engine(findings(**states)).startswith(says)


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"ONNX Runtime": "ok", "OpenVINO": "ok"}, "onnxruntime on the CPU, INT8 before FP32"),
        ({"OpenVINO": "ok"}, "openvino on the CPU, FP32"),
    ],
)
def test_which_engine_would_run_without_vnni(
    states: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "saturates_int8", lambda: True)
    choice = doctor.choose_engine(findings(**states))
    assert choice.startswith(says)
    assert "no VNNI" in choice


def test_a_look_up_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(here: bool) -> list[Finding]:
        raise RuntimeError("the library is broken")

    look_ups = [broken if one is doctor._gpu else one for one in doctor.LOOK_UPS]
    monkeypatch.setattr(doctor, "LOOK_UPS", look_ups)
    result = doctor.examine_machine()
    assert any(finding.found == "the library is broken" for finding in result.findings)
    assert "on the CPU" in result.choice


def test_with_a_gpu_what_is_missing_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_present", lambda: True)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    rows = {finding.what: finding for finding in doctor.examine()}
    assert rows["GPU"].state == rows["TensorRT"].state == rows["pycuda"].state == "missing"
    assert rows["TensorRT"].remedy == INSTALL["tensorrt"]
    assert "…" not in rows["TensorRT"].found
    assert "edgelung[gpu]" in rows["pycuda"].remedy
    for finding in rows.values():
        assert finding.remedy or finding.state != "missing", finding


def test_tensorrt_rtx_is_no_engine_of_a_card_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As found on an H200 (SM 90): it loads, and can only build for others."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(doctor, "gpu_present", lambda: True)
    for architecture, state in (("sm_90", "missing"), ("sm_89", "ok")):
        monkeypatch.setattr(doctor, "_architecture", lambda own=architecture: own)
        rows = {finding.what: finding for finding in doctor.examine()}
        assert rows["TensorRT-RTX"].state == state
        unknown = "does not know this GPU (sm_90)" in rows["TensorRT-RTX"].found
        assert unknown == (state == "missing")


def test_the_table_shows_brackets_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich takes [gpu] for markup: the command would lack the extra."""
    from edgelung.cli import doctor as command
    from edgelung.core import terminal

    terminal.out.cache_clear()
    finding = Finding("pycuda", "missing", "not [yet] installed", "pip install 'edgelung[gpu]'")
    command._print(doctor.Examination([finding], "openvino", None))
    terminal.out.cache_clear()
    printed = capsys.readouterr().out
    assert "pip install 'edgelung[gpu]'" in printed
    assert "not [yet] installed" in printed


def test_the_defaults_of_both_files_are_shown(cli, tmp_path: Path) -> None:
    (tmp_path / "user.toml").write_text('[infer]\nengine = "onnxruntime"\n')
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "edgelung.toml").write_text("[infer]\nthreads = 3\n")
    environment = os.environ | {"EDGELUNG_CONFIG": str(tmp_path / "user.toml")}
    result = cli("doctor", "--model", tmp_path / "bundles" / "first", "--json", env=environment)
    rows = {f["what"]: f for f in json.loads(result.stdout)["findings"]}
    assert rows["user's edgelung.toml"]["found"] == (
        f"{tmp_path / 'user.toml'}: engine = onnxruntime"
    )
    assert rows["bundle's edgelung.toml"]["found"].endswith("edgelung.toml: threads = 3")


def test_a_wrong_key_in_edgelung_toml_is_a_row(cli, tmp_path: Path) -> None:
    (tmp_path / "user.toml").write_text("[infer]\nthread = 3\n")
    environment = os.environ | {"EDGELUNG_CONFIG": str(tmp_path / "user.toml")}
    result = cli("doctor", "--json", env=environment)
    row = json.loads(result.stdout)["findings"][-1]
    assert row["state"] == "missing"
    assert "'thread'" in row["found"]
