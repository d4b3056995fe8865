"""The Python API: what goes in, what comes out, and that it is what `edgelung infer` writes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec import convert, structs
from PIL import Image

import edgelung
from edgelung import Classifier
from edgelung.artifacts.bundle import open_bundle, starter_bundle, write_bundle
from edgelung.artifacts.results import Concern
from edgelung.engines.names import EngineName

HEAVY = ("numpy", "msgspec", "PIL", "rich", "typer", "onnxruntime", "openvino", "torch", "logging")


@pytest.fixture(scope="module")
def classifier(bundle_folder: Path) -> Iterator[Classifier]:
    with edgelung.load(bundle_folder, engine="onnxruntime", precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def paths(tiles: Path) -> list[Path]:
    return sorted(tiles.rglob("*.jpeg"))


@pytest.fixture(scope="module")
def png(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile without loss: its path, its array and its PIL image hold the same pixels."""
    path = tmp_path_factory.mktemp("png") / "tile.png"
    Image.open(paths[0]).save(path)
    return path


def test_a_path_an_array_and_an_image_of_the_same_pixels_give_the_same(
    classifier: Classifier, png: Path
) -> None:
    image = Image.open(png)
    path, text, array, pil = classifier.classify([png, str(png), np.asarray(image), image])
    assert path.status == "ok"
    assert path.probabilities == text.probabilities == array.probabilities == pil.probabilities
    assert (path.path, text.path, array.path, pil.path) == (str(png), str(png), "", "")


def test_probabilities_are_those_of_the_classes_in_order(
    classifier: Classifier, paths: list[Path]
) -> None:
    for prediction in classifier.classify(paths[:5]):
        assert prediction.probabilities is not None
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        best = max(range(3), key=prediction.probabilities.__getitem__)
        assert prediction.label == classifier.classes[best]
        assert prediction.confidence == prediction.probabilities[best]


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_more_images_than_a_batch_come_out_in_their_order(
    classifier: Classifier, paths: list[Path], batch_size: int | None
) -> None:
    found = [p.path for p in classifier.classify(iter(paths[:40]), batch_size=batch_size)]
    assert found == [str(path) for path in paths[:40]]


def test_images_are_taken_as_they_are_needed(classifier: Classifier, paths: list[Path]) -> None:
    taken = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(1)
            yield paths[0]

    predictions = classifier.classify(endless(), batch_size=2)
    assert next(predictions).status == "ok"
    predictions.close()  # type: ignore[attr-defined]
    assert len(taken) <= 2 * (2 + classifier._engine.concurrency)


def test_a_broken_file_is_a_result_between_its_neighbours(
    classifier: Classifier, paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    images = [
        paths[0],
        tmp_path / "cut.jpg",
        tmp_path / "gone.png",
        tmp_path / "text.jpg",
        paths[1],
    ]
    good, cut, gone, text, last = classifier.classify(images)
    assert [p.status for p in (cut, gone, text)] == ["truncated", "unreadable", "unsupported"]
    for broken in (cut, gone, text):
        assert broken.label is broken.confidence is broken.probabilities is None
        assert broken.error
    assert good.probabilities == next(classifier.classify([paths[0]])).probabilities
    assert last.probabilities == next(classifier.classify([paths[1]])).probabilities


def test_a_broken_pil_image_is_a_result_too(
    classifier: Classifier, paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:900])
    (cut,) = classifier.classify([Image.open(tmp_path / "cut.jpg")])
    assert cut.status == "truncated"


def test_alpha_goes_over_white_in_a_pil_image(classifier: Classifier) -> None:
    clear = Image.new("RGBA", (70, 70), (200, 0, 0, 0))
    nearly_clear = clear.copy()
    nearly_clear.putpixel((0, 0), (255, 255, 255, 255))
    white = np.full((70, 70, 3), 255, np.uint8)
    first, second, nothing = classifier.classify([nearly_clear, white, clear])
    assert first.probabilities == second.probabilities
    assert nothing.status == "unsupported"  # nothing of it can be seen


def test_a_pil_image_is_turned_as_its_exif_says(classifier: Classifier, png: Path) -> None:
    pixels = np.asarray(Image.open(png))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = png.with_name("turned.png")
    Image.fromarray(pixels[::-1, ::-1]).save(turned, exif=exif)
    path, image, upright = classifier.classify([turned, Image.open(turned), pixels])
    assert path.probabilities == image.probabilities == upright.probabilities


