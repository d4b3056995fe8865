"""The early exit of an export: its graphs, its head, its thresholds, its evidence."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from msgspec import structs

from edgelung.artifacts.bundle import MANIFEST, SEAL, open_bundle
from edgelung.artifacts.graph_profile import Role, check_graph
from edgelung.artifacts.onnx_wire import GraphError
from edgelung.artifacts.results import GateResult
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.trust import OWN_WORK
from edgelung.cli import export as export_module
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.base import GraphBytes, Output
from edgelung.engines.choose import load_variant
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.evaluation.known import fit_known
from edgelung.export import early_exit
from edgelung.export.build import export_run
from edgelung.export.bundle_folder import _of_both_stages
from edgelung.export.early_exit import (
    ExitTiles,
    cheapest_exit,
    exit_blocks,
    fit_exit,
    trained_exits,
)
from edgelung.export.evaluate import Evaluation, GateSet, check_groups
from edgelung.export.graph import build_graph, quantizable
from edgelung.export.graph_stages import ExitHead, build_exit_features, build_exit_stages
from edgelung.export.linear_head import fit_head
from edgelung.export.student import Student
from edgelung.export.tiles import LabelledTile, TileSet

LABELS = np.arange(20) % 3


@pytest.fixture(scope="module")
def knowing(student: Student) -> Student:
    features = np.random.default_rng(0).normal(size=(20, student.width))
    return replace(student, known=fit_known(features, LABELS, block=2))


@pytest.fixture(scope="module")
def head(knowing: Student) -> ExitHead:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(20, knowing.width))
    weight = rng.normal(size=(knowing.width, 3)) / 10
    return ExitHead(weight, rng.normal(size=3), fit_known(features, LABELS, block=1))


def scales_of(student: Student) -> dict[str, float]:
    return dict.fromkeys(quantizable(student), 0.05)


def run(graph, batch: np.ndarray) -> list[np.ndarray]:
    return OnnxRuntimeEngine(GraphBytes(graph.SerializeToString()), 1).run(batch)


def test_the_stages_one_after_the_other_are_the_int8_graph(
    knowing: Student, head: ExitHead, pixels: np.ndarray
) -> None:
    scales = scales_of(knowing)
    first, second = build_exit_stages(knowing, head, 0.7, scales, {})
    whole = build_graph(knowing, temperature=0.7, precision=Precision.INT8, input_scales=scales)
    tokens = run(first, pixels)[2]
    for found, expected in zip(run(second, tokens), run(whole, pixels), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_stages_in_fp16_hand_on_what_the_fp16_graph_computes(
    knowing: Student, head: ExitHead, pixels: np.ndarray
) -> None:
    first, second = build_exit_stages(knowing, head, 0.7, {}, {}, precision=Precision.FP16)
    sizes = {"size": 64, "classes": 3, "tokens": knowing.tokens, "width": knowing.width}
    for role, graph in ((Role.FIRST_STAGE, first), (Role.SECOND_STAGE, second)):
        check_graph(graph.SerializeToString(), role, sizes)
    whole = build_graph(knowing, temperature=0.7, precision=Precision.FP16)
    tokens = run(first, pixels)[2]
    for found, expected in zip(run(second, tokens), run(whole, pixels), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_the_exit_answers_from_the_mean_patch_token(
    knowing: Student, head: ExitHead, pixels: np.ndarray
) -> None:
    scales = scales_of(knowing)
    first, _ = build_exit_stages(knowing, head, 1.0, scales, {})
    probabilities, scores, tokens = run(first, pixels)
    features = tokens[:, 2:].mean(axis=1)
    logits = np.exp(features @ head.weight + head.bias)
    np.testing.assert_allclose(
        probabilities, logits / logits.sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(scores, head.known.scores(features), rtol=1e-3)
    alone, later = run(build_exit_features(knowing, [1, 2], scales, {}), pixels)
    np.testing.assert_allclose(alone, features, rtol=1e-4, atol=1e-5)
    assert np.abs(later - features).max() > 0.01


def test_an_exit_behind_the_score_is_refused(knowing: Student, head: ExitHead) -> None:
    late = replace(head, known=replace(head.known, block=3))
    with pytest.raises(ValueError, match="behind the block of the score"):
        build_exit_stages(knowing, late, 1.0, {}, {})


def test_the_score_of_the_whole_model_may_be_that_of_the_exit(
    knowing: Student, head: ExitHead, pixels: np.ndarray
) -> None:
    same = replace(knowing, known=replace(knowing.known, block=1))
    first, second = build_exit_stages(same, head, 1.0, {}, {})
    tokens = run(first, pixels)[2]
    whole = run(build_graph(same), pixels)
    np.testing.assert_allclose(run(second, tokens)[1], whole[1], rtol=1e-4)


def test_the_stages_fit_their_roles_and_no_other(knowing: Student, head: ExitHead) -> None:
    first, second = build_exit_stages(knowing, head, 1.0, scales_of(knowing), {})
    sizes = {"size": 64, "classes": 3, "tokens": knowing.tokens, "width": knowing.width}
    data = {Role.FIRST_STAGE: first, Role.SECOND_STAGE: second}
    for role, graph in data.items():
        check_graph(graph.SerializeToString(), role, sizes)
        for other in set(Role) - {role}:
            with pytest.raises(GraphError, match=r"the (in|out)puts"):
                check_graph(graph.SerializeToString(), other, sizes)


def test_a_head_separates_what_a_line_separates() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 10)) * np.geomspace(0.01, 100, 10)
    labels = (x / np.geomspace(0.01, 100, 10))[:, :3].argmax(axis=1)
    head = fit_head(x, labels)
    assert (head.logits(x).argmax(axis=1) == labels).mean() > 0.97
    halved = head.at(2.0)
    np.testing.assert_allclose(halved.logits(x), head.logits(x) / 2)


def tiles_at_exit(groups: int, *, noise: float, wrong_groups: int = 0) -> ExitTiles:
    """Ten tiles per group; the features tell the class, but for some groups another one."""
    rng = np.random.default_rng(groups)
    labels = np.repeat(np.arange(groups) % 3, 10)
    shown = np.where(np.arange(len(labels)) < 10 * wrong_groups, (labels + 1) % 3, labels)
    features = np.eye(3)[shown] + noise * rng.normal(size=(len(labels), 3))
    return ExitTiles(features, labels, [f"g{i // 10}" for i in range(len(labels))])


def test_groups_that_the_exit_mistakes_keep_all_tiles_like_them_in_the_model() -> None:
    """Right on all calibration tiles, surely wrong on training groups: only those tell."""
    calibration = tiles_at_exit(90, noise=0.1)
    _, right = fit_exit(tiles_at_exit(300, noise=0.1), calibration, 1, np.inf)
    _, wary = fit_exit(tiles_at_exit(300, noise=0.1, wrong_groups=9), calibration, 1, np.inf)
    assert right.confidence < 0.9 < wary.confidence


def test_the_exit_stands_where_it_spares_most_work() -> None:
    """After few blocks no tile is sure; after more of them nearly all are."""
    good = tiles_at_exit(300, noise=0.1), tiles_at_exit(90, noise=0.1)
    fair = tiles_at_exit(300, noise=0.35), tiles_at_exit(90, noise=0.35)
    bad = tiles_at_exit(300, noise=3.0), tiles_at_exit(90, noise=3.0)

    def block(**candidates: tuple[ExitTiles, ExitTiles]) -> int:
        by_number = {int(name[1:]): tiles for name, tiles in candidates.items()}
        head, _ = cheapest_exit(by_number, 12, np.inf)
        return head.known.block

    assert block(b2=bad, b3=good, b6=good) == 3
    assert block(b2=good, b3=good) == 2
    assert block(b2=fair, b10=good) == 2, "more tiles continue, but each passes fewer blocks"
    assert block(b2=bad, b3=bad, b6=good) == 6
    few = tiles_at_exit(30, noise=0.1), tiles_at_exit(9, noise=0.1)
    assert cheapest_exit({2: few, 3: few}, 12, np.inf) is None


def test_what_leaves_is_never_above_the_threshold_of_the_whole_model() -> None:
    sets = tiles_at_exit(300, noise=0.1), tiles_at_exit(90, noise=0.1)
    _, rule = fit_exit(*sets, 1, np.inf)
    _, strict = fit_exit(*sets, 1, rule.known_up_to / 2)
    assert strict.known_up_to == pytest.approx(rule.known_up_to / 2, abs=1e-6)


def test_too_few_groups_give_no_exit() -> None:
    assert fit_exit(tiles_at_exit(300, noise=0.1), tiles_at_exit(9, noise=0.1), 1, np.inf) is None
    assert fit_exit(tiles_at_exit(30, noise=0.1), tiles_at_exit(90, noise=0.1), 1, np.inf) is None


def test_a_lost_group_fails_the_gate() -> None:
    tiles = tuple(LabelledTile(f"{i}", 0, f"g{i // 20}", "") for i in range(400))
    reference = np.tile(np.float32([0.9, 0.1]), (400, 1))
    gate_set = GateSet(TileSet(Path(), tiles), reference, ["a", "b"])
    result = GateResult(verdict="pass", reasons=[], tiles=400)
    ours = reference.copy()
    ours[[0, 20, 21]] = [0.1, 0.9]  # 5 % of a group, 10 % of another
    assert check_groups(result, ours, gate_set).verdict == "pass"
    ours[22] = [0.1, 0.9]
    lost = check_groups(result, ours, gate_set)
    assert lost.verdict == "fail"
    assert "1 of 20 groups" in lost.reasons[0]
    assert "15 %" in lost.reasons[0]


def test_golden_tiles_show_both_stages_and_none_at_the_edge() -> None:
    probabilities = np.full((40, 3), 0.1, np.float32)
    probabilities[:, 0] = np.linspace(0.4, 0.9, 40)
    stage = np.where(np.arange(40) < 25, 2, 1).astype(np.uint8)
    output = Output(probabilities, np.ones(40, np.float32), stage)
    elsewhere = probabilities.copy()
    elsewhere[3] += 0.2  # left in one runtime, continued in the other
    variant = _Measured(output, Output(elsewhere))
    kept = _of_both_stages([3, 5], [variant])
    assert kept[0] == 5
    assert 3 not in kept
    counts = [int((stage[kept] == one).sum()) for one in (1, 2)]
    assert min(counts) == 3


class _Measured:
    """What `_of_both_stages` reads of a measured variant."""

    def __init__(self, output: Output, in_openvino: Output) -> None:
        self.precision = Precision.INT8_EARLY_EXIT
        self.outputs = {"gate": output}
        self.evaluation = SimpleNamespace(in_openvino=in_openvino)


@pytest.mark.parametrize(("depth", "block"), [(3, 1), (6, 1), (12, 2), (24, 4)])
def test_the_exit_stands_after_a_sixth_of_the_blocks(depth: int, block: int) -> None:
    known = SimpleNamespace(block=depth - 1)
    assert exit_blocks(SimpleNamespace(depth=depth, known=known)) == [block]


def test_an_exit_may_stand_where_one_was_trained_but_not_behind_the_score(run: Path) -> None:
    student = SimpleNamespace(depth=12, known=SimpleNamespace(block=8))
    assert exit_blocks(student, [3, 8, 9]) == [2, 3, 8]
    config = RunFolder(run).read_config()
    assert trained_exits(config) == []
    student = config.recipe["student"] | {"exits": [3, 6]}
    changed = structs.replace(config, recipe=config.recipe | {"student": student})
    assert trained_exits(changed) == [3, 6]


def test_an_early_exit_without_a_variant_to_make_it_from_is_refused(
    run: Path, tmp_path: Path, cli
) -> None:
    done = cli("export", run, "--out", tmp_path / "bundle", "--early-exit")
    assert done.returncode == 2
    assert "--early-exit is made from INT8 or FP16; it needs --int8 or --fp16" in done.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"int8"}, {"int8"}),
        ({"int8", "early_exit"}, {"int8", "int8-early-exit"}),
        ({"fp16", "fp8", "early_exit"}, {"fp16", "fp8", "fp16-early-exit"}),
        ({"fp16", "int8", "early_exit"}, {"fp16", "int8", "fp16-early-exit", "int8-early-exit"}),
    ],
)
def test_an_early_exit_comes_with_each_variant_that_can_have_one(
    asked: set[str], expected: set[str]
) -> None:
    given = {name: name in asked for name in ("fp16", "int8", "fp8", "early_exit")}
    precisions = export_module._precisions(**given)
    assert precisions == expected
    passed = {precision: SimpleNamespace(passed=True) for precision in precisions}
    assert export_module._passed(SimpleNamespace(variants=passed), precisions)
    passed.popitem()
    assert not export_module._passed(SimpleNamespace(variants=passed), precisions)


def test_golden_tiles_are_steady_for_every_early_exit() -> None:
    """Tiles that are added for one exit must not be at the edge of the other."""
    probabilities = np.full((12, 3), 0.1, np.float32)
    probabilities[:, 0] = np.linspace(0.4, 0.9, 12)
    stage = np.where(np.arange(12) < 6, 2, 1).astype(np.uint8)
    output, shaky = Output(probabilities, np.ones(12, np.float32), stage), probabilities.copy()
    shaky[[3, 4, 9, 10]] += 0.2
    steady = _Measured(output, Output(probabilities))
    kept = _of_both_stages([0], [_Measured(output, Output(shaky)), steady])
    assert not {3, 4, 9, 10} & set(kept)


def test_fp16_with_an_early_exit_needs_no_int8(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("MAX_CHANGED", "MAX_LOST", "KNOWN"):  # the run has too few groups
        monkeypatch.setattr(early_exit, bound, 1.0)
    monkeypatch.setattr(Evaluation, "passed", True)
    asked = frozenset({Precision.FP16_EARLY_EXIT})
    bundle = export_run(run, tmp_path / "bundle", precisions=asked)
    assert list(bundle.variants) == [Precision.FP32, Precision.FP16, Precision.FP16_EARLY_EXIT]
    made, whole = (bundle.variants[p] for p in (Precision.FP16_EARLY_EXIT, Precision.FP16))
    assert made.entry.early_exit is not None
    assert made.entry.gate.largest_activation == whole.entry.gate.largest_activation
    assert made.entry.calibration is None
    assert made.second is not None
    graph, second = (onnx.load_from_string(one.read()) for one in (made.graph, made.second))
    for one in (graph, second):
        types = {tensor.data_type for tensor in one.graph.initializer}
        assert onnx.TensorProto.FLOAT16 in types
        assert onnx.TensorProto.INT8 not in types
    tiles = np.random.default_rng(0).integers(0, 256, (4, *[bundle.reader.size] * 2, 3), np.uint8)
    expected = load_variant(OnnxRuntimeEngine, whole, 1).infer(tiles).probabilities
    never = structs.replace(made.entry.early_exit, confidence=2.0)
    through = replace(made, entry=structs.replace(made.entry, early_exit=never))
    output = load_variant(OnnxRuntimeEngine, through, 1).infer(tiles)
    assert output.stage.tolist() == [2] * 4
    np.testing.assert_allclose(output.probabilities, expected, atol=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["fp32"].update(early_exit=v["int8-early-exit"]["early_exit"]), "fp32 has an"),
        (lambda v: v["int8-early-exit"].pop("early_exit"), "int8-early-exit has an early exit wh"),
        (lambda v: v["int8"].update(file=v["fp32"]["file"]), "two graphs are one file"),
    ],
)
def test_an_exit_belongs_to_its_variant_and_a_file_has_one_role(
    early_exit_bundle: Path, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    folder = Path(shutil.copytree(early_exit_bundle, tmp_path / "bundle"))
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(content["variants"])
    data = json.dumps(content).encode()
    (folder / MANIFEST).write_bytes(data)
    (folder / SEAL).write_text(f"{sha256(data).hexdigest()}  {MANIFEST}\n")
    with pytest.raises(EdgelungError, match=message):
        open_bundle(folder, OWN_WORK)
