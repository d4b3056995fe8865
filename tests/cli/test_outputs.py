"""Outputs are checked before the work, by the name of their option; runtimes print nothing."""

from pathlib import Path

import pytest

from edgelung.engines.cuda import gpu_present

GOLDEN = Path(__file__).parents[2] / "edgelung" / "starter" / "golden"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("infer GOLDEN --out gone/e.csv", "--out gone/e.csv: the folder gone does not exist"),
        ("infer GOLDEN --out folder", "--out folder is a folder"),
        ("infer GOLDEN --out file/e.csv", "file is not a folder"),
        ("infer GOLDEN --summary gone/s.json", "--summary gone/s.json: the folder gone does not"),
        ("bench --out gone/b.json", "--out gone/b.json: the folder gone does not exist"),
        ("compare nothing --out gone/c.html", "--out gone/c.html: the folder gone does not exist"),
        ("audit nothing --out file/a", "--out file/a: "),
        ("audit nothing --out folder", "--out folder already exists; expected a new folder"),
        ("train nothing --out file/r", "--out file/r: "),
        ("export nothing --out file/b", "--out file/b: "),
        ("demo --out file/d", "--out file/d: "),
    ],
)
def test_a_place_that_cannot_be_written_is_named_by_its_option(
    cli, tmp_path: Path, words: str, fault: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").touch()
    (tmp_path / "file").touch()
    result = cli(*words.replace("GOLDEN", str(GOLDEN)).split())
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("edgelung: ")
    assert fault in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(gpu_present(), reason="this machine has what is missing elsewhere")
def test_an_engine_without_its_libraries_is_one_line_of_ours(cli) -> None:
    """ONNX Runtime itself would print records such as `[E:onnxruntime:Default, …]`."""
    result = cli("infer", GOLDEN, "--engine", "onnxruntime-cuda")
    assert result.returncode == 2
    note, fault = result.stderr.splitlines()
    assert note.startswith("no --model: the starter bundle predicts")
    assert fault.startswith("edgelung: no engine can run ")
    assert "onnxruntime-cuda needs an NVIDIA GPU, and none is visible" in fault


@pytest.mark.skipif(gpu_present(), reason="this machine has what is missing elsewhere")
def test_the_selftest_prints_nothing_beside_its_table(cli) -> None:
    result = cli("doctor", "--selftest")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "onnxruntime:Default" not in result.stdout
