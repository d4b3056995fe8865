"""bundle.json: read and written by one module, and bundles of 0.1 still open."""

import json
import shutil
from pathlib import Path

import pytest

from edgelung.artifacts.bundle import MANIFEST, open_bundle, starter_bundle, write_bundle
from edgelung.artifacts.manifest import BundleManifest
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision

SHIPPED = [Precision.FP32, Precision.INT8, Precision.INT8_EARLY_EXIT]


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    """A copy of the starter, which edgelung 0.1 exported."""
    return Path(shutil.copytree(starter_bundle(), tmp_path / "starter"))


def test_the_starter_as_shipped_opens() -> None:
    bundle = open_bundle(starter_bundle())
    assert list(bundle.variants) == SHIPPED
    gate = bundle.variant(Precision.INT8).gate
    assert (gate.verdict, gate.tiles, gate.groups, gate.looks) == ("pass", 1373, 60, 1)
    assert gate.checks is not None
    assert all(check.verdict == "pass" for check in gate.checks.values())
    calibration = bundle.variant(Precision.INT8).entry.calibration
    assert calibration is not None
    assert calibration.scores[f"{calibration.method}, biases"].flipped <= 1  # of 553 tiles
    test = bundle.variant(Precision.INT8).entry.test
    assert test is not None
    assert test.intervals.accuracy[0] < test.accuracy < test.intervals.accuracy[1]
    assert bundle.manifest.sensitivity is not None
    assert len(bundle.manifest.sensitivity.linears) == 61
    assert bundle.manifest.provenance is not None
    assert bundle.manifest.provenance.sets["train"].groups == 432


def test_a_manifest_survives_reading_and_writing(starter: Path) -> None:
    manifest = open_bundle(starter).manifest
    write_bundle(starter, manifest)
    assert open_bundle(starter).manifest == manifest


def test_what_is_read_is_what_the_file_says() -> None:
    """Every value of the starter's bundle.json."""
    content = json.loads((starter_bundle() / MANIFEST).read_text("utf-8"))
    again = json.loads(json.dumps(typed_json.plain(typed_json.convert(content, BundleManifest))))
    assert again == content


def test_a_variant_that_is_not_there_names_the_option_that_adds_it() -> None:
    bundle = open_bundle(starter_bundle())
    with pytest.raises(EdgelungError, match=r"holds no fp16 variant; .*fp32, int8.*--fp16"):
        bundle.variant(Precision.FP16)


def test_a_precision_of_a_newer_edgelung_is_passed_over(starter: Path) -> None:
    content = json.loads((starter / MANIFEST).read_text("utf-8"))
    content["variants"]["int4"] = content["variants"]["int8"]
    write_bundle(starter, content)
    assert list(open_bundle(starter).variants) == SHIPPED


@pytest.mark.parametrize("value", [0, -192, 0.25, 1e9, float("nan"), "192", None])
def test_a_bundle_with_an_implausible_size_of_a_tile_is_refused(
    value: object, starter: Path
) -> None:
    content = json.loads((starter / MANIFEST).read_text("utf-8"))
    write_bundle(starter, content | {"tile_um": value})
    with pytest.raises(EdgelungError, match=r"tile_um.*export the bundle again"):
        open_bundle(starter)


SPEED = {"engine": "openvino", "tiles_per_second": 180.0, "latency_ms": 6.0}
TARGET = {
    "variant": "int8",
    "reached": True,
    "latency_ms": 10,
    "tiles_per_second": None,
    "measured": {"int8": SPEED},
}


def with_target(folder: Path, target: object) -> Path:
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    write_bundle(folder, content | {"target": target})
    return folder


def test_a_target_is_read(starter: Path) -> None:
    target = open_bundle(with_target(starter, TARGET), OWN_WORK).manifest.target
    assert typed_json.plain(target) == TARGET


@pytest.mark.parametrize(
    "change",
    [
        {"latency_ms": float("nan")},
        {"latency_ms": float("inf")},
        {"latency_ms": -1.0},
        {"latency_ms": None},
        {"tiles_per_second": 0},
        {"variant": 8},
        {"reached": "yes"},
        {"measured": {"int8": SPEED | {"tiles_per_second": float("nan")}}},
        {"measured": {"int8": SPEED | {"latency_ms": float("inf")}}},
    ],
    ids=str,
)
def test_a_target_that_is_none_is_refused(change: dict[str, object], starter: Path) -> None:
    with pytest.raises(EdgelungError, match=r"target.*export the bundle again"):
        open_bundle(with_target(starter, TARGET | change), OWN_WORK)


def test_a_bundle_without_the_size_of_a_tile_is_written_as_before(starter: Path) -> None:
    manifest = open_bundle(starter).manifest
    assert open_bundle(starter).tile_um is None
    assert "tile_um" not in json.dumps(typed_json.plain(manifest))
