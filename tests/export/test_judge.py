"""What happens to a variant that is wrong, to one that cannot be judged, to one worth mending."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file

from edgelung.artifacts.bundle import open_bundle
from edgelung.cli import export as command
from edgelung.engines.choose import open_engine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation import gate as gate_module
from edgelung.evaluation.gate import Limits
from edgelung.export import judge as judge_module
from edgelung.export import quantize
from edgelung.export.build import export_run
from edgelung.export.calibrate import input_scales
from edgelung.export.graph import build_graph, quantizable
from edgelung.export.judge import Judge, _fewest, check_half_range
from edgelung.export.predict import predict
from edgelung.export.quantize import Plan, plan_int8
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import read_split, set_aside
from edgelung.tiles.reader import ReaderSpec


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles rank the linears here: what matters is who leads by far."""
    monkeypatch.setattr(judge_module, "TILES", 4)


@pytest.fixture(scope="module")
def decided(run: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run made to answer with every class, and to need its last block, whatever it learned."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("decided") / "run"))
    spec = ReaderSpec(size=64)
    weights = load_file(folder / "model.safetensors")
    weights["blocks.5.mlp.fc2.weight"] = 30 * weights["blocks.5.mlp.fc2.weight"]
    save_file(weights, folder / "model.safetensors")
    subsets = read_split(folder, tiles, read_student(folder).classes)
    found = predict(build_graph(read_student(folder)), subsets["val"], spec, "")
    shift = np.median(np.log(found), axis=0).astype(np.float32)
    for head in ("head", "head_dist"):
        weights[f"{head}.weight"] = 40 * weights[f"{head}.weight"]
        weights[f"{head}.bias"] = 40 * (weights[f"{head}.bias"] - shift)
    save_file(weights, folder / "model.safetensors")
    student = read_student(folder)
    rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
    own = {}
    for name in ("val", "test"):
        found = predict(build_graph(student), subsets[name], spec, "")
        own |= {tile.path: p for tile, p in zip(subsets[name].tiles, found, strict=True)}
    for row in rows:
        for i, name in enumerate(student.classes):
            row[f"p_{name}"] = str(own[row["path"]][i])
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def damage(monkeypatch: pytest.MonkeyPatch, names: str, factor: float) -> None:
    """INT8 steps too coarse by `factor` in the linears whose name contains `names`."""

    def coarse(observed, method: str) -> dict[str, float]:
        scales = input_scales(observed, method)
        return {k: v * (factor if names in k else 1) for k, v in scales.items()}

    monkeypatch.setattr(quantize, "input_scales", coarse)


def exported(run: Path, out: Path, allow_drop: bool = False) -> int:
    """The exit code of `edgelung export RUN --int8`."""
    try:
        command.export(run, out, int8=True, calibration="min-max", allow_drop=allow_drop)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def test_a_damaged_variant_fails_and_is_never_offered(
    decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    damage(monkeypatch, "blocks", 1000)
    assert exported(decided, tmp_path / "bundle") == 4
    bundle = open_bundle(tmp_path / "bundle")
    for name in ("int8", "int8-fp16"):
        verdict = bundle.variants[name].gate
        assert verdict["verdict"] == "fail"
        assert "disagreement" in verdict["reasons"][0]
    assert open_engine(bundle).variant.precision == "fp32"
    report = (tmp_path / "bundle" / "report.html").read_text()
    assert "disagreement" in report
    assert report.count("data:image/jpeg") >= 5, "flipped tiles are shown"


def test_a_good_variant_on_few_tiles_is_inconclusive_and_never_offered(
    decided: Path, tmp_path: Path
) -> None:
    """--allow-drop changes the exit code and nothing else."""
    assert exported(decided, tmp_path / "bundle", allow_drop=True) == 0
    bundle = open_bundle(tmp_path / "bundle")
    verdict = bundle.variants["int8"].gate
    assert verdict["verdict"] == "inconclusive"
    assert "would decide" in verdict["reasons"][-1]
    assert verdict["needed"]["tiles"] > 2 * verdict["tiles"]
    assert verdict["needed"]["groups"] > verdict["groups"]
    assert open_engine(bundle).variant.precision == "fp32"


def test_the_spoilt_linear_is_given_back_and_no_other(
    decided: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gate_module, "MIN_GROUPS", 1)
    # A matter of its own (below): BF16 turns labels of so undecided a model.
    monkeypatch.setattr(Judge, "_judge_in_openvino", lambda self, found, verdict: None)
    damage(monkeypatch, "blocks.5.mlp.fc1", 1000)
    student, spec = read_student(decided), ReaderSpec(size=64)
    subsets = read_split(decided, tiles, student.classes)
    calibration, rest = set_aside(subsets["val"], 18, 0)
    plan = plan_int8(student, calibration, spec, "min-max")
    # Of the others only a few: a barely trained model's labels mind the noise of all of them.
    few = {name: step for name, step in plan.scales.items() if name.startswith("blocks.5.")}
    plan = replace(plan, scales=few)
    # 18 tiles can carry no finer limits than these.
    limits = Limits(0.7, 0.5, 1.0, 1.0)
    said: list[str] = []
    judge = Judge(tmp_path, student, 1.0, spec, rest, subsets["test"], limits, said.append)
    judge.full_precision()
    ranking = judge.int8(plan, calibration)
    assert ranking["linears"][0]["name"] == "blocks.5.mlp.fc1"
    # q, k, v, proj and fc2; on a GPU the first three are one product.
    for name, products in (("int8", 5), ("int8-fp16", 3)):
        entry = judge.variants[name]
        assert entry["gate"]["verdict"] == "pass"
        assert entry["given_back"] == ["blocks.5.mlp.fc1"]
        assert entry["quantized_linears"] == products
    assert judge.variants["int8"]["gate"]["looks"] == 2
    assert any("without 1 of" in text for text in said)
    import onnx

    for name, dtype in (("int8", np.float32), ("int8-fp16", np.float16)):
        graph = onnx.load(tmp_path / f"model.{name}.onnx").graph
        kinds = [node.op_type for node in graph.node]
        # qkv, proj and fc2; on an FP32 base queries and keys of the scores too.
        assert kinds.count("QuantizeLinear") == (5 if dtype is np.float32 else 3)
        base = next(t for t in graph.initializer if t.name == "blocks.5.mlp.fc1.weight")
        assert onnx.numpy_helper.to_array(base).dtype == dtype


@pytest.mark.parametrize("half", [False, True])
def test_scores_can_be_given_back(student: Student, half: bool) -> None:
    """On an FP16 base they never were in INT8."""
    plan = Plan(student, dict.fromkeys(quantizable(student), 0.02), {}, 1.0, 1.0, {})

    def rounded(back: set[str]) -> int:
        graph = plan.graph(half=half, given_back=frozenset(back)).graph
        return sum(node.op_type == "QuantizeLinear" for node in graph.node)

    everything = rounded(set())
    assert rounded({"blocks.0.attn.scores"}) == everything - (0 if half else 2)
    assert rounded({"blocks.0.attn.proj"}) == everything - 1


def test_training_is_part_of_an_export(
    decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps cannot mend what is broken by 1,000: what does not pass is not kept."""
    qat = pytest.importorskip("edgelung.export.qat")
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Judge, "_could_pass", lambda self: True)
    monkeypatch.setattr(qat, "STEPS", 2)
    damage(monkeypatch, "blocks", 1000)
    said: list[str] = []
    how = {"calibration": "min-max", "say": said.append}
    bundle = export_run(decided, tmp_path / "bundle", half=False, int8=True, qat=True, **how)
    assert "int8 gate: fail; training it" in said
    assert "int8 after training: fail" in said
    entry = bundle.manifest["variants"]["int8"]
    assert "qat" not in entry["calibration"]
    assert entry["gate"]["verdict"] == "fail"


def test_training_comes_before_giving_back(
    decided: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "MIN_GROUPS", 1)
    monkeypatch.setattr(Judge, "_judge_in_openvino", lambda self, found, verdict: None)
    student, spec = read_student(decided), ReaderSpec(size=64)
    subsets = read_split(decided, tiles, student.classes)
    calibration, rest = set_aside(subsets["val"], 18, 0)
    plan = plan_int8(student, calibration, spec, "min-max")
    good = {"blocks.5.mlp.fc1": plan.scales["blocks.5.mlp.fc1"]}
    asked: list[Plan] = []

    def refine(damaged: Plan) -> Plan:
        asked.append(damaged)
        return replace(damaged, scales=good)

    limits = Limits(0.7, 0.5, 1.0, 1.0)
    judge = Judge(tmp_path, student, 1.0, spec, rest, subsets["test"], limits)
    judge.full_precision()
    bad = replace(plan, scales={name: 1000 * step for name, step in good.items()})
    judge.int8(bad, calibration, refine)
    assert asked == [bad]
    for name in ("int8", "int8-fp16"):
        assert judge.variants[name]["gate"]["verdict"] == "pass"
        assert judge.variants[name]["gate"]["looks"] == 2
        assert judge.variants[name]["given_back"] == []
    asked.clear()
    judge.int8(replace(plan, scales=good), calibration, refine)
    assert not asked, "what passes is not trained"


def test_what_openvino_gives_must_pass_too(
    decided: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "MIN_GROUPS", 1)
    student, spec = read_student(decided), ReaderSpec(size=64)
    subsets = read_split(decided, tiles, student.classes)
    limits = Limits(0.7, 0.5, 1.0, 1.0)
    judge = Judge(tmp_path, student, 1.0, spec, subsets["val"], subsets["test"], limits)
    judge.full_precision()
    found = judge._write("int8", build_graph(student))  # exact: it cannot fail of itself

    right = judge.judge(found)
    judge._judge_in_openvino(found, right)
    assert right["verdict"] == right["openvino"]["verdict"] == "pass"
    assert right["openvino"]["same_label_as_onnxruntime"] > 0.7  # BF16 turns labels of such a model

    class Wrong(OpenVinoEngine):
        def infer(self, pixels: np.ndarray) -> np.ndarray:
            return np.roll(super().infer(pixels), 1, axis=1)

    monkeypatch.setattr(judge_module, "OpenVinoEngine", Wrong)
    wrong = judge.judge(found)
    judge._judge_in_openvino(found, wrong)
    assert wrong["verdict"] == "fail"
    assert any(reason.startswith("in OpenVINO: ") for reason in wrong["reasons"])


def test_fewest_is_the_least_that_holds() -> None:
    for least in range(12):
        asked: list[int] = []

        def holds(count: int, least: int = least, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= least

        assert _fewest(holds, 24) == least
        assert len(asked) <= 9
    assert _fewest(lambda count: False, 24) == 24


def test_a_peak_near_the_end_of_half_precision_fails() -> None:
    verdict = {"verdict": "pass", "reasons": []}
    check_half_range(verdict, 900.0)
    assert verdict["verdict"] == "pass"
    check_half_range(verdict, 50_000.0)
    assert verdict["verdict"] == "fail"
    assert "FP16" in verdict["reasons"][0]


def test_strict_is_passed_on(decided: Path, tmp_path: Path) -> None:
    bundle = export_run(decided, tmp_path / "b", half=True, int8=False, strict=True)
    limits = bundle.variants["fp16"].gate["limits"]
    assert limits["min_relative_balanced_accuracy"] == 0.999
    assert judge_module.LIMITS.min_relative_balanced_accuracy == 0.99
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["sensitivity"] is None
