"""Full precision is judged too: what is said about a model, its test and its gate."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from msgspec import UNSET, structs

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.manifest import BundleManifest, Provenance, VariantEntry
from edgelung.artifacts.results import Concern, GateResult, ModelTest, SetSize, TilesNeeded
from edgelung.artifacts.run import ModelMetrics, RunMetrics
from edgelung.evaluation.concerns import (
    bundle_concerns,
    concerns_of_test,
    gate_concerns,
    model_concerns,
    run_concerns,
    validation_concerns,
)
from edgelung.evaluation.intervals import intervals
from edgelung.evaluation.metrics import evaluate

CLASSES = ["aca", "n", "scc"]
GOOD = [[9, 1, 0], [0, 10, 0], [1, 0, 9]]
NEVER_ACA = [[0, 1, 9], [0, 10, 0], [0, 0, 10]]
ENOUGH = dict.fromkeys(CLASSES, SetSize(tiles=10, groups=5))


def measured(confusion: Sequence[Sequence[int]], groups_per_class: int = 5) -> ModelTest:
    """Test metrics of a model with this confusion matrix; the tiles of a class share groups."""
    cells = [
        (truth, predicted, f"{truth}-{i % groups_per_class}")
        for truth, row in enumerate(confusion)
        for i, predicted in enumerate(np.repeat(range(3), row))
    ]
    truth, predicted = (np.array([cell[i] for cell in cells], np.int64) for i in (0, 1))
    names = [cell[2] for cell in cells]
    probabilities = np.where(np.eye(3)[predicted] == 1, 0.8, 0.1)
    return ModelTest(
        **structs.asdict(evaluate(probabilities, truth)),
        groups=len(set(names)),
        intervals=intervals(predicted, truth, names, 3),
        expected_calibration_error_at_temperature=0.0,
    )


def said(confusion: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    """Kind and text of the concerns about a model, all of which say 'do not use'."""
    concerns = model_concerns(measured(confusion), CLASSES)
    assert all(concern.do_not_use for concern in concerns)
    return [(concern.kind, concern.text) for concern in concerns]


def manifest(confusion: Sequence[Sequence[int]], **changes: object) -> BundleManifest:
    """A bundle of full precision alone, with 15 test groups; `changes` are fields of it."""
    test = measured(confusion)
    entry = VariantEntry(
        file="",
        bytes=0,
        base="",
        meant_for="",
        quantized_linears=0,
        judged_by="",
        tiles_per_second={},
        gate=GateResult(verdict="reference", reasons=[], tiles=30),
        test=test,  # type: ignore[arg-type]
    )
    provenance = Provenance(
        edgelung="0",
        created="",
        run="",
        student="",
        weights_sha256="",
        split_sha256="",
        groups="",
        split="",
        recipe={},
        sets={"test": SetSize(tiles=test.tiles, groups=15)},
        eight_bits=None,
    )
    made = BundleManifest(
        classes=CLASSES,
        preprocessing={},
        temperature=1.0,
        variants={"fp32": entry},
        golden=[],
        provenance=provenance,
    )
    return structs.replace(made, **changes)


def test_a_good_model_raises_no_concern() -> None:
    assert said(GOOD) == []


def test_a_class_that_is_never_predicted_is_named_with_its_tiles() -> None:
    text = "Do not use the model: it never predicts aca (0 of 30 test tiles, 10 are of this class)."
    assert said(NEVER_ACA) == [("never-predicted", text)]


def test_one_class_for_every_tile_is_said_once() -> None:
    text = "Do not use the model: it predicts scc for all 30 test tiles."
    assert said([[0, 0, 10]] * 3) == [("one-class", text)]


def test_one_class_for_every_tile_is_right_if_the_test_holds_no_other() -> None:
    assert said([[0, 0, 0], [0, 20, 0], [0, 0, 0]]) == []
    ((kind, text),) = said([[0, 0, 0], [0, 0, 20], [0, 0, 0]])
    assert kind == "never-predicted"
    assert "never predicts n (0 of 20 test tiles" in text


def test_a_class_found_less_often_than_by_chance_is_named() -> None:
    text = (
        "Do not use the model: it recognises aca (20 % of 10 test tiles) less often than by chance "
        "(33 %)."
    )
    assert said([[2, 4, 4], [0, 10, 0], [0, 0, 10]]) == [("below-chance", text)]


def test_a_model_that_may_be_guessing_is_no_better_than_chance() -> None:
    ((kind, text),) = said([[4, 3, 3], [3, 4, 3], [3, 3, 4]])
    assert kind == "not-above-chance"
    assert "does not show that it is better than chance (balanced accuracy 40 %" in text


def test_probabilities_that_are_not_finite_are_said_and_nothing_else() -> None:
    truth = np.repeat(np.arange(3), 4)
    probabilities = np.where(np.eye(3)[truth] == 1, 0.8, 0.1)
    probabilities[5] = np.nan
    test = structs.replace(measured(GOOD), **structs.asdict(evaluate(probabilities, truth)))
    (concern,) = model_concerns(test, CLASSES)
    assert (concern.kind, concern.do_not_use) == ("not-finite", True)


def test_a_class_without_test_tiles_is_unknown_and_not_never_predicted() -> None:
    assert said([[0, 0, 0], [0, 10, 0], [0, 0, 10]]) == []
    (concern,) = concerns_of_test(ENOUGH | {"aca": SetSize(tiles=0, groups=0)})
    assert concern.kind == "class-not-tested"
    assert concern.text.startswith("Nothing is known about aca: no test tile shows it")


@pytest.mark.parametrize(("groups", "words"), [(1, "1 test group,"), (4, "4 test groups,")])
def test_a_test_of_few_groups_says_little(groups: int, words: str) -> None:
    sizes = ENOUGH | {"scc": SetSize(tiles=50, groups=groups)}
    (concern,) = concerns_of_test(sizes)
    assert (concern.kind, concern.do_not_use) == ("few-test-groups", False)
    assert concern.text == (
        f"The test says little: scc has {words} and at least 5 per class are needed to say "
        "anything about other sources; label more slides or raise split.test."
    )
    assert concerns_of_test(ENOUGH) == []


def test_few_validation_groups_mean_that_no_variant_can_pass() -> None:
    (concern,) = validation_concerns(ENOUGH | {"n": SetSize(tiles=50, groups=0)})
    assert concern.text == (
        "No variant can pass the gate: n has 0 validation groups, and at least 5 per class are "
        "needed; label more slides or raise split.val."
    )
    assert validation_concerns(ENOUGH) == []


def test_a_gate_that_cannot_tell_says_how_many_groups_it_needs() -> None:
    gates = {
        name: GateResult(verdict=verdict, reasons=[], tiles=27, groups=9, needed=needed)
        for name, verdict, needed in (
            ("fp32", "reference", None),
            ("fp16", "inconclusive", TilesNeeded(tiles=110, groups=37)),
            ("int8", "inconclusive", TilesNeeded(tiles=117, groups=39)),
            ("fp8", "fail", None),
        )
    }
    (concern,) = gate_concerns(gates)
    assert concern.text == (
        "The gate cannot tell whether fp16, int8 may replace full precision: about 39 validation "
        "groups are needed, 9 are there; label more slides or raise split.val."
    )
    assert gate_concerns({"fp8": gates["fp8"]}) == []


def run_of(val: Sequence[Sequence[int]], test: Sequence[Sequence[int]]) -> RunMetrics:
    """A run whose student has these confusion matrices; ten groups per class."""
    on_val, on_test = measured(val, 10), measured(test, 10)
    student = ModelMetrics(
        model="", temperature=1.0, val=on_val, test=on_test, val_intervals=on_val.intervals
    )
    return RunMetrics(classes=CLASSES, student=student)


MANY = dict.fromkeys(CLASSES, SetSize(tiles=100, groups=10))
PERFECT = [[100, 0, 0], [0, 100, 0], [0, 0, 100]]
WORSE = [[75, 25, 0], [0, 75, 25], [25, 0, 75]]
ALMOST = [[95, 5, 0], [0, 100, 0], [0, 0, 100]]


@pytest.mark.parametrize(("val", "test"), [(PERFECT, WORSE), (WORSE, PERFECT)])
def test_validation_and_test_whose_intervals_do_not_overlap_disagree(
    val: Sequence[Sequence[int]], test: Sequence[Sequence[int]]
) -> None:
    """In both directions: a test set that is too easy says as little as one that is too hard."""
    counts = {"train": MANY, "val": MANY, "test": MANY}
    (concern,) = run_concerns(run_of(val, test), counts)
    assert (concern.kind, concern.do_not_use) == ("validation-differs", False)
    assert concern.text.startswith("Validation and test disagree about the student: balanced")
    good, bad = ("validation", "test") if val is PERFECT else ("test", "validation")
    assert re.search(rf"100\.0 % \(interval \d\d\.\d to 100\.0 %\) on {good}\b", concern.text)
    assert re.search(rf"75\.0 % \(interval \d\d\.\d to \d\d\.\d %\) on {bad}\b", concern.text)


def test_a_difference_within_the_intervals_is_no_concern() -> None:
    counts = {"train": MANY, "val": MANY, "test": MANY}
    assert run_concerns(run_of(PERFECT, ALMOST), counts) == []


def test_validation_and_test_are_compared_only_if_both_have_enough_groups() -> None:
    """Of few groups the intervals are too narrow; older runs hold none for validation."""
    metrics = run_of(PERFECT, WORSE)
    few = {name: SetSize(tiles=100, groups=9) for name in CLASSES}
    assert run_concerns(metrics, {"train": MANY, "val": few, "test": MANY}) == []
    assert run_concerns(metrics, {"train": MANY, "val": MANY, "test": few}) == []
    assert isinstance(metrics.student, ModelMetrics)
    old = structs.replace(metrics, student=structs.replace(metrics.student, val_intervals=UNSET))
    assert run_concerns(old, {"train": MANY, "val": MANY, "test": MANY}) == []


def test_every_model_of_a_run_is_judged_the_student_first() -> None:
    models = {
        role: ModelMetrics(model="", temperature=1.0, val=measured(GOOD), test=measured(confusion))
        for role, confusion in (("teacher", [[0, 0, 10]] * 3), ("student", NEVER_ACA))
    }
    metrics = RunMetrics(classes=CLASSES, **models)
    few = {name: ENOUGH | {name: SetSize(tiles=9, groups=2)} for name in CLASSES}
    counts = {"train": ENOUGH, "val": few["n"], "test": few["aca"]}
    found = run_concerns(metrics, counts)
    assert [concern.text.partition(":")[0] for concern in found] == [
        "Do not use the student",
        "Do not use the teacher",
        "The test says little",
        "No variant can pass the gate",
    ]
    assert run_concerns(structs.replace(metrics, concerns=[]), counts) == []
    *_, last = run_concerns(structs.replace(metrics, folds={}), counts)  # no gate judges folds
    assert last.kind == "few-test-groups"
    assert last.text.endswith("; label more slides.")


def test_a_bundle_without_recorded_concerns_is_judged_by_its_test_figures() -> None:
    assert manifest(NEVER_ACA).concerns is UNSET
    (concern,) = bundle_concerns(manifest(NEVER_ACA))
    assert (concern.kind, concern.do_not_use) == ("never-predicted", True)
    assert bundle_concerns(manifest(GOOD)) == []
    recorded = [Concern(kind="of a newer edgelung", text="Do not use the model: it is old.")]
    assert bundle_concerns(manifest(GOOD, concerns=recorded)) == recorded


def test_a_bundle_whose_groups_are_too_few_in_all_says_so() -> None:
    provenance = manifest(GOOD).provenance
    assert provenance is not None
    few = structs.replace(provenance, sets={"test": SetSize(tiles=30, groups=14)})
    (concern,) = bundle_concerns(manifest(GOOD, provenance=few))
    assert concern.text.startswith("The test says little: it has 14 groups for 3 classes")


def test_a_bundle_with_the_groups_of_each_class_names_the_class() -> None:
    sizes = ENOUGH | {"scc": SetSize(tiles=10, groups=1)}
    (concern,) = bundle_concerns(manifest(GOOD), sizes)
    assert concern.text.startswith("The test says little: scc has 1 test group,")


@pytest.mark.parametrize(
    ("tiles", "text"),
    [
        (0, "The model was not tested: the run has no test tile"),
        (30, "Do not use the model: its probabilities on the test tiles are not finite."),
    ],
)
def test_a_bundle_without_test_figures_says_why(tiles: int, text: str) -> None:
    made = manifest(GOOD)
    assert made.provenance is not None
    untested = structs.replace(made.variants["fp32"], test=None)
    sets = {"test": SetSize(tiles=tiles, groups=tiles)}
    provenance = structs.replace(made.provenance, sets=sets)
    changed = structs.replace(made, variants={"fp32": untested}, provenance=provenance)
    (concern,) = bundle_concerns(changed)
    assert concern.text.startswith(text)


def test_the_starter_raises_no_concern() -> None:
    opened = open_bundle(starter_bundle())
    assert opened.manifest.concerns == []
    assert bundle_concerns(opened.manifest) == []
