"""`edgelung export --engine`: engines for machines that are not here, and what is refused."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.artifacts.trust import OWN_WORK
from edgelung.cli import ahead
from edgelung.core.precision import Precision


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "tensorrt"], "this machine lacks GPU, driver"),
        (["--engine", "openvino"], "expected tensorrt-rtx"),
        (["--target", "sm_86"], "--target needs --engine tensorrt-rtx"),
        (["--engine", "tensorrt-rtx"], "--target"),
        (["--engine", "tensorrt-rtx", "--target", "sm_90"], "no target 'sm_90'"),
    ],
)
def test_refused_before_the_work(
    run: Path, tmp_path: Path, cli, words: list[str], message: str
) -> None:
    if "tensorrt-rtx" in words:
        pytest.importorskip("tensorrt_rtx")
    result = cli("export", run, "--out", tmp_path / "bundle", *words)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


def test_engines_stand_beside_the_bundle(run: Path, tmp_path: Path, cli) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ["--engine", "tensorrt-rtx", "--target", "sm_86,sm_120", "--json"]
    result = cli("export", run, "--out", tmp_path / "bundle", *words)
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert "engines" not in manifest
    assert not any("engine" in name for name in manifest["files"])
    listed = json.loads((tmp_path / "bundle.engines" / "engines.json").read_text())["engines"]
    assert [entry["target"] for entry in listed] == ["sm_86", "sm_120"]
    assert {entry["variant"] for entry in listed} == {"fp32"}  # nothing else was exported
    assert "fp32.sm_86.engine" in result.stderr
    # Three products a block of what is one linear on a GPU; three of the score.
    assert "77 FLOAT" in result.stderr
    assert "--prebuilt" in result.stderr
    here = ["infer", tmp_path, "--model", tmp_path / "bundle", "--out", tmp_path / "p.csv"]
    wrong = cli(*here, "--prebuilt", tmp_path / "bundle.engines")
    assert wrong.returncode == 2
    assert "needs --engine tensorrt-rtx" in wrong.stderr


def test_only_what_has_no_engine_is_named_as_left_out(
    early_exit_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def build(
        bundle: Bundle, folder: Path, flavour: object, targets: Sequence[str], on_built: Callable
    ) -> list[SimpleNamespace]:
        facts = {"file": "e", "bytes": 1, "profile": "1/2/3", "version": "1"}
        contents = SimpleNamespace(types={"INT8": 1})
        return [
            SimpleNamespace(variant=v.precision, target=target, contents=contents, **facts)
            for v, target in ahead.planned_builds(bundle, targets)
        ]

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(ahead, "build_ahead", build)
    bundle = open_bundle(early_exit_bundle, OWN_WORK)
    assert bundle.variants[Precision.INT8_EARLY_EXIT].passed
    plan = ahead.EnginePlan(flavour=None, targets=["sm_89"], folder=tmp_path)
    ahead.build_engines(plan, bundle)
    left_out = {line.partition("no engine of ")[2].partition(":")[0] for line in caplog.messages}
    refused = {str(v.precision) for v in bundle.variants.values() if not v.passed}
    assert left_out - {""} == refused
