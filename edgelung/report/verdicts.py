"""The headline of a page: what its figures mean, in one sentence.

Pure functions of the artefacts. The concerns (`edgelung.evaluation.concerns`) come first: a page
never recommends a model that should not be used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from edgelung.artifacts.manifest import BundleManifest, VariantEntry
from edgelung.artifacts.results import Concern, ModelTest, VariantTest
from edgelung.artifacts.run import RunConfig, RunMetrics
from edgelung.core.precision import FULL_PRECISION
from edgelung.evaluation.comparison import Comparison
from edgelung.evaluation.concerns import bundle_concerns, run_concerns
from edgelung.evaluation.intervals import written

SAME_SPEED = 1.05  # a smaller gain over full precision is within the noise of the measurement


class Tone(StrEnum):
    """How a headline is shown. The sentence says the same in words."""

    GOOD = "good"
    CAUTION = "caution"
    BAD = "bad"


@dataclass(frozen=True)
class Headline:
    """The first line of a page."""

    text: str
    tone: Tone


def run_headline(metrics: RunMetrics, config: RunConfig) -> Headline:
    """What the run's student is worth, on its test tiles."""
    concerns = run_concerns(metrics, config.counts)
    test = metrics.models["student"].test
    about_student = [one for one in concerns if "the student:" in one.text]
    if bad := do_not_use(about_student, test, metrics.classes):
        return bad
    if test.accuracy is None:
        return Headline("The student was not tested: the run has no test tile", Tone.CAUTION)
    interval = written(test.intervals.accuracy)
    who = f"Over {config.folds} folds, the student" if config.folds else "The student"
    text = f"{who} labels {percent(test.accuracy)} of {count(test.tiles, 'test tile')} right"
    if interval != "–":
        text += f" (95 % interval {interval})"
    if config.split == "random":
        return Headline(f"{text}, but a random split cannot tell this from memory", Tone.CAUTION)
    if any(one.kind == "few-test-groups" for one in concerns):
        return Headline(f"{text}, but from too few sources to say more", Tone.CAUTION)
    return Headline(text, Tone.CAUTION if concerns else Tone.GOOD)


def bundle_headline(manifest: BundleManifest) -> Headline:
    """Which variant to use, and what it keeps and gains."""
    concerns = bundle_concerns(manifest)
    test = manifest.variants[FULL_PRECISION].test
    if bad := do_not_use(concerns, test, manifest.classes):
        return bad
    tone = Tone.CAUTION if concerns else Tone.GOOD
    others = {name: v for name, v in manifest.variants.items() if name != FULL_PRECISION}
    passed = {name: v for name, v in others.items() if v.gate.verdict == "pass"}
    if not others:
        return Headline(f"Ship {FULL_PRECISION}: no smaller variant was exported", tone)
    if not passed:
        undecided = [name for name, v in others.items() if v.gate.verdict == "inconclusive"]
        why = (
            f"the gate cannot decide about {', '.join(undecided)}"
            if undecided
            else "no smaller variant passed its gate"
        )
        return Headline(f"Ship {FULL_PRECISION}: {why}", Tone.CAUTION)
    best, gain = max(
        ((name, _gain(manifest.variants, name)) for name in passed), key=lambda pair: pair[1]
    )
    if gain < SAME_SPEED:
        names = ", ".join(passed)
        return Headline(f"Ship {FULL_PRECISION} on a CPU; {names} passed, for GPUs", tone)
    kept = passed[best].gate.agreement
    keeps = "" if kept is None else f"it keeps {percent(kept)} of the labels and "
    return Headline(f"Ship {best}: {keeps}runs {gain:.1f} × as fast", tone)


def compare_headline(comparison: Comparison) -> Headline:
    """Whether any difference is shown, and the largest one."""
    models = comparison.models
    differences = [(model, model.difference) for model in models if model.difference]
    shown = [
        (model, difference)
        for model, difference in differences
        if difference.interval and not difference.interval[0] <= 0 <= difference.interval[1]
    ]
    random = any(model.split == "random" for model in models)
    if not shown:
        if len(models) == 1:
            text = "One model, and none to compare it with"
        elif not differences:
            text = "No comparison: the models were tested on different tiles"
        else:
            text = f"No difference is shown between {len(models)} models"
        return Headline(text, Tone.CAUTION)
    model, largest = max(shown, key=lambda pair: abs(pair[1].balanced_accuracy))
    points = 100 * largest.balanced_accuracy
    better, worse = model.title, largest.against
    if points < 0:
        better, worse = worse, better
    text = f"{better} is better than {worse} by {abs(points):.2f} points"
    return Headline(text, Tone.CAUTION if random else Tone.GOOD)


