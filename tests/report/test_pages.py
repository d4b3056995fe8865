"""Every page has the research notice and its figures, and escapes the names of classes."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.manifest import BundleManifest, Provenance, VariantEntry
from edgelung.artifacts.results import (
    GateResult,
    Intervals,
    ModelTest,
    SetSize,
    VariantTest,
    Verdict,
)
from edgelung.artifacts.run import (
    SUBSETS,
    EpochRecord,
    ModelMetrics,
    RunConfig,
    RunFolder,
    RunMetrics,
    SplitRow,
)
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.evaluation.comparison import ComparedModel, Comparison
from edgelung.evaluation.metrics import evaluate
from edgelung.report.figures import RunPictures, TilePicture
from edgelung.report.pages import audit_page, bundle_page, compare_page, model_card, run_page
from edgelung.report.variants import FlippedTile, ShownFlip, VariantFigures

HOSTILE = "<script>alert(1)</script>"
CLASSES = [HOSTILE, "normal"]
ORIGIN = f"The first weights of a model are of uncertain origin: {HOSTILE}."
BOUNDS = (0.612, 0.987)
PICTURE = "data:image/jpeg;base64,AAAA"
PREDICTIONS = RunPredictions(
    classes=tuple(CLASSES),
    paths=("a/1.png", "a/2.png", "a/3.png", "a/4.png"),
    labels=np.array([0, 1, 0, 0]),
    groups=("g1", "g2", "g3", "g4"),
    subsets=("test",) * 4,
    probabilities=np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.4, 0.6]]),
)
METRICS = evaluate(PREDICTIONS.probabilities, PREDICTIONS.labels)
INTERVALS = Intervals(accuracy=BOUNDS, balanced_accuracy=BOUNDS, macro_f1=BOUNDS)
TEST = ModelTest(
    **structs.asdict(METRICS),
    groups=4,
    intervals=INTERVALS,
    expected_calibration_error_at_temperature=0.0123,
)


def run_html(folder: Path, epochs: int = 2, tile_um: float | None = None) -> str:
    run = RunFolder(folder)
    run.write_split([SplitRow("a/1.png", HOSTILE, "g1", "train", "0")])
    sizes = {name: SetSize(tiles=2, groups=2) for name in CLASSES}
    run.write_config(
        RunConfig(
            edgelung="0",
            notice="",
            data="tiles",
            seed=0,
            precision="fp32",
            processes=1,
            groups="found",
            split="group",
            test_tiles_with_a_group_mate_in_training=0,
            counts=dict.fromkeys(SUBSETS, sizes),
            sizes={"96x96": 4},
            recipe={"classes": CLASSES},
            tile_um=tile_um,
            origins=[ORIGIN],
        )
    )
    run.write_history(
        [
            EpochRecord(stage="student", epoch=epoch, size=64, lr=0.1, loss=0.5, seconds=1.0)
            for epoch in range(1, epochs + 1)
        ]
    )
    run.write_predictions(PREDICTIONS)
    model = ModelMetrics(model="deit", temperature=1.25, val=METRICS, test=TEST)
    tile = TilePicture(PICTURE, HOSTILE, "a/1.png", "normal", 0.875)
    pictures = RunPictures([TilePicture(PICTURE, HOSTILE)], [tile], [tile])
    members = {"vit_of_a_teacher": structs.replace(model, model="vit")}
    return run_page(run, RunMetrics(classes=CLASSES, student=model, members=members), pictures)


def bundle_html(folder: Path, verdict: Verdict = "fail") -> str:
    tile = FlippedTile("gate", "a/1.png", HOSTILE, HOSTILE, "normal", (0.7, 0.3), (0.25, 0.75))
    flips = {"int8": [ShownFlip(tile, PICTURE)]}
    pictures = VariantFigures({"int8": "<svg></svg>"}, {"int8": 1}, flips, [])
    return bundle_page(bundle_manifest(verdict), pictures)


def bundle_manifest(verdict: Verdict = "fail") -> BundleManifest:
    variant = VariantEntry(
        file="model.fp32.onnx",
        bytes=1,
        base="",
        meant_for="CPU",
        quantized_linears=0,
        judged_by="",
        tiles_per_second={},
        gate=GateResult(verdict="reference", reasons=[], tiles=4),
        test=VariantTest(**structs.asdict(METRICS), intervals=INTERVALS, agreement_with_fp32=1),
    )
    gate = GateResult(verdict=verdict, reasons=["too many labels change"], tiles=4)
    failed = structs.replace(variant, gate=gate)
    return BundleManifest(
        classes=CLASSES,
        preprocessing={},
        temperature=1.25,
        variants={"fp32": variant, "int8": failed, "fp8": failed},
        golden=[],
        provenance=Provenance(
            edgelung="0",
            created="",
            run="",
            student="deit",
            weights_sha256="",
            split_sha256="",
            groups="",
            split="group",
            recipe={},
            sets={"test": SetSize(tiles=4, groups=4)},
            eight_bits=None,
            origins=[ORIGIN],
        ),
    )


def compare_html(folder: Path) -> str:
    model = ComparedModel(
        run="first", role="student", model=HOSTILE, split="random", fewest_groups=2, test=TEST
    )
    return compare_page(Comparison(models=[model]))


def audit_html(folder: Path) -> str:
    colours = {"mean_rgb": [1.0, 2.0, 3.0], "std_rgb": []}
    audit = {
        "tiles": 4,
        "groups": 3,
        "single_tiles": 2,
        "largest_group": 2,
        "identical_files": 0,
        "identical": [],
        "groups_across_classes": {},
        "too_plain_to_compare": [],
        "unreadable": {"a/broken.png": "it is truncated"},
        "sizes": {"96x96": 4},
        "other_sizes": 0,
        "sides": [96, 96],
        "classes": {HOSTILE: {"tiles": 4, "groups": 3, "left_out": 1, **colours}},
    }
    pair = {"picture": PICTURE, "text": "", "inliers": 33, "paths": ["a/1.png", "a/2.png"]}
    pictures = {"groups": [], "across": [], "known": [], "weakest": [pair], "refused": []}
    return audit_page("tiles", audit, pictures)


every_page = pytest.mark.parametrize("page", [run_html, bundle_html, compare_html, audit_html])
Page = Callable[[Path], str]


@every_page
def test_every_page_has_the_research_notice(page: Page, tmp_path: Path) -> None:
    assert f'<p class="notice">{RESEARCH_USE_ONLY}</p>' in page(tmp_path)


@every_page
def test_a_name_with_a_script_tag_is_shown_as_text(page: Page, tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_page_of_a_run_shows_the_size_of_a_tile_where_it_was_stated(tmp_path: Path) -> None:
    stated, unknown = run_html(tmp_path, tile_um=192), run_html(tmp_path)
    assert "<dt>size of a tile</dt><dd>192 × 192 µm</dd>" in stated
    assert "size of a tile" not in unknown


@pytest.mark.parametrize(
    ("page", "plots", "pictures"),
    [(run_html, 3, 3), (bundle_html, 1, 1), (compare_html, 0, 0), (audit_html, 0, 1)],
)
def test_a_page_has_its_plots_and_pictures(
    page: Page, plots: int, pictures: int, tmp_path: Path
) -> None:
    html = page(tmp_path)
    assert html.count("<svg") == plots
    assert html.count(f'<img src="{PICTURE}"') == pictures


@pytest.mark.parametrize("page", [run_html, compare_html])
def test_figures_have_their_intervals(page: Page, tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "75.00 %" in html
    assert "61.20 – 98.70 %" in html


def test_the_page_of_a_bundle_shows_how_a_label_flips(tmp_path: Path) -> None:
    assert "p(normal) 0.300 → 0.750" in bundle_html(tmp_path)


@pytest.mark.parametrize("page", [run_html, bundle_html])
def test_a_page_begins_with_its_concerns(page: Page, tmp_path: Path) -> None:
    """Both are made from a test with fewer groups than say anything."""
    html = page(tmp_path)
    assert html.index('<p class="notice">The test says little: ') < html.index("<h2>")


@pytest.mark.parametrize("page", [run_html, bundle_html])
def test_weights_of_uncertain_origin_are_named_before_the_figures(
    page: Page, tmp_path: Path
) -> None:
    html = page(tmp_path)
    assert html.index("of uncertain origin: &lt;script") < html.index("<h2>")


def test_the_model_card_names_weights_of_uncertain_origin() -> None:
    card = model_card(bundle_manifest())
    assert card.index("of uncertain origin") < card.index("## Data")
    assert "<script" not in card


def test_each_model_of_a_teacher_has_its_figures(tmp_path: Path) -> None:
    assert '<th scope="row">teacher/vit_of_a_teacher<br><small>vit</small></th>' in run_html(
        tmp_path
    )


@every_page
def test_a_page_begins_with_its_verdict_and_allows_no_request(page: Page, tmp_path: Path) -> None:
    html = page(tmp_path)
    assert html.index("Content-Security-Policy") < html.index("<style>")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    assert html.index("<h1 class=") < html.index('<dl class="facts">') < html.index("<h2>")


@every_page
def test_every_column_and_row_of_a_table_is_named(page: Page, tmp_path: Path) -> None:
    assert not re.search(r"<th(?! scope=)[ >]", page(tmp_path))


def test_one_epoch_is_a_sentence_and_no_curve(tmp_path: Path) -> None:
    html = run_html(tmp_path, epochs=1)
    assert "Student: 1 epoch, training loss 0.500." in html
    assert "student: loss" not in html


def test_a_reason_that_several_variants_share_is_said_once(tmp_path: Path) -> None:
    html = bundle_html(tmp_path)
    assert html.count("too many labels change") == 1
    assert "<b>int8, fp8</b>: too many labels change" in html


def test_the_page_of_an_audit_names_files_left_out(tmp_path: Path) -> None:
    assert "<li>a/broken.png: it is truncated</li>" in audit_html(tmp_path)


def test_the_page_of_a_comparison_warns_of_a_random_split(tmp_path: Path) -> None:
    assert "cannot tell recognition from memory" in compare_html(tmp_path)


def test_what_a_concern_says_is_not_said_again_above_the_details(tmp_path: Path) -> None:
    html = bundle_html(tmp_path, "inconclusive")
    assert html.index("The gate cannot tell whether int8, fp8") < html.index("<h2>Variants</h2>")
    assert html.index("too many labels change") > html.index("<h2>Details</h2>")
