"""Results of evaluating a model: metrics, intervals, and the decision of the gate.

`edgelung.evaluation` computes them; the bundle and the run folder store them. Rates are fractions
in 0…1. None means that a figure is undefined, for example for a class without tiles.
"""

from typing import Literal

from msgspec import Struct

Interval = tuple[float, float]  # lower and upper bound
Verdict = Literal["pass", "fail", "inconclusive", "reference"]


class SetSize(Struct, frozen=True, kw_only=True):
    """Number of tiles and groups in a set."""

    tiles: int
    groups: int


class ClassMetrics(Struct, frozen=True, kw_only=True):
    """Metrics from a confusion matrix (the paper's Eqs. 9–13).

    Lists are per class, in the order of the classes. The rows of `confusion` are the true classes,
    the columns the predicted ones. Balanced accuracy is the macro recall.
    """

    tiles: int
    accuracy: float | None
    balanced_accuracy: float | None
    macro_precision: float | None
    macro_recall: float | None
    macro_f1: float | None
    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]
    support: list[int]
    confusion: list[list[int]]


class LabelledMetrics(ClassMetrics, frozen=True, kw_only=True):
    """Metrics from a confusion matrix, with the names of the classes."""

    classes: list[str]


class Metrics(ClassMetrics, frozen=True, kw_only=True):
    """Metrics from probabilities: calibration and ranking in addition to labels."""

    expected_calibration_error: float
    negative_log_likelihood: float  # nats
    roc_auc: float | None


class Intervals(Struct, frozen=True, kw_only=True):
    """95 % bootstrap intervals over groups."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval


class VariantTest(Metrics, frozen=True, kw_only=True):
    """Metrics of a variant on the test set."""

    intervals: Intervals
    agreement_with_fp32: float


class ModelTest(Metrics, frozen=True, kw_only=True):
    """Metrics of a trained model on the test set."""

    groups: int
    intervals: Intervals
    expected_calibration_error_at_temperature: float


class Agreement(Struct, frozen=True, kw_only=True):
    """Agreement of two models on the same tiles."""

    tiles: int
    agreement: float | None
    differing_labels: int
    max_probability_difference: float | None


class Limits(Struct, frozen=True, kw_only=True):
    """The largest allowed losses of a variant compared with full precision; fractions."""

    min_agreement: float = 0.99
    min_relative_balanced_accuracy: float = 0.99
    max_recall_drop: float = 0.01
    max_calibration_error_rise: float = 0.01


class Bound(Struct, frozen=True, kw_only=True):
    """One criterion of the gate as a loss: positive is worse, `limit` is the largest allowed.

    `low` is the optimistic bound of the loss, `high` the pessimistic one.
    """

    loss: float
    low: float
    high: float
    limit: float

    @property
    def verdict(self) -> Verdict:
        """'fail' if even the optimistic bound exceeds the limit, 'pass' if no bound exceeds it."""
        if self.low > self.limit:
            return "fail"
        return "pass" if self.high <= self.limit else "inconclusive"


class TilesNeeded(Struct, frozen=True, kw_only=True):
    """How many gate tiles and groups of the same kind would decide."""

    tiles: int
    groups: int


class OpenVinoCheck(Struct, frozen=True, kw_only=True):
    """The verdict of the gate on the outputs of OpenVINO for the same file."""

    verdict: Verdict
    floating_point: str
    same_label_as_onnxruntime: float | None
    largest_probability_difference: float | None


class GateResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The decision of the gate about a variant, and the figures behind it.

    Full precision has the verdict 'reference'. Estimates are None if the probabilities of the
    variant are not finite. `looks` counts how many times these tiles judged a form of the variant.
    `unseen_sources`: a fault in a smaller share of sources is missed by these groups in more than
    one case in ten.
    """

    verdict: Verdict
    reasons: list[str]
    tiles: int
    groups: int | None = None
    unseen_sources: float | None = None
    limits: Limits | None = None
    looks: int = 1
    agreement: float | None = None
    differing_labels: int | None = None
    max_probability_difference: float | None = None
    balanced_accuracy: float | None = None
    reference_balanced_accuracy: float | None = None
    recall: list[float | None] | None = None
    reference_recall: list[float | None] | None = None
    expected_calibration_error: float | None = None
    reference_expected_calibration_error: float | None = None
    checks: dict[str, Bound] | None = None
    needed: TilesNeeded | None = None
    largest_activation: float | None = None
    openvino: OpenVinoCheck | None = None
