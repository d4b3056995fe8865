"""Tile features as a teacher: written by a script, checked when read, and a probe on them."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgelung.core.errors import EdgelungError
from edgelung.train import probing
from edgelung.train.index import IndexedTile, index_tiles
from edgelung.train.probe import fit_probe
from edgelung.train.recipe import Schedule, load_recipe
from edgelung.train.run import train_run
from edgelung.train.teachers import softmax
from edgelung.train.tile_features import BYTES, read_tile_features

SCRIPT = Path(__file__).parents[2] / "examples" / "tile_features.py"
File = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def indexed(tiles: Path) -> list[IndexedTile]:
    return index_tiles(tiles)


@pytest.fixture(scope="module")
def features(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of the tiles in a small random ViT, by the script of the documentation."""
    spec = importlib.util.spec_from_file_location("tile_features_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path_factory.mktemp("features") / "vit.safetensors"
    torch.manual_seed(0)
    script.write_features(tiles, Schedule(model="test_vit", size=64, epochs=0, lr=1), out)
    return out


def test_the_script_writes_what_the_reader_reads(
    features: Path, indexed: list[IndexedTile]
) -> None:
    found = read_tile_features(features, indexed)
    assert found.shape == (len(indexed), 64)
    assert found.dtype == np.float32
    assert np.array_equal(found[5], load_file(features)[indexed[5].sha256].float().numpy())
    # The random ViT sees colours at least: tiles of a class are alike.
    labels = np.array([tile.label for tile in indexed])
    centers = np.stack([found[labels == name].mean(0) for name in sorted(set(labels))])
    nearest = ((found[:, None] - centers) ** 2).sum(-1).argmin(1)
    assert (np.array(sorted(set(labels)))[nearest] == labels).mean() > 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, n: f.pop(n), r"lacks the features of 1 of 108 tiles, for example of lung_aca/"),
        (lambda f, n: f.update({n: f[n].double()}), "are float64; expected float32, float16 or"),
        (lambda f, n: f.update({n: f[n].int()}), "are int32; expected float32"),
        (lambda f, n: f.update({n: f[n][None]}), r"have the shape \[1, 64\]; expected a vector"),
        (lambda f, n: f.update({n: f[n] * float("nan")}), "hold NaN or infinite values"),
        (lambda f, n: f.update({n: f[n] * float("inf")}), "hold NaN or infinite values"),
        (lambda f, n: f.update({n: f[n][:63]}), r"has 63 features of .* but 64 of .* one model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    features: Path,
    indexed: list[IndexedTile],
    tmp_path: Path,
    change: Callable[[File, str], Any],
    words: str,
) -> None:
    content = load_file(features)
    change(content, indexed[3].sha256)
    save_file(content, tmp_path / "f.safetensors")
    with pytest.raises(EdgelungError, match=words) as caught:
        read_tile_features(tmp_path / "f.safetensors", indexed)
    assert "\n" not in str(caught.value)
    assert indexed[3].path in str(caught.value)


