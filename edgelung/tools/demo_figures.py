"""The figures that `edgelung demo` ends with: collected from its artefacts, shown as a table."""

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct, structs

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.results import Interval, Metrics, Verdict
from edgelung.artifacts.run import Counts, ModelMetrics, RunFolder, SplitRow
from edgelung.artifacts.summary import Summary, Verification
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.system import Machine
from edgelung.core.terminal import out
from edgelung.core.typed_json import Json
from edgelung.engines.names import EngineName
from edgelung.evaluation.intervals import caution, intervals, written
from edgelung.evaluation.metrics import classification_metrics, confusion_matrix

Labels = Mapping[str, str | None]  # path → predicted class


class Headline(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The main figures of a model on one subset."""

    tiles: int
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    expected_calibration_error: float
    balanced_accuracy_interval: Interval | None = None


class ModelFigures(Struct, frozen=True, kw_only=True):
    """A trained model in torch: its timm name and its main figures."""

    model: str
    val: Headline
    test: Headline


class GateFigures(Struct, frozen=True, kw_only=True):
    """What the gate decided of a variant."""

    verdict: Verdict
    reasons: list[str]
    tiles: int
    agreement: float | None
    balanced_accuracy: float | None


class InferFigures(Struct, frozen=True, kw_only=True):
    """One `edgelung infer` over the test tiles."""

    engine: EngineName
    precision: Precision
    tiles: int
    accuracy: float | None
    balanced_accuracy: float | None
    balanced_accuracy_interval: Interval
    agreement_with_onnxruntime_fp32: float
    tiles_per_second: float | None
    golden_difference: float


class AlsoFigures(Struct, frozen=True, kw_only=True):
    """`edgelung infer --verify` over further folders."""

    files: int
    statuses: dict[str, int]
    engine: str
    precision: str
    tiles_per_second: float | None
    verify: Verification | None

    @classmethod
    def of(cls, summary: Summary) -> "AlsoFigures":
        """Take the figures from a run's summary."""
        return cls(**{name: getattr(summary, name) for name in cls.__struct_fields__})


class DemoFigures(Struct, frozen=True, kw_only=True):
    """results.json: everything that the demo measured.

    `int8_same_label_in_both_engines` is None where only one engine runs INT8.
    """

    teacher: ModelFigures | None
    student: ModelFigures
    counts: Counts
    recipe: dict[str, Json]
    temperature: float
    gate: dict[str, GateFigures]
    bytes: dict[str, int]
    test: list[InferFigures]
    int8_same_label_in_both_engines: float | None
    also: AlsoFigures | None
    seconds: dict[str, float]
    machine: Machine


def collect_figures(
    run: RunFolder,
    bundle: Bundle,
    results: Sequence[tuple[Summary, Labels]],
    *,
    also: AlsoFigures | None,
    seconds: dict[str, float],
    machine: Machine,
) -> DemoFigures:
    """Collect the figures of a run, its bundle, and each `infer` over the run's test tiles."""
    metrics, config = run.read_metrics(), run.read_config()
    models = {role: _model_figures(model) for role, model in metrics.models.items()}
    tested = [row for row in run.read_split() if row.subset == "test"]
    by_run = {(summary.engine, summary.precision): labels for summary, labels in results}
    reference = by_run[EngineName.ONNXRUNTIME, FULL_PRECISION]
    int8 = [labels for (_, precision), labels in by_run.items() if precision == Precision.INT8]
    return DemoFigures(
        teacher=models.get("teacher"),
        student=models["student"],
        counts=config.counts,
        recipe=config.recipe,
        temperature=bundle.manifest.temperature,
        gate={
            name: GateFigures(
                verdict=entry.gate.verdict,
                reasons=entry.gate.reasons,
                tiles=entry.gate.tiles,
                agreement=entry.gate.agreement,
                balanced_accuracy=entry.gate.balanced_accuracy,
            )
            for name, entry in bundle.manifest.variants.items()
        },
        bytes={name: entry.bytes for name, entry in bundle.manifest.variants.items()},
        test=[
            _infer_figures(summary, labels, tested, reference, bundle.classes)
            for summary, labels in results
        ],
        int8_same_label_in_both_engines=share_of_same_labels(*int8) if len(int8) == 2 else None,
        also=also,
        seconds=seconds,
        machine=machine,
    )


def share_of_same_labels(first: Labels, second: Labels) -> float:
    """Return the share of the tiles of `first` that have the same label in `second`."""
    return sum(second[path] == label for path, label in first.items()) / len(first)


def _model_figures(model: ModelMetrics) -> ModelFigures:
    test = structs.replace(
        _headline(model.test), balanced_accuracy_interval=model.test.intervals.balanced_accuracy
    )
    return ModelFigures(model=model.model, val=_headline(model.val), test=test)


def _headline(metrics: Metrics) -> Headline:
    return Headline(
        tiles=metrics.tiles,
        accuracy=metrics.accuracy,
        balanced_accuracy=metrics.balanced_accuracy,
        macro_f1=metrics.macro_f1,
        expected_calibration_error=metrics.expected_calibration_error,
    )


def _infer_figures(
    summary: Summary,
    labels: Labels,
    tested: Sequence[SplitRow],
    reference: Labels,
    classes: Sequence[str],
) -> InferFigures:
    if unlabelled := next((row.path for row in tested if labels.get(row.path) is None), None):
        raise EdgelungError(f"{unlabelled} was not predicted; see the rows in {summary.out}")
    index = {name: i for i, name in enumerate(classes)}
    predicted = np.array([index[labels[row.path] or ""] for row in tested])
    truth = np.array([index[row.label] for row in tested])
    metrics = classification_metrics(confusion_matrix(truth, predicted, len(classes)))
    return InferFigures(
        engine=EngineName(summary.engine),
        precision=Precision(summary.precision),
        tiles=metrics.tiles,
        accuracy=metrics.accuracy,
        balanced_accuracy=metrics.balanced_accuracy,
        balanced_accuracy_interval=intervals(
            predicted, truth, [row.group for row in tested], len(classes)
        ).balanced_accuracy,
        agreement_with_onnxruntime_fp32=share_of_same_labels(labels, reference),
        tiles_per_second=summary.tiles_per_second,
        golden_difference=summary.golden_difference,
    )


def show(figures: DemoFigures, *, has_groups: bool) -> None:
    """Print the closing table. `has_groups`: groups were given, not found."""
    from rich.table import Column, Table

    which = "" if has_groups else "of groups as `edgelung audit` finds them; "
    title = f"test tiles, {which}no group of which was seen in training"
    table = Table(
        Column("model", overflow="fold"),
        *("accuracy", "balanced\n(95 % interval)", "FP32's\nlabel", "tiles/s", "MB"),
        title=title,
    )
    if figures.teacher:
        test = figures.teacher.test
        cells = (_percent(test.accuracy), _balanced(test))
        table.add_row(f"teacher {figures.teacher.model}", *cells, "", "", "")
    for row in figures.test:
        table.add_row(
            f"student {row.precision.upper()}, {row.engine}",
            _percent(row.accuracy),
            _balanced(row),
            _percent(row.agreement_with_onnxruntime_fp32),
            "–" if row.tiles_per_second is None else f"{row.tiles_per_second:.0f}",
            f"{figures.bytes[row.precision] / 1e6:.1f}",
        )
    console = out()
    console.print()
    console.print(table)
    fewest = min(size.groups for size in figures.counts["test"].values())
    if few := caution(fewest):
        console.print(few)
    gates = ", ".join(f"{name} {entry.verdict}" for name, entry in figures.gate.items())
    console.print(f"gate      {gates}")
    if (both := figures.int8_same_label_in_both_engines) is not None:
        console.print(f"INT8      same label in both engines on {_percent(both)}")
    if (also := figures.also) and also.verify:
        console.print(
            f"also      {also.engine} {also.precision} gives FP32's label on "
            f"{_percent(also.verify.agreement)} of {also.verify.tiles} further tiles"
        )
    console.print(RESEARCH_USE_ONLY)


def _balanced(figures: Headline | InferFigures) -> str:
    bounds = figures.balanced_accuracy_interval
    text = _percent(figures.balanced_accuracy)
    return text if bounds is None else f"{text}\n{written(bounds).removesuffix(' %')}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"
