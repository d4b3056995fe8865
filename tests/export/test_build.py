"""Bundles: what is in them, what is refused, what a failed gate does."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from rich.console import Console

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.cli.export import print_table
from edgelung.core import terminal
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file
from edgelung.core.precision import Precision
from edgelung.evaluation.intervals import written
from edgelung.export.build import export_run
from edgelung.export.bundle_folder import _provenance, choose_golden
from edgelung.export.inputs import read_inputs
from edgelung.export.student import read_student
from edgelung.export.tiles import LabelledTile, TileSet, read_split, set_aside

INT8 = frozenset({Precision.INT8})


@pytest.fixture
def copied_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_what_a_bundle_holds(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert bundle.classes == ("lung_aca", "lung_n", "lung_scc")
    assert set(bundle.variants) == {"fp32", "fp16", "int8", "int8-fp16", "fp8"}
    assert "Research use only" in manifest.notice
    assert "Research use only" in (bundle.folder / "report.html").read_text()
    for name, entry in manifest.files.items():
        assert sha256_file(bundle.folder / name) == entry.sha256
    listed = set(manifest.files) | {"bundle.json", "bundle.json.sha256"}
    files = {
        p.relative_to(bundle.folder).as_posix() for p in bundle.folder.rglob("*") if p.is_file()
    }
    assert files == listed
    assert len(bundle.golden) == 9
    for tile in bundle.golden:
        for values in tile.probabilities.values():
            assert sum(values) == pytest.approx(1, abs=1e-4)
    sizes = {name: entry.bytes for name, entry in manifest.variants.items()}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert max(sizes[name] for name in ("int8", "int8-fp16", "fp8")) < 0.35 * sizes["fp32"]
    about = {name: (entry.base, entry.meant_for) for name, entry in manifest.variants.items()}
    assert about["int8"] == ("fp32", "CPU")
    assert about["int8-fp16"] == about["fp8"] == ("fp16", "GPU")
    for entry in manifest.variants.values():
        assert entry.test.tiles == 18


def test_no_path_of_this_machine_travels(bundle: Bundle, run: Path, tiles: Path) -> None:
    text = (bundle.folder / "bundle.json").read_text() + (bundle.folder / "report.html").read_text()
    assert str(run) not in text
    assert str(tiles) not in text


def test_origins_travel_and_folders_of_files_do_not(copied_run: Path) -> None:
    run = RunFolder(copied_run)
    config = run.read_config()
    teacher = {**config.recipe["teacher"], "features": "/secret/f.safetensors"}
    teacher["settings"] = {"resnet18": {"weights": "/secret/r.pth", "size": 64}}
    recipe = {**config.recipe, "teacher": teacher}
    run.write_config(structs.replace(config, recipe=recipe, origins=["from somewhere"]))
    inputs = read_inputs(run, data=None, calibrates=False, calibration_tiles=0)
    provenance = _provenance(inputs, [])
    assert provenance.origins == ["from somewhere"]
    assert provenance.recipe["teacher"]["features"] == "f.safetensors"
    assert provenance.recipe["teacher"]["settings"]["resnet18"] == {"weights": "r.pth", "size": 64}
    assert "secret" not in json.dumps(provenance.recipe)


def test_calibration_and_gate_share_no_group(run: Path, tiles: Path) -> None:
    folder = RunFolder(run)
    subsets = read_split(folder, tiles, read_student(folder).classes)
    first, second = set_aside(subsets["val"], 1000, 0)
    groups = [{tile.group for tile in half.tiles} for half in (first, second)]
    assert groups[0].isdisjoint(groups[1])
    assert {t.path for t in (*first.tiles, *second.tiles)} == {t.path for t in subsets["val"].tiles}
    assert set(second.labels.tolist()) == {0, 1, 2}
    train = {tile.group for tile in subsets["train"].tiles}
    assert train.isdisjoint(groups[0] | groups[1])
    assert len(first) <= len(second)


def test_no_more_tiles_calibrate_than_were_asked_for(run: Path, tiles: Path) -> None:
    """All others judge; a group is never cut, so a class may be over by less than one."""
    folder = RunFolder(run)
    subsets = read_split(folder, tiles, read_student(folder).classes)
    few, rest = set_aside(subsets["val"], 6, 0)
    assert np.bincount(few.labels).tolist() == [3, 3, 3]
    assert len(few) + len(rest) == len(subsets["val"])


def test_full_precision_alone_needs_no_calibration(run: Path, tmp_path: Path) -> None:
    bundle = export_run(run, tmp_path / "bundle")
    assert set(bundle.variants) == {"fp32"}


def test_nothing_is_written_over(run: Path, bundle_folder: Path) -> None:
    before = sha256_file(bundle_folder / "bundle.json")
    with pytest.raises(EdgelungError, match="already exists"):
        export_run(run, bundle_folder)
    assert sha256_file(bundle_folder / "bundle.json") == before


def refused(run: Path, tmp_path: Path, message: str, **options: object) -> None:
    with pytest.raises(EdgelungError, match=message):
        export_run(run, tmp_path / "new" / "bundle", precisions=INT8, **options)
    left = list((tmp_path / "new").iterdir()) if (tmp_path / "new").exists() else []
    assert left == []


def test_an_unfinished_run_is_refused(copied_run: Path, tmp_path: Path) -> None:
    (copied_run / "model.safetensors").unlink()
    refused(copied_run, tmp_path, "is no finished run")


def test_other_weights_are_noticed(copied_run: Path, tmp_path: Path) -> None:
    """An export compares its numbers with the trained model's."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(copied_run / "model.safetensors")
    weights["head.bias"] = weights["head.bias"] + np.array([2, 0, 0], np.float32)
    save_file(weights, copied_run / "model.safetensors")
    refused(copied_run, tmp_path, "does not reproduce the trained model")