def test_features_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    tiles: Path,
    small: list[str],
    indexed: list[IndexedTile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the tokens of all patches instead of one vector for the tile."""
    content = {tile.sha256: torch.rand(9, 100) for tile in indexed}
    save_file(content, tmp_path / "f.safetensors")
    needed = 900 * len(indexed) * BYTES
    monkeypatch.setattr("edgelung.train.tile_features.free_memory", lambda: needed - 1)
    recipe = load_recipe("demo", [*small, f"teacher.features={tmp_path / 'f.safetensors'}"])
    words = r"900 numbers for a tile; .* one vector for the whole tile"
    with pytest.raises(EdgelungError, match=words):
        train_run(tiles, tmp_path / "run", recipe, groups=tiles / "groups.csv")
    monkeypatch.setattr("edgelung.train.tile_features.free_memory", lambda: needed)
    with pytest.raises(EdgelungError, match=r"have the shape \[9, 100\]"):
        train_run(tiles, tmp_path / "run", recipe, groups=tiles / "groups.csv")


def test_other_files_are_refused_in_one_line(indexed: list[IndexedTile], tmp_path: Path) -> None:
    with pytest.raises(
        EdgelungError, match=r"no file of tile features .*SHA-256 of the tile's file"
    ):
        read_tile_features(tmp_path / "gone.safetensors", indexed)
    (tmp_path / "junk").write_bytes(b"\x80\x05 a pickle, or anything else")
    with pytest.raises(EdgelungError, match=r"cannot read the tile features in .*junk; expected"):
        read_tile_features(tmp_path / "junk", indexed)


def test_a_missing_tile_stops_before_the_run_folder_is_made(
    tiles: Path, small: list[str], features: Path, tmp_path: Path
) -> None:
    content = load_file(features)
    content.pop(next(iter(content)))
    save_file(content, tmp_path / "f.safetensors")
    recipe = load_recipe("demo", [*small, f"teacher.features={tmp_path / 'f.safetensors'}"])
    with pytest.raises(EdgelungError, match="lacks the features of 1 of 108"):
        train_run(tiles, tmp_path / "run", recipe, groups=tiles / "groups.csv")
    assert not (tmp_path / "run").exists()


def test_a_probe_on_training_groups_teaches_and_the_run_resumes_without_the_file(
    tiles: Path,
    small: list[str],
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The CNN is not even created; what the teacher says of the test tiles is the probe's."""
    file = tmp_path / "vit.safetensors"
    file.write_bytes(features.read_bytes())
    fitted: list[dict[str, Any]] = []
    names = ("features", "labels", "groups", "classes", "seed")

    def recorded(*words: Any) -> Any:
        fitted.append(dict(zip(names, words, strict=True)))
        return fit_probe(*words)

    monkeypatch.setattr(probing, "fit_probe", recorded)
    recipe = load_recipe("demo", [*small, f"teacher.features={file}", "student.epochs=1"])
    assert recipe.roles == ["student"]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("edgelung.train.trainer.augment", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_run(tiles, out, recipe, groups=tiles / "groups.csv")
    file.unlink()
    metrics = train_run(tiles, out, None, resume=True)

    rows = {row.path: row for row in _split(out)}
    (fit,) = fitted
    trained = {row.group for row in rows.values() if row.subset == "train"}
    assert set(fit["groups"]) == trained
    assert len(fit["labels"]) == sum(row.subset == "train" for row in rows.values())
    indexed = index_tiles(tiles)
    expected = softmax(fit_probe(*fit.values()).logits(read_tile_features(features, indexed)))
    by_path = dict(zip((tile.path for tile in indexed), expected, strict=True))
    lines = (out / "teacher" / "predictions.csv").read_text().splitlines()[1:]
    for line in lines:
        path, *_, first, second, third = line.split(",")
        np.testing.assert_allclose(
            [float(first), float(second), float(third)], by_path[path], atol=1e-6
        )
    labels = load_file(out / "teacher" / "soft_labels.safetensors")["logits"].numpy()
    of_train = [i for i, row in enumerate(rows.values()) if row.subset == "train"]
    unseen = fit_probe(*fit.values()).unseen_logits
    np.testing.assert_allclose(labels[of_train], unseen, atol=1e-5)
    assert metrics.teacher.model == "features of vit.safetensors"
    assert metrics.student.test.tiles > 0
    assert sorted(p.name for p in (out / "teacher").iterdir()) == [
        "predictions.csv",
        "soft_labels.safetensors",
    ]
    config = json.loads((out / "run.json").read_text())
    assert "vit.safetensors" in config["origins"][0]
    assert "made by test_vit, weights none" in config["origins"][0]
    assert "vit.safetensors" in (out / "report.html").read_text()


def test_a_run_is_not_continued_with_other_features(
    tiles: Path, small: list[str], features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json names the hash of the features; the soft labels must come from no other file."""
    file = tmp_path / "vit.safetensors"
    file.write_bytes(features.read_bytes())
    recipe = load_recipe("demo", [*small, f"teacher.features={file}", "student.epochs=1"])
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("edgelung.train.run.soft_labels", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_run(tiles, out, recipe, groups=tiles / "groups.csv")
    save_file({name: row + 1 for name, row in load_file(file).items()}, file)
    with pytest.raises(EdgelungError, match="not the file of tile features"):
        train_run(tiles, out, None, resume=True)
    assert not (out / "teacher" / "soft_labels.safetensors").exists()


def test_labels_of_a_probe_that_saw_the_tiles_are_said(
    tiles: Path,
    small: list[str],
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As with one group in a class, where no probe can leave a group out."""
    monkeypatch.setattr(
        probing, "fit_probe", lambda *words: replace(fit_probe(*words), unseen_logits=None)
    )
    monkeypatch.setattr("edgelung.train.trainer.augment", _interrupt)
    recipe = load_recipe("demo", [*small, f"teacher.features={features}", "student.epochs=1"])
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        train_run(tiles, tmp_path / "run", recipe, groups=tiles / "groups.csv")
    assert "could not be dealt so that every class is in two folds" in caplog.text
    assert (tmp_path / "run" / "teacher" / "soft_labels.safetensors").is_file()


def _interrupt(*words: Any) -> None:
    raise KeyboardInterrupt


def _split(out: Path) -> Any:
    from edgelung.artifacts.run import RunFolder

    return RunFolder(out).read_split()


def test_the_option_names_the_file(cli, tiles: Path, tmp_path: Path) -> None:
    words = ["train", tiles, "--out", tmp_path / "run", "--recipe", "demo", "--teacher-features"]
    done = cli(*words, tmp_path / "gone.safetensors")
    assert done.returncode == 2
    assert "no file of tile features" in done.stderr
    assert "Traceback" not in done.stderr
