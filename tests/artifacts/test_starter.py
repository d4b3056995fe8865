"""The bundle that comes with the package: whole, small, and said to be what it is."""

import csv
from pathlib import Path

import pytest

import edgelung.artifacts.bundle
from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.core.errors import EdgelungError


def test_without_a_model_the_starter_predicts_and_says_so(tiles: Path, tmp_path: Path, cli) -> None:
    out = tmp_path / "rows.csv"
    result = cli("infer", tiles, "--out", out)
    assert result.returncode == 0, result.stderr
    (line,) = (text for text in result.stderr.splitlines() if "starter" in text)
    for words in ("for trying the toolkit", "LC25000", "research only", "not for diagnosis"):
        assert words in line
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    statuses = [row["status"] for row in rows]
    # Drawn tiles are not what it was made for; groups.csv and a text lie beside them.
    assert statuses.count("unknown") == 108
    assert set(statuses) == {"unknown", "skipped"}


def test_a_named_model_says_nothing_of_the_starter(
    tiles: Path, bundle_folder: Path, tmp_path: Path, cli
) -> None:
    result = cli("infer", tiles, "--model", bundle_folder, "--out", tmp_path / "rows.csv")
    assert "starter" not in result.stderr


def test_the_starter_is_whole_and_small() -> None:
    folder = starter_bundle()
    bundle = open_bundle(folder)  # every hash
    assert bundle.classes == ("lung_aca", "lung_n", "lung_scc")
    assert all(variant.passed for variant in bundle.variants.values())
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 36_000_000
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Research use only" in card


def test_an_installation_without_a_starter_asks_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgelung.artifacts.bundle.resources, "files", lambda package: tmp_path)
    with pytest.raises(EdgelungError, match="no starter bundle; expected --model BUNDLE"):
        starter_bundle()
