"""Concerns: why a model, or the figures about it, should not be trusted.

The gate compares variants with full precision. This module judges full precision itself, and says
when the test or the gate has too few groups. A model with a concern 'do not use' gives labels that
are worth nothing, although every variant may agree with it and pass the gate.

`train` records the concerns in metrics.json and `export` in bundle.json. For files of an older
edgelung they are derived from the recorded figures. docs/explanation/verdicts.md lists them.
"""

import math
from collections.abc import Mapping, Sequence

from msgspec import UNSET

from edgelung.artifacts.manifest import BundleManifest
from edgelung.artifacts.results import (
    Concern,
    GateResult,
    Interval,
    Metrics,
    ModelTest,
    SetSize,
    VariantTest,
)
from edgelung.artifacts.run import Counts, ModelMetrics, RunMetrics
from edgelung.core.precision import FULL_PRECISION
from edgelung.evaluation.gate import MIN_GROUPS, MORE_GROUPS
from edgelung.evaluation.intervals import FEW_GROUPS

MORE_TEST = "label more slides or raise split.test"


def run_concerns(metrics: RunMetrics, counts: Counts) -> list[Concern]:
    """Concerns of a run: the recorded ones, or those that its figures give.

    The student comes first, then the other models, the test set and the validation set. With fewer
    than FEW_GROUPS groups in a class the intervals are too narrow to compare the two sets.

    Args:
        metrics: metrics.json.
        counts: subset → class → tiles and groups, from run.json.
    """
    if metrics.concerns is not UNSET:
        return metrics.concerns
    concerns: list[Concern] = []
    for role, model in reversed(metrics.models.items()):
        concerns += model_concerns(model.test, metrics.classes, f"the {role}")
    if all(size.groups >= FEW_GROUPS for name in ("val", "test") for size in counts[name].values()):
        for role, model in reversed(metrics.models.items()):
            concerns += _sets_differ(model, f"the {role}")
    return [*concerns, *concerns_of_test(counts["test"]), *validation_concerns(counts["val"])]


def bundle_concerns(
    manifest: BundleManifest, test_sizes: Mapping[str, SetSize] | None = None
) -> list[Concern]:
    """Concerns of a bundle: the recorded ones, or those that its figures give.

    Args:
        manifest: bundle.json.
        test_sizes: class → test tiles and groups. None: bundle.json knows only their total.
    """
    if manifest.concerns is not UNSET:
        return manifest.concerns
    sets = manifest.provenance.sets if manifest.provenance else {}
    total = sets.get("test")
    test = manifest.variants[FULL_PRECISION].test
    concerns: list[Concern] = []
    if test:
        concerns += model_concerns(test, manifest.classes)
    elif total and total.tiles:  # `export` leaves out the figures of such a test
        concerns.append(_not_finite("the model"))
    if total and not total.tiles:
        text = f"The model was not tested: the run has no test tile; {MORE_TEST}."
        concerns.append(Concern(kind="not-tested", text=text))
    elif test_sizes is not None:
        concerns += concerns_of_test(test_sizes)
    elif total and total.groups < MIN_GROUPS * len(manifest.classes):
        concerns.append(
            _few_test_groups(f"it has {total.groups} groups for {len(manifest.classes)} classes")
        )
    gates = {name: entry.gate for name, entry in manifest.variants.items()}
    return [*concerns, *gate_concerns(gates)]


def model_concerns(
    test: ModelTest | VariantTest, classes: Sequence[str], model: str = "the model"
) -> list[Concern]:
    """Why the predictions of a model on the test tiles are worth nothing.

    At most one concern for the classes that are never predicted, and one for those that are found
    less often than by chance. If no class stands out, balanced accuracy is compared with chance.

    Args:
        test: metrics of the model on the test tiles.
        classes: names of the classes.
        model: the model's name in the sentence.
    """
    if not _is_finite(test):
        return [_not_finite(model)]
    if not test.tiles:
        return []
    predicted = [sum(column) for column in zip(*test.confusion, strict=True)]
    tested = sum(recall is not None for recall in test.recall)
    if max(predicted) == test.tiles and tested > 1:
        only = classes[predicted.index(test.tiles)]
        what = f"it predicts {only} for all {test.tiles} test tiles"
        return [_do_not_use("one-class", model, what)]
    chance = 1 / len(classes)
    never, rarely = [], []
    for name, support, count, recall in zip(
        classes, test.support, predicted, test.recall, strict=True
    ):
        if recall is None:  # no test tile
            continue
        if not count:
            never.append(f"{name} (0 of {test.tiles} test tiles, {support} are of this class)")
        elif recall < chance:
            rarely.append(f"{name} ({100 * recall:.0f} % of {support} test tiles)")
    concerns = []
    if never:
        what = f"it never predicts {', '.join(never)}"
        concerns.append(_do_not_use("never-predicted", model, what))
    if rarely:
        what = f"it recognises {', '.join(rarely)} less often than by chance ({100 * chance:.0f} %)"
        concerns.append(_do_not_use("below-chance", model, what))
    if not concerns and (what := _not_above_chance(test, chance)):
        concerns.append(_do_not_use("not-above-chance", model, what))
    return concerns


