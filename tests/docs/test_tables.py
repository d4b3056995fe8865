"""Figures in README and docs/ come from benchmarks/results."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edgelung import __version__
from edgelung.artifacts.bundle import open_bundle, starter_bundle

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "tables.py"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("tables")


def test_the_texts_hold_the_figures_of_the_files() -> None:
    """If this fails: `make tables`."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_figure_that_differs_from_its_file_is_found(tables: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    shutil.copy(ROOT / "docs" / "results.md", page)
    text = page.read_text(encoding="utf-8")
    assert "| 96.3 %" in text
    page.write_text(text.replace("| 96.3 %", "| 99.3 %"), encoding="utf-8")
    before, after = tables.rewrite(page, tmp_path)
    assert before != after
    assert after == text


def test_every_table_is_used_and_every_use_has_a_table(tables: ModuleType) -> None:
    used = {
        match[1]
        for page in tables.pages()
        for match in tables.BLOCK.findall(page.read_text(encoding="utf-8"))
    }
    assert used == set(tables.TABLES)


def test_a_file_of_another_version_or_bundle_says_so(tables: ModuleType) -> None:
    old = {"host": {"edgelung": "0.0.1"}, "bundle_sha256": "ab" * 32}
    line = tables.source("x.json", old, "")
    assert "edgelung 0.0.1, an earlier version" in line
    assert "bundle abababababab, which is not the shipped starter" in line
    new = {"host": {"edgelung": __version__}, "bundle_sha256": tables.shipped_starter()}
    assert tables.source("x.json", new, "") == "[x.json](x.json)"


def test_every_result_file_that_names_a_commit_is_shown_with_it(tables: ModuleType) -> None:
    for make in tables.TABLES.values():
        for name, content in make().sources.items():
            commit = (content.get("machine") or {}).get("commit")
            if commit:
                assert f"commit {commit}" in tables.source(name, content, "")


def test_starter_json_is_of_the_shipped_starter() -> None:
    """The file names no hash: its temperature and its gate are compared with the bundle's."""
    content = json.loads((ROOT / "benchmarks/results/starter.json").read_text(encoding="utf-8"))
    manifest = open_bundle(starter_bundle()).manifest
    assert content["metrics"]["student"]["temperature"] == manifest.temperature
    gate = content["variants"]["int8"]["gate"]
    shipped = manifest.variants["int8"].gate
    assert shipped.checks is not None
    assert {name: check["high"] for name, check in gate["checks"].items()} == {
        name: check.high for name, check in shipped.checks.items()
    }
