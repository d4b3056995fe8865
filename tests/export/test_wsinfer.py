"""The model folder for WSInfer and QuPath: its format, its program, what is refused."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import UNSET, structs

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.run import RunFolder
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.engines.base import Output
from edgelung.export import wsinfer
from edgelung.export.build import export_run
from edgelung.export.inputs import read_inputs
from edgelung.export.scale import TileScale, resolve_scale
from edgelung.export.student import read_student
from edgelung.export.torchscript import load_torchscript
from edgelung.export.wsinfer import WsinferAgreement, write_wsinfer_folder, wsinfer_config
from edgelung.tiles.reader import decode_tile


@pytest.fixture(scope="module")
def scaled(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of full precision alone, whose export stated the size of a tile."""
    return export_run(run, tmp_path_factory.mktemp("scaled") / "bundle", tile_um=192)


@pytest.fixture(scope="module")
def folder(run: Path, scaled: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wsinfer") / "lung"
    write_wsinfer_folder(path, RunFolder(run), scaled, None)
    return path


def test_the_folder_holds_a_program_and_what_describes_it(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "torchscript_model.pt", "agreement.json", "README.md"}


def test_the_config_has_what_the_schema_of_the_zoo_demands(folder: Path, scaled: Bundle) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["spec_version"] == "1.0"
    assert config["architecture"].startswith("deit_tiny_distilled")
    assert config["num_classes"] == len(config["class_names"]) == 3
    assert config["class_names"] == list(scaled.classes)
    assert config["patch_size_pixels"] == 96  # as the training tiles
    assert config["spacing_um_px"] * config["patch_size_pixels"] == pytest.approx(192)
    assert [step["name"] for step in config["transform"]] == ["Resize", "ToTensor", "Normalize"]
    assert all(set(step) <= {"name", "arguments"} for step in config["transform"])
    assert config["transform"][0]["arguments"] == {"size": 64}  # a number: QuPath takes no list
    assert set(config["transform"][2]["arguments"]) == {"mean", "std"}


def test_training_tiles_of_several_sizes_are_read_at_the_models_size(
    run: Path, scaled: Bundle
) -> None:
    mixed = structs.replace(scaled.manifest, tile_sizes={"96x96": 4, "192x192": 4})
    config = wsinfer_config(read_student(RunFolder(run)), replace(scaled, manifest=mixed))
    assert (config.patch_size_pixels, config.spacing_um_px) == (64, 3)


def test_the_zoo_accepts_the_config(folder: Path) -> None:
    client = pytest.importorskip("wsinfer_zoo.client")
    config = json.loads((folder / "config.json").read_text())
    client.validate_config_json(config)
    assert client.ModelConfiguration.from_dict(config).get_slide_patch_size(0.25) == 768


def test_softmax_of_the_program_gives_the_probabilities_of_the_bundle(
    folder: Path, scaled: Bundle
) -> None:
    config = json.loads((folder / "config.json").read_text())
    norm = {name: torch.tensor(v) for name, v in config["transform"][2]["arguments"].items()}
    program = load_torchscript((folder / "torchscript_model.pt").read_bytes())
    tiles = np.stack([decode_tile(tile.file.read(), scaled.reader) for tile in scaled.golden])
    pixels = (torch.from_numpy(tiles) / 255 - norm["mean"]) / norm["std"]  # (9, 64, 64, 3)
    probabilities = program(pixels.permute(0, 3, 1, 2)).softmax(1).numpy()
    expected = [tile.probabilities["fp32"] for tile in scaled.golden]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert abs(scaled.manifest.temperature - 1) > 0.1  # a forgotten temperature would be seen


def test_another_size_of_tiles_is_an_error_and_no_prediction(folder: Path) -> None:
    program = load_torchscript((folder / "torchscript_model.pt").read_bytes())
    with pytest.raises(RuntimeError):
        program(torch.rand(1, 3, 96, 96))


def test_no_path_of_this_machine_is_in_the_program(folder: Path) -> None:
    with zipfile.ZipFile(folder / "torchscript_model.pt") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b".py" not in content
    assert str(Path.home()).encode() not in content


def test_the_agreement_is_measured_on_the_test_tiles(folder: Path) -> None:
    agreement = json.loads((folder / "agreement.json").read_text())
    assert (agreement["subset"], agreement["tiles"]) == ("test", 18)
    assert agreement["edgelung"]["same_label"] == 1
    assert agreement["edgelung"]["largest_probability_difference"] < 1e-4
    assert 0 < agreement["wsinfer"]["mean_probability_difference"] < 0.1


def test_the_readme_says_research_use_only_and_what_was_measured(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "**Research use only" in text
    assert "192 × 192 µm" in text
    assert "| as WSInfer does | 100.00 % |" in text


def test_a_program_that_differs_from_the_bundle_is_not_written(
    run: Path, scaled: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (folder / "torchscript_model.pt").read_bytes()
    monkeypatch.setattr(wsinfer, "build_torchscript", lambda *_: program)
    monkeypatch.setattr(
        wsinfer, "predict", lambda _, tiles, *__: Output(np.full((len(tiles), 3), 1 / 3))
    )
    with pytest.raises(EdgelungError, match="does not reproduce the bundle"):
        write_wsinfer_folder(tmp_path / "lung", RunFolder(run), scaled, None)
    assert not any(tmp_path.iterdir())


def test_a_bundle_that_states_no_size_has_no_model_folder(
    run: Path, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(EdgelungError, match="does not state how many micrometres"):
        write_wsinfer_folder(tmp_path / "lung", RunFolder(run), bundle, None)
    assert not any(tmp_path.iterdir())


def test_the_bundle_and_its_pages_say_where_the_size_was_stated(scaled: Bundle) -> None:
    assert scaled.tile_um == 192
    assert scaled.manifest.provenance.tile_um_stated_to == "export"
    card = (scaled.folder / "MODEL_CARD.md").read_text()
    assert "192 × 192 µm of tissue. The user stated this to `edgelung export`" in card
    assert "192 × 192 µm" in (scaled.folder / "report.html").read_text()


@pytest.mark.parametrize("again", [None, 150.5])
def test_the_size_that_the_run_states_is_the_bundles(
    again: float | None, run: Path, tmp_path: Path
) -> None:
    copied = RunFolder(Path(shutil.copytree(run, tmp_path / "run")))
    copied.write_config(structs.replace(copied.read_config(), tile_um=150.5))
    inputs = read_inputs(copied, data=None, calibrates=False, calibration_tiles=1, tile_um=again)
    assert inputs.scale == TileScale(150.5, "train")


def test_an_export_that_contradicts_its_run_is_refused(run: Path) -> None:
    config = structs.replace(RunFolder(run).read_config(), tile_um=150.5)
    with pytest.raises(EdgelungError, match=r"--tile-um 192 contradicts the run.* 150\.5 µm"):
        resolve_scale(config, 192)


def test_a_bundle_of_an_unknown_size_does_not_mention_it(bundle: Bundle) -> None:
    assert bundle.tile_um is None
    assert bundle.manifest.tile_um is UNSET
    assert "tile_um" not in (bundle.folder / "bundle.json").read_text()


def test_export_refuses_a_model_folder_before_the_work(run: Path, tmp_path: Path, cli) -> None:
    done = cli("export", run, "--out", "bundle", "--wsinfer", "lung")
    assert done.returncode == 2
    assert "--wsinfer needs the physical size of a tile" in done.stderr
    inside = cli("export", run, "--out", "bundle", "--wsinfer", "bundle/lung", "--tile-um", "192")
    assert inside.returncode == 2
    assert "lies in the bundle" in inside.stderr
    (tmp_path / "lung").mkdir()
    (tmp_path / "lung" / "mine").write_text("kept")
    taken = cli("export", run, "--out", "bundle", "--wsinfer", "lung", "--tile-um", "192")
    assert taken.returncode == 2
    assert "--wsinfer lung already exists" in taken.stderr
    assert not (tmp_path / "bundle").exists()


def test_export_hands_the_size_on_and_prints_the_agreement(
    run: Path, scaled: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:
    agreement = typed_json.read(folder / "agreement.json", WsinferAgreement, "")
    sizes: list[object] = []

    def exported(*_: object, **options: object) -> Bundle:
        sizes.append(options["tile_um"])
        return scaled

    monkeypatch.setattr("edgelung.export.build.export_run", exported)
    monkeypatch.setattr(wsinfer, "write_wsinfer_folder", lambda *_: agreement)
    done = cli("export", run, "--out", "bundle", "--wsinfer", "lung", "--tile-um", "192")
    assert done.returncode == 0, done.stderr
    assert sizes == [192]
    assert "lung: as WSInfer reads tiles, " in done.stderr
    assert "% of 18 test tiles get the label of fp32" in done.stderr
