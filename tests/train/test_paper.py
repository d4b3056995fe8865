"""benchmarks/paper.py: the paper's table on both splits, with small models in place of its own."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "teacher.model": "test_resnet",
    "baseline.model": "test_resnet",
    "student.model": "deit_tiny_distilled_patch16_224",
}


def test_one_command_trains_both_splits_and_reads_what_is_finished(
    tiles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import paper

    changes = [f"{field}={model}" for field, model in SMALL.items()]
    for part in ("teacher", "baseline", "student"):
        changes += [f"{part}.{change}" for change in ("weights=none", "size=32", "epochs=1")]
    words = [str(tiles), "--out", str(tmp_path / "runs"), "--groups", str(tiles / "groups.csv")]
    words += ["--json", str(tmp_path / "paper.json")]
    words += [word for change in changes for word in ("--set", change)]
    monkeypatch.setenv("COLUMNS", "200")  # or long names are cut
    monkeypatch.setattr("sys.argv", ["paper.py", *words, "--split", "random"])
    paper.main()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["random"]
    finished = tmp_path / "runs" / "random" / "metrics.json"
    written = finished.stat().st_mtime_ns
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["paper.py", *words])
    paper.main()
    assert finished.stat().st_mtime_ns == written

    result = json.loads((tmp_path / "paper.json").read_text())
    assert result["metrics"].keys() == {"random", "group"}
    assert result["test_tiles_with_a_group_mate_in_training"]["random"] > 0
    assert result["test_tiles_with_a_group_mate_in_training"]["group"] == 0
    printed = capsys.readouterr().out.splitlines()
    for split in ("random", "group"):
        accuracy = result["metrics"][split]["student"]["test"]["accuracy"]
        (row,) = (line for line in printed if "deit_tiny" in line and split in line)
        assert f"{100 * accuracy:.2f}" in row


def test_first_weights_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import paper

    with pytest.raises(SystemExit, match=r"0 files resnet50\.\* in .*; expected one"):
        paper.weights_of(tmp_path)
    for model in paper.SECTIONS.values():
        (tmp_path / f"{model}.safetensors").touch()
    found = paper.weights_of(tmp_path)
    assert f"teacher.weights={tmp_path / 'resnet50.safetensors'}" in found
    assert len(found) == 3