def test_16_bit_grey_is_read_by_its_high_byte_in_a_pil_image(
    classifier: Classifier, tmp_path: Path
) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (70, 70), np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    pixels = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    images = [tmp_path / "grey.png", Image.fromarray(grey), pixels]
    path, image, array = classifier.classify(images)
    assert path.probabilities == image.probabilities == array.probabilities
    (refused,) = classifier.classify([Image.fromarray(grey.astype(np.float32))])
    assert (refused.status, refused.error) == (
        "unsupported",
        "a PIL image of mode F has no defined white",
    )


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((70, 70, 3), np.float32), "float32 [70, 70, 3]"),
        (np.zeros((70, 70), np.uint8), "uint8 [70, 70]"),
        (np.zeros((70, 70, 4), np.uint8), "uint8 [70, 70, 4]"),
        (np.zeros((3, 70, 70), np.uint8), "uint8 [3, 70, 70]"),
        (np.zeros((0, 70, 3), np.uint8), "uint8 [0, 70, 3]"),
    ],
)
def test_another_array_raises_one_line_that_says_what_was_found(
    classifier: Classifier, array: np.ndarray, found: str
) -> None:
    with pytest.raises(edgelung.EdgelungError) as error:
        list(classifier.classify([array]))
    assert str(error.value) == (
        f"found an array of {found}; expected uint8 [H, W, 3], RGB in 0…255"
    )


def test_what_is_no_image_raises(classifier: Classifier, png: Path) -> None:
    with pytest.raises(TypeError, match="found int; expected a path, bytes of a file, an array"):
        list(classifier.classify([3]))  # type: ignore[list-item]
    for one in (str(png), png, Image.open(png), np.zeros((70, 70, 3), np.uint8)):
        with pytest.raises(TypeError, match="expected several images"):
            classifier.classify(one)  # type: ignore[arg-type]


def test_an_array_of_several_tiles_is_classified(classifier: Classifier) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 80, 70, 3), np.uint8)
    together = [p.probabilities for p in classifier.classify(tiles)]
    assert together == [p.probabilities for p in classifier.classify(list(tiles))]
    assert len(together) == 5


def test_loading_a_model_that_is_not_to_be_used_warns(
    copied_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_bundle(copied_bundle)
    concern = Concern(kind="one-class", text="Do not use the model: it is wrong.", do_not_use=True)
    write_bundle(copied_bundle, structs.replace(opened.manifest, concerns=[concern]))
    with edgelung.load(copied_bundle, engine="onnxruntime", precision="fp32") as classifier:
        assert classifier.concerns == (concern,)
    (record,) = [record for record in caplog.records if record.name == "edgelung.classifier"]
    assert (record.levelname, record.message) == ("WARNING", concern.text)


def test_a_closed_classifier_says_so(bundle_folder: Path, png: Path) -> None:
    classifier = edgelung.load(bundle_folder)
    classifier.close()
    classifier.close()
    with pytest.raises(edgelung.EdgelungError, match="closed; load it again"):
        list(classifier.classify([png]))


def test_the_starter_is_the_default(png: Path) -> None:
    with edgelung.load(threads=1) as classifier:
        assert classifier.bundle.folder == starter_bundle()
        (golden,) = classifier.classify([classifier.bundle.golden[0].file.path])
        assert golden.label in classifier.classes
        (drawn,) = classifier.classify([png])
        assert (drawn.status, drawn.label) == ("unknown", None)
    with edgelung.load(threads=1, keep_unknown=True, coverage=0.99) as classifier:
        (drawn,) = classifier.classify([png])
        assert drawn.label in classifier.classes
        assert drawn.label in drawn.prediction_set


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "foo"}, "engine 'foo' is unknown; expected one of auto, openvino"),
        ({"precision": "int4"}, "precision 'int4' is unknown; expected one of auto, fp32"),
        ({"threads": 0}, "threads is 0; expected 1 or more"),
        ({"bundle": "gone"}, "gone is no bundle"),
    ],
)
def test_a_wrong_option_of_load_is_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(edgelung.EdgelungError, match=message):
        edgelung.load(**options)  # type: ignore[arg-type]


