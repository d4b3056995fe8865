"""`edgelung evaluate` as a user runs it: figures, pages and exit codes."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgelung.artifacts.evaluation import KIND, SCHEMA_VERSION, read_evaluation
from edgelung.core.errors import EdgelungError
from edgelung.core.typed_json import plain


@pytest.fixture
def site(tiles: Path, tmp_path: Path) -> Path:
    """Some of the tiles in class folders, and g.csv with groups and two sites."""
    folder = tmp_path / "site"
    with (tiles / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::3]
    with (tmp_path / "g.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group", "Site"])
        for number, row in enumerate(rows):
            (folder / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiles / row["path"], folder / row["path"])
            writer.writerow([row["path"], row["cluster"], "north" if number % 2 else "<b>south"])
    return folder


def test_the_figures_of_a_site_are_printed_and_written(
    site: Path, bundle_folder: Path, tmp_path: Path, cli
) -> None:
    words = ["evaluate", bundle_folder, site, "--groups", "g.csv", "--by", "Site"]
    result = cli(*words, "--json", "--out", "page.html")
    assert result.returncode == 0, result.stderr
    (tmp_path / "e.json").write_text(result.stdout)
    evaluation = read_evaluation(tmp_path / "e.json")
    assert json.loads(json.dumps(plain(evaluation))) == json.loads(result.stdout)
    assert (evaluation.kind, evaluation.schema_version) == (KIND, SCHEMA_VERSION)
    assert sum(evaluation.everything.statuses.values()) == 36
    assert evaluation.everything.figures is not None
    assert evaluation.everything.figures.groups == 36
    assert list(evaluation.by["site"]) == ["<b>south", "north"]
    assert evaluation.test["accuracy"].test.value is not None
    assert evaluation.sets is not None
    assert evaluation.grouped
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert '<meta name="generator" content="edgelung evaluate">' in page
    assert "Research use only" in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(""", page)
    assert "<b>south" not in page
    assert "&lt;b&gt;south" in page
    for tag in ("table", "figure", "section", "details", "div", "tr", "th"):
        assert len(re.findall(rf"<{tag}\b", page)) == page.count(f"</{tag}>"), tag


def test_without_groups_the_caution_is_said_and_a_page_is_not_overwritten(
    site: Path, bundle_folder: Path, tmp_path: Path, cli
) -> None:
    result = cli("evaluate", bundle_folder, site)
    assert result.returncode == 0, result.stderr
    assert "every tile counts as its own group" in result.stdout
    assert "calibration error" in result.stdout
    (tmp_path / "page.html").write_text("mine")
    again = cli("evaluate", bundle_folder, site, "--out", "page.html")
    assert again.returncode == 2
    assert (tmp_path / "page.html").read_text() == "mine"


def test_tiles_that_cannot_be_read_are_counted(
    site: Path, bundle_folder: Path, tmp_path: Path, cli
) -> None:
    first, second = sorted((site / "lung_n").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:500])
    second.unlink()
    result = cli("evaluate", bundle_folder, site, "--groups", "g.csv", "--json")
    assert result.returncode == 3, result.stderr
    evaluation = json.loads(result.stdout)
    assert evaluation["failed"] == 2
    statuses = evaluation["everything"]["statuses"]
    assert (statuses["truncated"], statuses["unreadable"]) == (1, 1)
    assert evaluation["everything"]["figures"]["tiles"] == 34


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--require", "roc_auc=0.01"], 0, "roc_auc 0.01: pass"),
        (["--require", "roc_auc=0.01", "--require", "recall:lung_n=1"], 4, "lung_n 1: "),
        (["--require", "f1=0.9"], 2, "'f1' is unknown"),
        (["--require", "recall:colon=0.9"], 2, "the class 'colon' is unknown"),
        (["--by", "scanner"], 2, "expected scanner too"),
        (["--by", "path"], 0, "by path"),
    ],
)
def test_requirements_and_columns(
    words: list[str], code: int, said: str, site: Path, bundle_folder: Path, cli
) -> None:
    result = cli("evaluate", bundle_folder, site, "--groups", "g.csv", *words)
    assert result.returncode == code, result.stderr
    if code == 2:
        assert result.stderr.count("\n") == 1
        assert not result.stdout
    assert said in result.stdout + result.stderr


def test_a_column_of_names_is_refused(tiles: Path, bundle_folder: Path, cli) -> None:
    words = ["--groups", tiles / "groups.csv", "--by", "path"]
    result = cli("evaluate", bundle_folder, tiles, *words)
    assert result.returncode == 2
    assert "the column has 108 values; expected at most 50" in result.stderr


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"kind": "mine", "schema_version": 99}')
    with pytest.raises(EdgelungError, match="schema version 99"):
        read_evaluation(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(EdgelungError, match="expected what `edgelung evaluate --json` printed"):
        read_evaluation(tmp_path / "x.json")


def test_it_needs_no_torch() -> None:
    code = (
        "import sys, edgelung.cli.evaluate, edgelung.inference.evaluate,"
        "edgelung.report.evaluation_page;"
        "print(sorted({'torch', 'timm', 'onnx', 'faiss'} & set(sys.modules)),"
        "[name for name in sys.modules if name.startswith('edgelung.train')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
