"""`edgelung export --engine`: engines for machines that are not here, and what is refused."""

import json
from pathlib import Path

import pytest


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
