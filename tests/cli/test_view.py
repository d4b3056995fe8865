"""`edgelung infer` names the command that shows its tiles, and that command works."""

import shlex
import shutil
from pathlib import Path


def test_infer_names_the_command_that_shows_its_tiles(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    shutil.copytree(tiles / "lung_n", tmp_path / "my tiles" / "lung_n")
    done = cli(
        *("infer", "my tiles", "--model", bundle_folder, "--engine", "onnxruntime"),
        *("--precision", "fp32", "--out", "my rows.csv", "--summary", "run.json"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("to see the tiles: ")]
    words = shlex.split(line.removeprefix("to see the tiles: "))
    assert words == ["edgelung", "view", "my rows.csv", "--summary", "run.json"]
    assert cli(*words[1:]).returncode == 0
    assert "data:image/webp" in (tmp_path / "my rows.html").read_text("utf-8")


def test_rows_on_standard_output_have_no_page(bundle_folder: Path, tiles: Path, cli) -> None:
    done = cli(
        *("infer", tiles / "lung_n", "--model", bundle_folder, "--engine", "onnxruntime"),
        *("--precision", "fp32", "--out", "-"),
    )
    assert "edgelung view" not in done.stderr