def _is_finite(test: Metrics) -> bool:
    """False if a probability was not a number: the sums over all tiles are not one either."""
    return math.isfinite(test.negative_log_likelihood) and math.isfinite(
        test.expected_calibration_error
    )


def _not_above_chance(test: ModelTest | VariantTest, chance: float) -> str:
    """A clause if the interval of balanced accuracy reaches chance; '' if it does not."""
    tested = sum(recall is not None for recall in test.recall)
    low, high = test.intervals.balanced_accuracy
    if test.balanced_accuracy is None or tested < 2 or low > chance:
        return ""
    interval = f", interval {100 * low:.0f} to {100 * high:.0f} %" if low < high else ""
    return (
        f"the test does not show that it is better than chance (balanced accuracy "
        f"{100 * test.balanced_accuracy:.0f} %{interval}, chance {100 * chance:.0f} %)"
    )


def _sets_differ(model: ModelMetrics, name: str) -> list[Concern]:
    """A concern if the intervals of balanced accuracy on validation and test do not overlap.

    Neither set was trained on, so both estimate the same accuracy. For two independent sets whose
    95 % intervals are of one width, intervals that do not overlap are a difference at a level of
    0.6 % (Schenker and Gentleman 2001).
    """
    if model.val_intervals is UNSET or not (_is_finite(model.val) and _is_finite(model.test)):
        return []
    val, test = model.val_intervals.balanced_accuracy, model.test.intervals.balanced_accuracy
    if val[0] <= test[1] and test[0] <= val[1]:
        return []
    text = (
        f"Validation and test disagree about {name}: balanced accuracy is "
        f"{_figure(model.val, val)} on validation, but {_figure(model.test, test)} on test. "
        "Neither alone says what to expect of other sources: look at the groups with errors, check "
        "the groups with `edgelung audit`, or train with another split.seed."
    )
    return [Concern(kind="validation-differs", text=text)]


def concerns_of_test(sizes: Mapping[str, SetSize]) -> list[Concern]:
    """A concern if a class has no test tile, and one if a class has few test groups.

    `sizes`: class → test tiles and groups. With fewer than MIN_GROUPS groups in a class a bootstrap
    over groups says nothing about other sources; with one group it has no width at all.
    """
    concerns = []
    if absent := [name for name, size in sizes.items() if not size.tiles]:
        text = f"Nothing is known about {', '.join(absent)}: no test tile shows it; {MORE_TEST}."
        concerns.append(Concern(kind="class-not-tested", text=text))
    present = {name: size.groups for name, size in sizes.items() if size.tiles}
    if present and min(present.values()) < MIN_GROUPS:
        name = min(present, key=lambda label: present[label])
        concerns.append(_few_test_groups(f"{name} has {_groups(present[name], 'test')}"))
    return concerns


def validation_concerns(sizes: Mapping[str, SetSize]) -> list[Concern]:
    """A concern if no variant can pass the gate. `sizes`: class → validation tiles and groups."""
    name = min(sizes, key=lambda label: sizes[label].groups)
    if sizes[name].groups >= MIN_GROUPS:
        return []
    text = (
        f"No variant can pass the gate: {name} has {_groups(sizes[name].groups, 'validation')}, "
        f"and at least {MIN_GROUPS} per class are needed; {MORE_GROUPS}."
    )
    return [Concern(kind="few-validation-groups", text=text)]


def gate_concerns(gates: Mapping[str, GateResult]) -> list[Concern]:
    """A concern if the gate cannot tell about some variants. `gates`: variant → gate result."""
    undecided = {name: gate for name, gate in gates.items() if gate.verdict == "inconclusive"}
    if not undecided:
        return []
    text = f"The gate cannot tell whether {', '.join(undecided)} may replace full precision"
    results = undecided.values()
    present = max(gate.groups or 0 for gate in results)
    if needed := [gate.needed.groups for gate in results if gate.needed]:
        text += (
            f": about {max(needed)} validation groups are needed, {present} are there; "
            f"{MORE_GROUPS}"
        )
    return [Concern(kind="gate-undecided", text=f"{text}.")]


def starter_concerns() -> list[Concern]:
    """A concern for the accuracy of the starter on labelled folders."""
    text = (
        "The starter was trained on tiles of LC25000: its accuracy on tiles of LC25000 is no test; "
        "its test figures are in its model card (MODEL_CARD.md)."
    )
    return [Concern(kind="starter-tiles", text=text)]


def _few_test_groups(what: str) -> Concern:
    text = (
        f"The test says little: {what}, and at least {MIN_GROUPS} per class are needed to say "
        f"anything about other sources; {MORE_TEST}."
    )
    return Concern(kind="few-test-groups", text=text)


def _not_finite(model: str) -> Concern:
    return _do_not_use("not-finite", model, "its probabilities on the test tiles are not finite")


def _do_not_use(kind: str, model: str, what: str) -> Concern:
    return Concern(kind=kind, do_not_use=True, text=f"Do not use {model}: {what}.")


def _groups(count: int, subset: str) -> str:
    return f"{count} {subset} group{'' if count == 1 else 's'}"


def _figure(metrics: Metrics, interval: Interval) -> str:
    low, high = interval
    value = metrics.balanced_accuracy
    figure = "–" if value is None else f"{100 * value:.1f} %"
    return f"{figure} (interval {100 * low:.1f} to {100 * high:.1f} %)"
