"""The wheelhouse and our own wheel, as they are made. `make wheelhouse` first; a minute each."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv" / "release" / "bin" / "python"
WHEELHOUSE = ROOT / "dist" / "wheelhouse"

pytestmark = pytest.mark.slow
needs_tools = pytest.mark.skipif(not TOOLS.exists(), reason="`make wheel` sets up the tools")
needs_folder = pytest.mark.skipif(
    not (WHEELHOUSE / "SHA256SUMS").exists(), reason="`make wheelhouse` makes the folder"
)


@needs_tools
def test_two_builds_in_different_folders_give_the_same_bytes(tmp_path: Path) -> None:
    built = []
    for name, mask in (("one", 0o022), ("another/longer", 0o077)):
        clone = tmp_path / name
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        command = [TOOLS, clone / "release" / "own_wheel.py", clone / "dist"]
        subprocess.run(command, check=True, umask=mask, stdout=subprocess.DEVNULL)
        built += (clone / "dist").iterdir()
    first, second = built
    assert first.name == second.name
    assert "-cp311-abi3-manylinux_2_" in first.name
    assert first.read_bytes() == second.read_bytes()


@needs_folder
def test_the_wheelhouse_installs_and_runs_without_a_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    offline = importlib.import_module("offline_install")
    if subprocess.run([*offline.CUT_OFF, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system makes no network namespace")
    assert offline.install(WHEELHOUSE, sys.executable)["rows_ok"] > 0


@needs_folder
def test_a_wheel_that_was_changed_is_not_installed(tmp_path: Path) -> None:
    (wheel,) = (WHEELHOUSE / "wheels").glob("mdurl-*.whl")
    changed = bytearray(wheel.read_bytes())
    changed[100] ^= 1
    (tmp_path / wheel.name).write_bytes(changed)
    text = (WHEELHOUSE / "requirements.txt").read_text(encoding="utf-8")
    lines = text.replace(" \\\n", " ").splitlines()
    (pin,) = [line for line in lines if line.startswith("mdurl==")]
    (tmp_path / "requirements.txt").write_text(pin, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--require-hashes"]
    command += ["--find-links", str(tmp_path), "--target", str(tmp_path / "installed")]
    command += ["-r", str(tmp_path / "requirements.txt")]
    alone = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    shutil.copy(wheel, tmp_path)
    assert subprocess.run(command, env=alone).returncode == 0
