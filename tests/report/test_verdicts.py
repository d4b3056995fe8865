"""The headline of a page: 'Do not use' before everything, then what to do, in words."""

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec import structs

from edgelung.artifacts.manifest import BundleManifest, VariantEntry
from edgelung.artifacts.results import (
    Concern,
    GateResult,
    Intervals,
    ModelTest,
    SetSize,
    VariantTest,
)
from edgelung.artifacts.run import ModelMetrics, RunConfig, RunMetrics
from edgelung.evaluation.comparison import ComparedModel, Comparison, Difference
from edgelung.evaluation.concerns import model_concerns
from edgelung.evaluation.metrics import classification_metrics
from edgelung.report.verdicts import (
    Tone,
    audit_headline,
    bundle_headline,
    compare_headline,
    percent,
    predictions_headline,
    run_headline,
)

CLASSES = ["lung_aca", "lung_n", "lung_scc"]
GOOD = [[98, 1, 1], [0, 100, 0], [0, 0, 100]]
NEVER = [[0, 50, 50], [0, 100, 0], [0, 0, 100]]
ONE = [[0, 100, 0], [0, 100, 0], [0, 100, 0]]
RARE = [[20, 40, 40], [0, 100, 0], [0, 0, 100]]
BOUNDS = (0.95, 0.998)


def model_test(confusion: Sequence[Sequence[int]]) -> ModelTest:
    return ModelTest(
        **structs.asdict(classification_metrics(np.array(confusion))),
        expected_calibration_error=0.01,
        negative_log_likelihood=0.1,
        roc_auc=0.99,
        groups=60,
        intervals=Intervals(accuracy=BOUNDS, balanced_accuracy=BOUNDS, macro_f1=BOUNDS),
        expected_calibration_error_at_temperature=0.01,
    )


def run_config(split: str = "group", groups: int = 20) -> RunConfig:
    sizes = {name: SetSize(tiles=100, groups=groups) for name in CLASSES}
    return RunConfig(
        edgelung="0",
        notice="",
        data="tiles",
        seed=0,
        precision="fp32",
        processes=1,
        groups="found",
        split=split,
        test_tiles_with_a_group_mate_in_training=0,
        counts=dict.fromkeys(("train", "val", "test"), sizes),
        sizes={},
        recipe={},
    )


def run_metrics(confusion: Sequence[Sequence[int]]) -> RunMetrics:
    test = model_test(confusion)
    return RunMetrics(
        classes=CLASSES, student=ModelMetrics(model="deit", temperature=1, val=test, test=test)
    )


def variant(verdict: str, agreement: float | None, speed: float) -> VariantEntry:
    return VariantEntry(
        file="",
        bytes=1,
        base="",
        meant_for="",
        quantized_linears=0,
        judged_by="",
        tiles_per_second={"openvino": speed, "onnxruntime": speed / 2},
        gate=GateResult(verdict=verdict, reasons=[], tiles=300, agreement=agreement),
    )


def bundle(confusion: Sequence[Sequence[int]] = GOOD, **others: VariantEntry) -> BundleManifest:
    fields = structs.asdict(model_test(confusion))
    for name in ("groups", "expected_calibration_error_at_temperature"):
        del fields[name]
    test = VariantTest(**fields, agreement_with_fp32=1)
    fp32 = structs.replace(variant("reference", None, 100), test=test)
    return BundleManifest(
        classes=CLASSES,
        preprocessing={},
        temperature=1,
        variants={"fp32": fp32, **others},
        golden=[],
        concerns=model_concerns(test, CLASSES),
    )


def test_the_run_says_what_its_student_is_worth() -> None:
    headline = run_headline(run_metrics(GOOD), run_config())
    assert headline.text == (
        "The student labels 99.3 % of 300 test tiles right (95 % interval 95.00 – 99.80 %)"
    )
    assert headline.tone is Tone.GOOD


def test_a_cross_validation_says_over_how_many_folds() -> None:
    config = structs.replace(run_config(), folds=5)
    text = run_headline(run_metrics(GOOD), config).text
    assert text.startswith("Over 5 folds, the student labels 99.3 % of 300 test tiles right")


def test_a_split_whose_test_shows_tissue_of_training_is_not_trusted() -> None:
    bad = audit_headline(100, 20, 0, 0, (3, 40))
    assert bad.text == (
        "Do not trust this split: 3 of 40 test tiles (7.5 %) show tissue of training tiles"
    )
    good = audit_headline(100, 20, 0, 1, (0, 40))
    assert good.text == (
        "No test tile of 40 shows tissue of a training tile; 1 file cannot be read"
    )
    assert (bad.tone, good.tone) == (Tone.BAD, Tone.GOOD)


