"""Real TensorRT-RTX builds, with no GPU, from a bundle of a trained student; and refusals."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_helpers import all_passed
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.base import GraphBytes
from edgelung.engines.tensorrt.build import Profile, build_engine, check_targets
from edgelung.engines.tensorrt.flavour import Flavour, load_flavour
from edgelung.engines.tensorrt.prebuilt import PrebuiltEngine, build_ahead, open_prebuilt

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (edgelung[rtx])")

TARGETS = ("sm_86", "sm_89", "sm_120")
# TensorRT numbers the values in between as its threads meet them, and writes the names down.
GENERATED_NAME = re.compile(rb"__mye\d+")


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load_flavour("tensorrt-rtx")


@pytest.fixture(scope="module")
def passed(bundle_folder: Path) -> Bundle:
    return all_passed(open_bundle(bundle_folder))


@pytest.fixture(scope="module")
def ahead(
    passed: Bundle, rtx: Flavour, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[PrebuiltEngine]]:
    """Every variant built for every target."""
    folder = tmp_path_factory.mktemp("engines") / "engines"
    return folder, build_ahead(passed, folder, rtx, TARGETS)


@pytest.mark.slow  # builds every variant for every target: a minute
def test_every_variant_for_every_target(ahead: tuple, passed: Bundle) -> None:
    """Bar 3: sizes, and every linear quantized; the engines take 1 to 128 tiles."""
    folder, entries = ahead
    assert Counter(entry.variant for entry in entries) == dict.fromkeys(passed.variants, 3) | {
        "fp8": 2
    }
    assert {entry.target for entry in entries} == set(TARGETS)
    size = {(e.variant, e.target): e.bytes for e in entries}
    for target in TARGETS:
        assert size["fp16", target] <= 0.6 * size["fp32", target]
    for entry in entries:
        contents = entry.contents
        assert (folder / entry.file).stat().st_size == entry.bytes > 5_000_000
        assert entry.profile == "1/32/128"
        quantized = {name: v.entry.quantized_linears for name, v in passed.variants.items()}
        wide, split = quantized["int8-fp16"], quantized["int8"]
        assert split > wide > 48
        expected = {  # the head and the three products of the score stay in floating point
            "fp32": {"FLOAT": split + 4},
            "fp16": {"HALF": wide, "FLOAT": 4},
            "int8": {"INT8": split, "FLOAT": 4},
            "int8-fp16": {"INT8": wide, "FLOAT": 4},
            "fp8": {"FP8": wide - 1, "HALF": 1, "FLOAT": 4},  # four bits of a pixel are too few
        }
        assert contents.types == expected[entry.variant]
        assert contents.quantized_linears == quantized[entry.variant]
        assert contents.linears == sum(contents.types.values())


@pytest.mark.slow  # builds every variant for every target: a minute
def test_two_builds_are_the_same_but_for_generated_names(
    ahead: tuple, passed: Bundle, rtx: Flavour
) -> None:
    folder, _ = ahead
    again = build_engine(rtx, passed.variants["int8"].graph, Profile(), target="sm_86").plan
    first = (folder / "int8.sm_86.engine").read_bytes()
    assert GENERATED_NAME.sub(b"", first) == GENERATED_NAME.sub(b"", again)


@pytest.mark.slow  # builds every variant for every target: a minute
def test_a_prebuilt_engine_is_found_by_graph_and_target(
    ahead: tuple, passed: Bundle, rtx: Flavour
) -> None:
    folder, _ = ahead
    graph = passed.variants["fp16"].graph
    prebuilt = open_prebuilt(folder)
    plan = prebuilt.find(rtx, "sm_89", graph)
    assert plan == (folder / "fp16.sm_89.engine").read_bytes()
    with pytest.raises(EdgelungError, match=r"holds engines for .*this machine needs sm_75"):
        prebuilt.find(rtx, "sm_75", graph)
    other = GraphBytes(graph.read() + b"\0", "model.fp16.onnx")
    with pytest.raises(EdgelungError, match="another bundle"):
        prebuilt.find(rtx, "sm_89", other)
    newer = Flavour(rtx.name, rtx.trt, "9.9.9")
    with pytest.raises(EdgelungError, match=r"TensorRT-RTX 9\.9\.9"):
        prebuilt.find(newer, "sm_89", graph)


@pytest.mark.slow  # builds every variant for every target: a minute
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "fp16.sm_89.engine").write_bytes(b"other"), "damaged"),
        (lambda f: (f / "fp16.sm_89.engine").unlink(), "is missing"),
        (lambda f: (f / "engines.json").unlink(), "expected a folder"),
        (lambda f: (f / "engines.json").write_text("[]"), "expected a folder"),
        (
            lambda f: (f / "engines.json").write_text(
                (f / "engines.json").read_text().replace("fp16.sm_89", "../fp16.sm_89")
            ),
            "outside the folder",
        ),
    ],
)
def test_damaged_prebuilt_folders_are_refused(
    ahead: tuple, passed: Bundle, rtx: Flavour, tmp_path: Path, change: Any, message: str
) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    for name in ("engines.json", "fp16.sm_89.engine"):
        shutil.copy(ahead[0] / name, folder / name)
    change(folder)
    with pytest.raises(EdgelungError, match=message):
        open_prebuilt(folder).find(rtx, "sm_89", passed.variants["fp16"].graph)


@pytest.mark.slow  # builds every variant for every target: a minute
def test_engines_stay_outside_the_bundle(ahead: tuple, passed: Bundle) -> None:
    folder, entries = ahead
    assert not list(passed.folder.rglob("*.engine"))
    text = (folder / "engines.json").read_text()
    assert str(passed.folder) not in text
    assert len(json.loads(text)["engines"]) == len(entries)


def test_both_graphs_of_an_early_exit_are_built_and_found(
    early_exit_bundle: Path, rtx: Flavour, tmp_path: Path
) -> None:
    bundle = open_bundle(early_exit_bundle)
    variant = bundle.variants[Precision.INT8_EARLY_EXIT]
    alone = replace(bundle, variants={variant.precision: variant})
    entries = build_ahead(alone, tmp_path / "engines", rtx, ["sm_89"])
    assert [e.file for e in entries] == [
        "int8-early-exit.sm_89.engine",
        "int8-early-exit.2.sm_89.engine",
    ]
    quantized = [entry.contents.quantized_linears for entry in entries]
    assert min(quantized) > 0
    assert sum(quantized) == variant.entry.quantized_linears
    prebuilt = open_prebuilt(tmp_path / "engines")
    for entry, graph in zip(entries, (variant.graph, variant.second), strict=True):
        plan = prebuilt.find(rtx, "sm_89", graph)
        assert plan == (tmp_path / "engines" / entry.file).read_bytes()


def test_an_engine_that_lost_its_integers_is_refused(
    passed: Bundle, rtx: Flavour, tmp_path: Path
) -> None:
    fp32 = passed.variants["fp32"]
    wrong = replace(fp32, entry=structs.replace(fp32.entry, quantized_linears=50))
    bundle = replace(passed, variants={"fp32": wrong})
    with pytest.raises(EdgelungError, match="sees 0 quantized linears in fp32, the bundle says 50"):
        build_ahead(bundle, tmp_path / "out", rtx, ["sm_86"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["sm_90", "sm86", "", "blackwell"])
def test_unknown_targets_are_named(rtx: Flavour, target: str) -> None:
    with pytest.raises(EdgelungError, match="it builds for sm_75"):
        check_targets(rtx, ["sm_86", target])


# ---- refusals -----------------------------------------------------------------------------------


def graph_of(nodes: list, constants: dict[str, np.ndarray], uint8: bool = False) -> bytes:
    """A graph from `tiles` [N, 8, 8, 3] to `probs`, in FP32 or on bytes."""
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "refused",
        [helper.make_tensor_value_info("tiles", kind, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.lab", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"the_{kind.lower()}", **attributes)


QUANTIZED = [
    node("QuantizeLinear", ["tiles", "scale", "zero"], "q"),
    node("DequantizeLinear", ["q", "scale", "zero"], "probs"),
]
REFUSED = {
    "non-zero zero point": (
        graph_of(QUANTIZED, {"scale": np.float32(0.1), "zero": np.int8(3)}),
        "zero",
    ),
    "mixed types": (
        graph_of([node("Add", ["tiles", "half"], "probs")], {"half": np.ones(3, np.float16)}),
        "the_add",
    ),
    "uint8 transpose": (
        graph_of(
            [
                node("Transpose", ["tiles"], "t", perm=[0, 3, 1, 2]),
                node("Cast", ["t"], "probs", to=TensorProto.FLOAT),
            ],
            {},
            uint8=True,
        ),
        "",
    ),
    "unknown op": (
        graph_of([node("Stain", ["tiles"], "probs", domain="my.lab")], {}),
        "Stain",
    ),
    "no ONNX": (b"not a graph", ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_our_message(rtx: Flavour, what: str) -> None:
    data, words = REFUSED[what]
    with pytest.raises(EdgelungError) as refused:
        build_engine(rtx, GraphBytes(data, "model.test.onnx"), Profile(), target="sm_86")
    text = str(refused.value)
    assert re.match(r"TensorRT-RTX [\d.]+ refuses model.test.onnx: ", text)
    assert words in text
    assert "gave no reason" not in text
    assert "\n" not in text
    assert len(text) < 600