def test_moved_or_changed_tiles_are_noticed(run: Path, tiles: Path, tmp_path: Path) -> None:
    refused(run, tmp_path, "pass --data if the folder moved", data=tmp_path / "gone")
    other = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    rows = list(csv.DictReader((run / "split.csv").open()))
    path = other / next(row["path"] for row in rows if row["subset"] == "val")
    path.write_bytes(path.read_bytes() + b"\0")
    refused(run, tmp_path, "its SHA-256 changed", data=other)


def test_an_inconclusive_gate_exits_4_unless_allowed(run: Path, tmp_path: Path, cli) -> None:
    result = cli("export", run, "--out", tmp_path / "a", "--int8", "--json")
    assert result.returncode == 4
    manifest = json.loads(result.stdout)
    assert manifest["variants"]["int8"]["gate"]["verdict"] == "inconclusive"
    assert "int8 gate: inconclusive: not enough validation groups to tell: about" in result.stderr
    assert "(2 in the smallest class); label more slides or raise split.val" in result.stderr
    assert "512 or more are advised" in result.stderr
    allowed = cli("export", run, "--out", tmp_path / "b", "--int8", "--allow-drop")
    assert allowed.returncode == 0
    assert "inconclusive" in allowed.stdout


@pytest.fixture
def one_class_run(copied_run: Path) -> Path:
    """A run whose student gives every tile the same probabilities."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(copied_run / "model.safetensors")
    for head in ("head", "head_dist"):
        weights[f"{head}.weight"] = np.zeros_like(weights[f"{head}.weight"])
        weights[f"{head}.bias"] = np.log(np.array([0.25, 0.25, 0.5], np.float32))
    save_file(weights, copied_run / "model.safetensors")
    folder = RunFolder(copied_run)
    predictions = folder.read_predictions()
    same = np.tile([0.25, 0.25, 0.5], (len(predictions), 1))
    folder.write_predictions(replace(predictions, probabilities=same))
    return copied_run


def test_full_precision_that_names_one_class_for_every_tile_is_not_to_be_used(
    one_class_run: Path, tmp_path: Path, cli
) -> None:
    """The gate cannot see it: every variant agrees with such a model."""
    folder = tmp_path / "bundle"
    done = cli("export", one_class_run, "--out", folder)
    text = "Do not use the model: it predicts lung_scc for all 18 test tiles."
    assert done.returncode == 0, done.stderr
    assert f"{text}\n" in done.stderr
    assert "do not use" in done.stdout
    assert "reference" not in done.stdout
    recorded = open_bundle(folder).manifest.concerns
    assert (recorded[0].kind, recorded[0].text) == ("one-class", text)
    page, card = ((folder / name).read_text() for name in ("report.html", "MODEL_CARD.md"))
    assert page.index(text) < page.index("<h2>Variants</h2>")
    assert '<td class="fail">do not use</td>' in page
    assert card.index(f"**{text}**") < card.index("## Data")


def test_a_bundle_records_that_its_test_and_its_gate_say_little(bundle: Bundle) -> None:
    """Two groups per class, both times; the class is named although bundle.json holds totals."""
    texts = {concern.kind: concern.text for concern in bundle.manifest.concerns}
    assert texts["few-test-groups"].startswith("The test says little: lung_aca has 2 test groups,")
    assert "groups are needed, 6 are there" in texts["gate-undecided"]
    page = (bundle.folder / "report.html").read_text()
    assert all(text in page for text in texts.values())


def test_what_nobody_asked_for_is_not_recorded_as_asked(bundle: Bundle) -> None:
    assert bundle.manifest.variants["int8"].calibration.asked == "auto"


def test_the_verdict_is_whole_on_80_columns(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80)
    monkeypatch.setattr(terminal, "out", lambda: console)
    print_table(bundle.manifest, bundle.folder)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines[:-2])) <= 80
    for name, entry in bundle.manifest.variants.items():
        (line,) = [line for line in lines if line.startswith(f"│ {name} ")]
        verdict = line.split("│")[2].strip()
        assert verdict in (entry.gate.verdict, "do not use")


def test_the_card_says_what_was_measured(bundle: Bundle, tiles: Path) -> None:
    card = (bundle.folder / "MODEL_CARD.md").read_text()
    test = bundle.manifest.variants["fp32"].test
    low, high = test.intervals.balanced_accuracy
    assert low <= test.balanced_accuracy <= high
    assert f"{100 * test.balanced_accuracy:.2f} % ({written((low, high))})" in card
    assert "Research use only" in card
    assert "each group is in one set only" in card
    assert "Tissue that it was not made for is told by its distance from the training tiles" in card
    assert str(tiles) not in card


def test_golden_tiles_are_the_least_certain_of_each_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    first = np.array([0.9, 0.6, 0.99, 0.7, 0.1, 0.45, 0.2, 0.3], np.float32)
    probabilities = np.stack([first, 1 - first], axis=1)
    assert choose_golden(labels, probabilities) == [1, 3, 0, 5, 7, 6]


def test_every_tile_is_decoded_once(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """54 training, 36 validation, 18 test tiles; what was proven on how many is logged too."""
    caplog.set_level("INFO", logger="edgelung")
    export_run(run, tmp_path / "bundle", precisions=frozenset({Precision.FP16}))
    (line,) = [text for text in caplog.messages if "tiles were read" in text]
    assert line == (
        "108 tiles were read 108 times. Checked: the graph against the trained model on 36 "
        "validation tiles; fp32, fp16 against full precision on 36 gate tiles; all 2 variants on "
        "18 test tiles"
    )


def test_a_class_that_only_stands_in_groups_of_others_reaches_the_gate() -> None:
    rows = [("a", 0, "g1"), ("b", 2, "g1"), ("c", 0, "g2"), ("d", 1, "g3"), ("e", 1, "g4")]
    whole = TileSet(Path(), tuple(LabelledTile(p, label, group, "") for p, label, group in rows))
    for seed in range(10):
        few, rest = set_aside(whole, 100, seed)
        assert set(rest.labels.tolist()) == {0, 1, 2}
        assert {t.group for t in few.tiles}.isdisjoint({t.group for t in rest.tiles})
        assert len(few) + len(rest) == 5


@pytest.mark.parametrize("sizes", [[5, 400], [20] * 9 + [600], [30, 40, 500, 60]])
def test_one_large_group_does_not_leave_the_gate_empty_handed(sizes: list[int]) -> None:
    whole = TileSet(
        Path(),
        tuple(
            LabelledTile(f"{label}/{group}/{i}", label, f"{label}/{group}", "")
            for label in range(2)
            for group, size in enumerate(sizes)
            for i in range(size)
        ),
    )
    for seed in range(5):
        few, rest = set_aside(whole, 512, seed)
        assert len(few) > 0
        assert (np.bincount(few.labels) <= np.bincount(rest.labels)).all()
