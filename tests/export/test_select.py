"""What happens to a wrong variant, to one that too few tiles judge, and to one worth mending."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from safetensors.numpy import load_file, save_file

from edgelung.artifacts.bundle import open_bundle
from edgelung.artifacts.manifest import Calibration
from edgelung.artifacts.results import GateResult, Limits
from edgelung.artifacts.run import RunFolder
from edgelung.cli import export as command
from edgelung.cli.app import app
from edgelung.core.precision import Precision
from edgelung.engines.base import Output
from edgelung.engines.choose import open_engine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation import gate as gate_module
from edgelung.evaluation.gate import LIMITS
from edgelung.export import calibrate, evaluate, variants
from edgelung.export.build import export_run
from edgelung.export.calibrate import plan_int8
from edgelung.export.candidates import Candidate
from edgelung.export.evaluate import GateSet, check_fp16_range, check_in_openvino
from edgelung.export.graph import build_graph, quantizable
from edgelung.export.inputs import ExportInputs, read_inputs
from edgelung.export.plan import Plan
from edgelung.export.predict import predict
from edgelung.export.ranges import input_scales
from edgelung.export.select import smallest_count
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import TileReader, read_split
from edgelung.export.variants import VariantMaker, prepare_variants
from edgelung.tiles.reader import ReaderSpec

INT8 = frozenset({Precision.INT8})
# 18 gate tiles cannot decide about narrower limits than these.
WIDE = Limits(
    min_agreement=0.7,
    min_relative_balanced_accuracy=0.5,
    max_recall_drop=1.0,
    max_calibration_error_rise=1.0,
)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tiles rank the linears here: all that matters is which one leads by far."""
    monkeypatch.setattr(variants, "TILES", 4)


@pytest.fixture(scope="module")
def decided(run: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run changed to predict every class, and to need its last block, whatever it learned."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("decided") / "run"))
    reader = TileReader(ReaderSpec(size=64))
    weights = load_file(folder / "model.safetensors")
    weights["blocks.5.mlp.fc2.weight"] = 30 * weights["blocks.5.mlp.fc2.weight"]
    save_file(weights, folder / "model.safetensors")
    student = read_student(RunFolder(folder))
    subsets = read_split(RunFolder(folder), tiles, student.classes)
    graph = build_graph(student).SerializeToString()
    found = predict(graph, subsets["val"], reader, "").probabilities
    shift = np.median(np.log(found), axis=0).astype(np.float32)
    for head in ("head", "head_dist"):
        weights[f"{head}.weight"] = 40 * weights[f"{head}.weight"]
        weights[f"{head}.bias"] = 40 * (weights[f"{head}.bias"] - shift)
    save_file(weights, folder / "model.safetensors")
    graph = build_graph(read_student(RunFolder(folder))).SerializeToString()
    rows = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
    own = {}
    for name in ("val", "test"):
        found = predict(graph, subsets[name], reader, "").probabilities
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

    def coarse(stats, method: str) -> dict[str, float]:
        scales = input_scales(stats, method)
        return {k: v * (factor if names in k else 1) for k, v in scales.items()}

    monkeypatch.setattr(calibrate, "input_scales", coarse)


def exported(run: Path, out: Path, allow_drop: bool = False) -> int:
    """The exit code of `edgelung export RUN --int8`."""
    context = typer.Context(typer.main.get_command(app).commands["export"])
    try:
        command.export(
            run, out, int8=True, calibration="min-max", allow_drop=allow_drop, context=context
        )
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
        result = bundle.variants[name].gate
        assert result.verdict == "fail"
        assert "disagreement" in result.reasons[0]
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
    result = bundle.variants["int8"].gate
    assert result.verdict == "inconclusive"
    assert result.reasons[0].startswith("not enough validation groups to tell: about ")
    assert result.needed.tiles > 2 * result.tiles
    assert result.needed.groups > result.groups
    assert open_engine(bundle).variant.precision == "fp32"


def prepared(run: Path) -> tuple[ExportInputs, VariantMaker]:
    """The inputs of an export of the run, with 18 calibration tiles, and full precision judged."""
    inputs = read_inputs(RunFolder(run), data=None, calibrates=True, calibration_tiles=18)
    return inputs, prepare_variants(inputs, 1.0, WIDE)


def passes_in_openvino(result: GateResult, *rest: object) -> tuple[GateResult, None]:
    """Instead of `check_in_openvino`, which has its own test: BF16 flips labels of a barely trained
    model."""
    return result, None


def test_the_spoilt_linear_is_kept_in_float_and_no_other(
    decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="edgelung")
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gate_module, "MIN_GROUPS", 1)
    monkeypatch.setattr(evaluate, "check_in_openvino", passes_in_openvino)
    damage(monkeypatch, "blocks.5.mlp.fc1", 1000)
    inputs, maker = prepared(decided)
    plan = plan_int8(inputs.student, inputs.calibration, inputs.reader, "min-max")
    # Only a few of the others: a barely trained model's labels depend on the noise of all of them.
    few = {name: step for name, step in plan.scales.items() if name.startswith("blocks.5.")}
    made, ranking = maker.int8(replace(plan, scales=few))
    assert ranking.linears[0].name == "blocks.5.mlp.fc1"
    # q, k, v, proj and fc2; on a GPU the first three are one product.
    for variant, products in zip(made, (5, 3), strict=True):
        assert variant.entry.gate.verdict == "pass"
        assert variant.entry.kept_in_float == ["blocks.5.mlp.fc1"]
        assert variant.entry.quantized_linears == products
    assert made[0].entry.gate.looks == 2
    assert any("with 1 of" in text for text in caplog.messages)
    for variant, dtype in zip(made, (np.float32, np.float16), strict=True):
        graph = onnx.load_from_string(variant.evaluation.candidate.graph).graph
        kinds = [node.op_type for node in graph.node]
        # qkv, proj and fc2; on an FP32 base queries and keys of the scores too.
        assert kinds.count("QuantizeLinear") == (5 if dtype is np.float32 else 3)
        base = next(t for t in graph.initializer if t.name == "blocks.5.mlp.fc1.weight")
        assert onnx.numpy_helper.to_array(base).dtype == dtype


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_FP16])
def test_scores_can_be_kept_in_float(
    student: Student, calibration_record: Calibration, precision: Precision
) -> None:
    """On an FP16 base they are never in INT8."""
    scales = dict.fromkeys(quantizable(student), 0.02)
    plan = Plan(student, scales, {}, 1.0, 1.0, calibration_record)

    def rounded(kept: set[str]) -> int:
        graph = plan.graph(precision, kept_in_float=frozenset(kept)).graph
        return sum(node.op_type == "QuantizeLinear" for node in graph.node)

    everything = rounded(set())
    assert rounded({"blocks.0.attn.scores"}) == everything - (
        2 if precision is Precision.INT8 else 0
    )
    assert rounded({"blocks.0.attn.proj"}) == everything - 1


