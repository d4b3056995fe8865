"""What the README shows is what happens."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgelung.core.errors import ExitCode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.timeout(900)
def test_the_commands_run_as_written(tiles: Path, small: list[str], tmp_path: Path) -> None:
    """In order, in one folder, on a small `tiles/`; the recipe is cut down to seconds."""
    shutil.copytree(tiles, tmp_path / "tiles")
    assert len(commands()) == 7
    bin_folder = Path(sys.executable).parent
    for line in commands():
        words = line.split()
        if words[1] == "train":
            words += [word for text in small for word in ("--set", text)]
        # Untrained and on few tiles: a gate without a verdict is what should come out.
        allowed = {ExitCode.OK, ExitCode.GATE}
        done = subprocess.run(
            [bin_folder / words[0], *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode in allowed, f"{line}\n{done.stderr}"
    assert (tmp_path / "predictions.csv").is_file()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([\w-]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_tables_of_codes_and_statuses_are_complete() -> None:
    for code in ExitCode:
        assert f"| {code.value} |" in README
    files = [*(ROOT / "edgelung" / "tiles").glob("*.py"), ROOT / "edgelung/inference/pipeline.py"]
    sources = "".join(path.read_text() for path in files)
    for status in set(re.findall(r'TileError\(\s*"([\w-]+)"', sources)) | {"truncated", "corrupt"}:
        assert f"`{status}`" in README, status


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