@pytest.mark.parametrize(
    ("confusion", "text"),
    [
        (NEVER, "Do not use: lung_aca is never predicted"),
        (ONE, "Do not use: every test tile is labelled lung_n"),
        (RARE, "Do not use: lung_aca is recognised less often than by chance"),
    ],
)
def test_a_student_that_is_not_to_be_used_heads_both_pages(
    confusion: Sequence[Sequence[int]], text: str
) -> None:
    expected = (text, Tone.BAD)
    run = run_headline(run_metrics(confusion), run_config())
    assert (run.text, run.tone) == expected
    fast = {"int8": variant("pass", 0.999, 310)}
    exported = bundle_headline(bundle(confusion, **fast))
    assert (exported.text, exported.tone) == expected


def test_few_groups_and_a_random_split_are_never_good_news() -> None:
    few = run_headline(run_metrics(GOOD), run_config(groups=2))
    assert few.text.endswith("but from too few sources to say more")
    random = run_headline(run_metrics(GOOD), run_config(split="random"))
    assert random.text.endswith("but a random split cannot tell this from memory")
    assert few.tone is random.tone is Tone.CAUTION


def test_the_fastest_variant_that_passed_is_shipped() -> None:
    headline = bundle_headline(
        bundle(
            fp16=variant("pass", 1.0, 101),
            int8=variant("pass", 0.9992, 310),
            fp8=variant("fail", 0.5, 900),
        )
    )
    assert headline.text == "Ship int8: it keeps 99.9 % of the labels and runs 3.1 × as fast"
    assert headline.tone is Tone.GOOD


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ({}, "Ship fp32: no smaller variant was exported"),
        (
            {"int8": variant("inconclusive", 1, 300)},
            "Ship fp32: the gate cannot decide about int8",
        ),
        ({"int8": variant("fail", 0.9, 300)}, "Ship fp32: no smaller variant passed its gate"),
        ({"fp16": variant("pass", 1, 98)}, "Ship fp32 on a CPU; fp16 passed, for GPUs"),
    ],
)
def test_without_a_faster_variant_full_precision_is_shipped(
    others: dict[str, VariantEntry], text: str
) -> None:
    assert bundle_headline(bundle(**others)).text == text


def compared(run: str, change: float | None, interval: tuple[float, float] | None) -> ComparedModel:
    difference = None
    if change is not None:
        difference = Difference(
            against="first: student deit", balanced_accuracy=change, interval=interval
        )
    return ComparedModel(
        run=run,
        role="student",
        model="deit",
        split="group",
        fewest_groups=20,
        test=model_test(GOOD),
        difference=difference,
    )


def test_a_difference_is_only_named_if_its_interval_leaves_out_0() -> None:
    first = compared("first", None, None)
    unsure = Comparison(models=[first, compared("second", 0.03, (-0.01, 0.07))])
    assert compare_headline(unsure).text == "No difference is shown between 2 models"
    worse = Comparison(models=[first, compared("second", -0.03, (-0.05, -0.01))])
    assert compare_headline(worse).text == (
        "first: student deit is better than second: student deit by 3.00 points"
    )


def test_models_of_other_tiles_are_not_compared() -> None:
    models = [compared("first", None, None), compared("second", None, None)]
    assert compare_headline(Comparison(models=models)).text == (
        "No comparison: the models were tested on different tiles"
    )


def test_the_audit_names_wrong_labels_before_near_copies() -> None:
    assert audit_headline(9, 4, 1, 2).text == (
        "Check the labels: 1 group of near copies shows several classes; 2 files cannot be read"
    )
    assert audit_headline(1000, 400, 0, 0).text == (
        "Split by groups: the 1,000 tiles are 400 groups of near copies"
    )
    assert audit_headline(1, 1, 0, 0).text == "No near copies among 1 tile"


def test_predictions_of_a_model_that_is_not_to_be_used_say_so_first() -> None:
    bad = Concern(kind="one-class", do_not_use=True, text="Do not use the model: it predicts x.")
    headline = predictions_headline({"ok": 10}, 0, [bad])
    assert headline.text == "Do not use the model: it predicts x"
    assert headline.tone is Tone.BAD


def test_predictions_are_counted() -> None:
    headline = predictions_headline({"ok": 4000, "corrupt": 7}, 7, [])
    assert headline.text == "4,000 of 4,007 files have a label; 7 could not be predicted"


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100.0 %"), (0.99996, "99.9 %"), (0.5, "50.0 %"), (0, "0.0 %")]
)
def test_only_all_is_100_percent(share: float, text: str) -> None:
    assert percent(share) == text
