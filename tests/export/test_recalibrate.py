"""The temperature from a site's tiles: fitted on one half of the groups, measured on the other."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from msgspec import structs

from edgelung.artifacts.bundle import MODEL_CARD, REPORT
from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.external import LabelledTiles
from edgelung.export import recalibrate as module
from edgelung.export.build import export_run
from edgelung.export.recalibrate import SiteTiles, choose_groups, recalibrate


def labelled(truth: np.ndarray, probabilities: np.ndarray, size: int) -> LabelledTiles:
    """Tiles in groups of `size`."""
    return LabelledTiles(
        statuses=("ok",) * len(truth),
        truth=truth,
        groups=tuple(f"g{i // size:02}" for i in range(len(truth))),
        columns={},
        probabilities=probabilities,
    )


def over_confident() -> LabelledTiles:
    """Tiles of 60 groups; their classes are drawn from a third of the logits that are given."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(1200, 3))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    values = np.exp(3 * logits)
    return labelled(truth, values / values.sum(axis=1, keepdims=True), 20)


def test_an_over_confident_site_has_a_smaller_error_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiles = over_confident()
    monkeypatch.setattr(module, "_predict", lambda inputs, found: tiles)
    inputs = SimpleNamespace(config=SimpleNamespace(seed=0))
    record = recalibrate(inputs, SimpleNamespace(grouped=True), 1.0)  # type: ignore[arg-type]
    assert record.temperature_after == pytest.approx(3, rel=0.1)
    assert record.error_before.value is not None
    assert record.error_after.value is not None
    assert record.error_after.value < 0.5 * record.error_before.value
    assert record.change.interval is not None
    assert record.change.interval[1] < 0
    assert record.fitted_on.groups == record.measured_on.groups == 30


def test_half_of_the_groups_of_each_class_fit() -> None:
    tiles = labelled(np.repeat(np.arange(15) % 3, 3), np.full((45, 3), 1 / 3), 3)
    fits = choose_groups(tiles, 0)
    first, second = (set(tiles.groups_of(flags)) for flags in (fits, ~fits))
    assert not first & second
    assert {len(first), len(second)} == {7, 8}
    for label in range(3):
        own = {g for g, t in zip(tiles.groups, tiles.truth, strict=True) if t == label}
        assert {len(own & first), len(own & second)} == {2, 3}


def test_few_groups_are_refused_before_the_work(run: Path, tiles: Path, tmp_path: Path) -> None:
    groups = tmp_path / "g.csv"
    rows = (tiles / "groups.csv").read_text().replace("cluster", "group", 1).splitlines()
    groups.write_text("\n".join([rows[0], *rows[1::13]]))  # one tile of each of nine groups
    with pytest.raises(EdgelungError, match=r"holds 9 groups; --recalibrate needs 10"):
        export_run(run, tmp_path / "bundle", data=tiles, site=SiteTiles(tiles, groups))
    assert not (tmp_path / "bundle").exists()


def test_the_bundle_records_the_site_and_a_cross_validation(
    run: Path, tiles: Path, tmp_path: Path
) -> None:
    site = SiteTiles(tiles, tiles / "groups.csv")
    folds = as_folds(run, tmp_path / "folds")
    bundle = export_run(run, tmp_path / "bundle", data=tiles, site=site, cross_validation=folds)
    record = bundle.manifest.recalibrated
    assert record is not None
    assert bundle.manifest.temperature == record.temperature_after
    assert record.fitted_on.tiles + record.measured_on.tiles == 108
    card = (tmp_path / "bundle" / MODEL_CARD).read_text()
    assert "groups of a site" in card
    assert "The validation tiles were used for the gate." in card
    page = (tmp_path / "bundle" / REPORT).read_text()
    assert "Recalibrated on a site" in page
    assert "with 3 folds, each tile" in card
    assert "Another recipe" in card
    assert "by one of 3 models" in page
    assert "The recipe is another" in page
    assert bundle.manifest.cross_validation is not None


def as_folds(run: Path, folder: Path) -> Path:
    """A run folder that says that it is a cross-validation of another recipe."""
    shutil.copytree(run, folder)
    config = RunFolder(folder).read_config()
    recipe = config.recipe | {"description": "made for a test", "split": {}}
    RunFolder(folder).write_config(structs.replace(config, folds=3, recipe=recipe))
    FoldsFolder(folder).write_folds([])
    return folder