def audit_headline(
    tiles: int, groups: int, mixed: int, left_out: int, shown: tuple[int, int] | None = None
) -> Headline:
    """What to do about the folder before training.

    Args:
        tiles, groups: how many there are.
        mixed: groups with tiles of several classes.
        left_out: files that cannot be read.
        shown: test tiles of a published split that show tissue of training, and all test tiles.
    """
    unread = f"; {count(left_out, 'file')} cannot be read" if left_out else ""
    if shown:
        leaked, tested = shown
        text = f"No test tile of {tested:,} shows tissue of a training tile"
        if leaked:
            of_all = f"{leaked:,} of {count(tested, 'test tile')} ({percent(leaked / tested)})"
            text = f"Do not trust this split: {of_all} show tissue of training tiles"
        return Headline(text + unread, Tone.BAD if leaked else Tone.GOOD)
    if mixed:
        are = "shows" if mixed == 1 else "show"
        text = f"Check the labels: {count(mixed, 'group')} of near copies {are} several classes"
        return Headline(text + unread, Tone.BAD)
    if groups < tiles:
        text = f"Split by groups: the {tiles:,} tiles are {groups:,} groups of near copies"
    else:
        text = f"No near copies among {count(tiles, 'tile')}"
    return Headline(text + unread, Tone.CAUTION if left_out else Tone.GOOD)


def predictions_headline(
    statuses: Mapping[str, int],
    failed: int,
    concerns: Sequence[Concern],
) -> Headline:
    """What became of the files of an `infer` run.

    Args:
        statuses: number of rows by status.
        failed: rows without a prediction because of an error.
        concerns: of the bundle that predicted.
    """
    for concern in concerns:
        if concern.do_not_use:
            return Headline(concern.text.removesuffix("."), Tone.BAD)
    files, labels = sum(statuses.values()), statuses.get("ok", 0)
    text = f"{labels:,} of {count(files, 'file')} {'has' if labels == 1 else 'have'} a label"
    if failed:
        text += f"; {failed:,} could not be predicted"
    return Headline(text, Tone.CAUTION if failed or labels < files or concerns else Tone.GOOD)


def do_not_use(
    concerns: Sequence[Concern], test: ModelTest | VariantTest | None, classes: Sequence[str]
) -> Headline | None:
    """The first concern 'do not use' as a short headline; None without one."""
    concern = next((one for one in concerns if one.do_not_use), None)
    if concern is None:
        return None
    why = _why_not(concern.kind, test, classes) if test else ""
    text = f"Do not use: {why}" if why else concern.text.removesuffix(".")
    return Headline(text, Tone.BAD)


def _why_not(kind: str, test: ModelTest | VariantTest, classes: Sequence[str]) -> str:
    """The reason in a few words; '' for a kind of a newer edgelung."""
    predicted = [sum(column) for column in zip(*test.confusion, strict=True)]
    if kind == "one-class":
        return f"every test tile is labelled {classes[predicted.index(max(predicted))]}"
    if kind == "never-predicted":
        return _names_are(
            [
                name
                for name, n, tiles in zip(classes, predicted, test.support, strict=True)
                if tiles and not n
            ],
            "never predicted",
        )
    if kind == "below-chance":
        return _names_are(
            [
                name
                for name, n, recall in zip(classes, predicted, test.recall, strict=True)
                if n and recall is not None and recall < 1 / len(classes)
            ],
            "recognised less often than by chance",
        )
    return {
        "not-above-chance": "it is not shown to be better than chance",
        "not-finite": "its probabilities are not finite numbers",
    }.get(kind, "")


def _names_are(names: Sequence[str], what: str) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {what}" if names else ""


def _gain(variants: Mapping[str, VariantEntry], name: str) -> float:
    """Speed of a variant over full precision, each on its faster CPU engine; 0 if unknown."""
    speed = max(variants[name].tiles_per_second.values(), default=0.0)
    reference = max(variants[FULL_PRECISION].tiles_per_second.values(), default=0.0)
    return speed / reference if reference else 0.0


def percent(share: float) -> str:
    """A share in percent with one decimal. Only exactly 1 is 100 %: 0.9999 is 99.9 %."""
    tenths = 1000 * share
    return f"{(round(tenths) if share in (0, 1) else min(round(tenths), 999)) / 10:.1f} %"


def count(number: int, noun: str) -> str:
    """'1 tile', '1,234 tiles'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