@pytest.mark.slow
def test_training_is_part_of_an_export(
    decided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two steps cannot mend what is broken by 1,000: what does not pass is not kept."""
    caplog.set_level("INFO", logger="edgelung")
    qat = pytest.importorskip("edgelung.export.qat")
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(GateSet, "can_pass", lambda self: True)
    monkeypatch.setattr(qat, "STEPS", 2)
    damage(monkeypatch, "blocks", 1000)
    bundle = export_run(
        decided, tmp_path / "bundle", precisions=INT8, qat=True, calibration="min-max"
    )
    assert "int8 gate: fail; training it" in caplog.messages
    assert "int8 after training: fail" in caplog.messages
    entry = bundle.variants[Precision.INT8].entry
    assert entry.calibration.qat is None
    assert entry.gate.verdict == "fail"


def test_training_comes_before_parts_in_floating_point(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "MIN_GROUPS", 1)
    monkeypatch.setattr(evaluate, "check_in_openvino", passes_in_openvino)
    inputs, maker = prepared(decided)
    plan = plan_int8(inputs.student, inputs.calibration, inputs.reader, "min-max")
    good = {"blocks.5.mlp.fc1": plan.scales["blocks.5.mlp.fc1"]}
    trained: list[Plan] = []

    def refine(damaged: Plan) -> Plan:
        trained.append(damaged)
        return replace(damaged, scales=good)

    bad = replace(plan, scales={name: 1000 * step for name, step in good.items()})
    made, _ = maker.int8(bad, refine)
    assert trained == [bad]
    for variant in made:
        assert variant.entry.gate.verdict == "pass"
        assert variant.entry.gate.looks == 2
        assert variant.entry.kept_in_float == []
    trained.clear()
    maker.int8(replace(plan, scales=good), refine)
    assert not trained, "what passes is not trained"


def test_what_openvino_predicts_must_pass_too(
    decided: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "MIN_GROUPS", 1)
    run, reader = RunFolder(decided), TileReader(ReaderSpec(size=64))
    student = read_student(run)
    validation = read_split(run, tiles, student.classes)["val"]
    graph = build_graph(student).SerializeToString()  # exact: it cannot fail by itself
    probabilities = predict(graph, validation, reader, "").probabilities
    gate_set = GateSet(validation, probabilities, student.classes, WIDE)
    passed = gate_set.judge(probabilities)
    assert passed.verdict == "pass"

    candidate = Candidate(Precision.INT8, graph, 0)
    right, output = check_in_openvino(passed, candidate, probabilities, gate_set, reader)
    assert right.verdict == right.openvino.verdict == "pass"
    assert right.openvino.same_label_as_onnxruntime > 0.7  # BF16 flips labels of such a model

    class Wrong(OpenVinoEngine):
        def infer(self, tiles: np.ndarray) -> Output:
            found = super().infer(tiles)
            return found._replace(probabilities=np.roll(found.probabilities, 1, axis=1))

    monkeypatch.setattr(evaluate, "OpenVinoEngine", Wrong)
    assert output.probabilities.shape == probabilities.shape
    wrong, _ = check_in_openvino(passed, candidate, probabilities, gate_set, reader)
    assert wrong.verdict == "fail"
    assert any(reason.startswith("in OpenVINO: ") for reason in wrong.reasons)
    assert passed.openvino is None, "the verdict that went in is unchanged"


def test_the_smallest_count_is_the_least_that_is_enough() -> None:
    for least in range(12):
        asked: list[int] = []

        def holds(count: int, least: int = least, asked: list[int] = asked) -> bool:
            asked.append(count)
            return count >= least

        assert smallest_count(holds, 24) == least
        assert len(asked) <= 9
    assert smallest_count(lambda count: False, 24) == 24


def test_a_peak_near_the_end_of_half_precision_fails() -> None:
    result = GateResult(verdict="pass", reasons=[], tiles=18)
    calm = check_fp16_range(result, 900.0)
    assert calm.verdict == "pass"
    assert calm.largest_activation == 900.0
    wild = check_fp16_range(result, 50_000.0)
    assert wild.verdict == "fail"
    assert "FP16" in wild.reasons[0]


def test_strict_is_passed_on(decided: Path, tmp_path: Path) -> None:
    fp16 = frozenset({Precision.FP16})
    bundle = export_run(decided, tmp_path / "b", precisions=fp16, strict=True)
    limits = bundle.variants[Precision.FP16].gate.limits
    assert limits.min_relative_balanced_accuracy == 0.999
    assert LIMITS.min_relative_balanced_accuracy == 0.99
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["sensitivity"] is None