def test_rows_are_those_of_the_command(
    classifier: Classifier, tiles: Path, paths: list[Path], tmp_path: Path, cli
) -> None:
    words = ["--model", classifier.bundle.folder, "--engine", "onnxruntime", "--precision", "fp32"]
    assert cli("infer", tiles, *words, "--out", "command.csv").returncode == 0
    written = edgelung.read_predictions(tmp_path / "command.csv")
    summary = edgelung.infer_folder(
        *(tiles, tmp_path / "api.csv"),
        model=classifier.bundle.folder,
        engine=EngineName.ONNXRUNTIME,
        precision="fp32",
    )
    assert (tmp_path / "api.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()
    assert summary.files == len(written.rows) == 110
    rows = {row.path: row for row in written.rows}
    for prediction in classifier.classify(paths):
        row = rows[Path(prediction.path).relative_to(tiles).as_posix()]
        assert (row.status, row.label) == (prediction.status, prediction.label)
        assert row.probabilities == pytest.approx(prediction.probabilities, abs=1e-6)


def test_records_have_the_columns_of_the_rows(classifier: Classifier, paths: list[Path]) -> None:
    (record,) = classifier.classify_all(paths[:1]).to_records()
    columns = ["path", "status", "label", "confidence", "p_lung_aca", "p_lung_n", "p_lung_scc"]
    assert list(record) == [*columns, "ood", "set", "stage", "error"]


def test_infer_folder_takes_a_list_and_a_subset(
    bundle_folder: Path, run: Path, tiles: Path, tmp_path: Path
) -> None:
    done: list[int] = []
    summary = edgelung.infer_folder(
        *(str(tiles), str(tmp_path / "rows.jsonl")),
        model=bundle_folder,
        files=run / "split.csv",
        subset="test",
        min_confidence=1.0,
        on_rows=done.append,
    )
    assert summary.statuses == {"review": 18}
    assert sum(done) == 18


def test_evaluate_gives_the_figures_of_the_command(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    words = ["--groups", tiles / "groups.csv", "--json", "--require", "accuracy=0.999"]
    command = cli("evaluate", bundle_folder, tiles, *words)
    site = edgelung.evaluate(
        tiles, model=bundle_folder, groups=tiles / "groups.csv", require=["accuracy=0.999"]
    )
    expected = convert(json.loads(command.stdout), edgelung.Evaluation)
    assert structs.replace(site, created=expected.created) == expected
    assert site.exit_code == command.returncode == 4
    assert site.everything.figures is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require": ["speed=1"]}, "require: "),
        ({"by": ["site"]}, "site"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_a_wrong_option_of_evaluate_is_one_line(
    bundle_folder: Path, tiles: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(edgelung.EdgelungError, match=message):
        edgelung.evaluate(tiles, model=bundle_folder, **options)  # type: ignore[arg-type]


def test_a_run_is_read_by_its_attributes(run: Path) -> None:
    opened = edgelung.open_run(run)
    assert opened.is_finished
    assert opened.config.seed == 0
    assert len(opened.split) == 108
    assert opened.history[0].stage == "teacher"
    assert opened.metrics.classes == ["lung_aca", "lung_n", "lung_scc"]
    assert opened.predictions.probabilities.shape == (len(opened.predictions), 3)
    assert len(opened.predictions_of("teacher")) == len(opened.predictions)
    assert edgelung.to_records(opened.split)[0].keys() >= {"path", "label", "group", "subset"}
    assert "loss" in edgelung.to_records(opened.history)[0]


def test_a_run_reads_a_file_when_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    opened = edgelung.open_run(tmp_path)
    assert not opened.is_finished
    assert opened.history == []
    with pytest.raises(edgelung.EdgelungError, match=r"metrics\.json"):
        _ = opened.metrics


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(edgelung.EdgelungError, match="is not a run folder"):
        edgelung.open_run(tmp_path)


def test_importing_edgelung_loads_nothing_heavy() -> None:
    code = (
        "import sys, edgelung\n"
        f"heavy = set({HEAVY}) & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'load' in dir(edgelung)\n"
        "edgelung.load\n"
        "assert not {'openvino', 'onnxruntime', 'torch'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_api_is_there_and_documented() -> None:
    for name in edgelung.__all__:
        value = getattr(edgelung, name)
        assert name.isupper() or name.startswith("__") or name == "ImageInput" or value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = edgelung.nope
