"""What was measured of a model: metrics, intervals, and what the gate decided.

Computed by `edgelung.evaluation`, stored in the bundle and in the run folder. Rates are fractions
in 0…1; None stands for a figure that does not exist (a class without tiles).
"""

from typing import Literal

from msgspec import Struct

Interval = tuple[float, float]
Verdict = Literal["pass", "fail", "inconclusive", "reference"]


class SetSize(Struct, frozen=True, kw_only=True):
    """Tiles and groups of a set."""

    tiles: int
    groups: int


class Share(Struct, frozen=True, kw_only=True):
    """A share of tiles, averaged over groups, with its 95 % interval over groups."""

    share: float
    interval: Interval
    tiles: int
    groups: int


class LostGroups(Struct, frozen=True, kw_only=True):
    """Groups in which a variant changes more than a tenth of the labels of full precision.

    `largest_loss`: the largest share of changed labels in a group. `bound`: exact 95 % upper bound
    on the share of such groups among all sources.
    """

    groups: int
    lost: int
    largest_loss: float
    bound: float


class Estimate(Struct, frozen=True, kw_only=True):
    """A figure with its 95 % interval over groups.

    `value`: None where the figure does not exist. `interval`: None where it would have no width.
    """

    value: float | None
    interval: Interval | None


class Estimates(Struct, frozen=True, kw_only=True):
    """The main figures of a model on labelled tiles.

    `fewest_groups`: groups of the class that has the fewest, of the classes that have tiles.
    `recall`: per class, in the order of the classes.
    """

    tiles: int
    groups: int
    fewest_groups: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    roc_auc: Estimate
    expected_calibration_error: Estimate
    recall: list[Estimate]


class ClassMetrics(Struct, frozen=True, kw_only=True):
    """What a confusion matrix says (the paper's Eqs. 9–13).

    Lists are per class, in the order of the classes; `confusion` rows are the truth, columns the
    prediction. Balanced accuracy is the macro recall.
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


class Metrics(ClassMetrics, frozen=True, kw_only=True):
    """What probabilities say: calibration and ranking as well as labels."""

    expected_calibration_error: float
    negative_log_likelihood: float  # nats
    roc_auc: float | None


class Intervals(Struct, frozen=True, kw_only=True):
    """95 % intervals over groups: lower and upper bound."""

    accuracy: Interval
    balanced_accuracy: Interval
    macro_f1: Interval


class VariantTest(Metrics, frozen=True, kw_only=True):
    """A variant on the test set."""

    intervals: Intervals
    agreement_with_fp32: float


class ModelTest(Metrics, frozen=True, kw_only=True):
    """A trained model on the test set."""

    groups: int
    intervals: Intervals
    expected_calibration_error_at_temperature: float


class Agreement(Struct, frozen=True, kw_only=True):
    """How far two models agree on the same tiles."""

    tiles: int
    agreement: float | None
    differing_labels: int
    max_probability_difference: float | None


class Limits(Struct, frozen=True, kw_only=True):
    """What a variant may lose against full precision; fractions."""

    min_agreement: float = 0.99
    min_relative_balanced_accuracy: float = 0.99
    max_recall_drop: float = 0.01
    max_calibration_error_rise: float = 0.01


class Bound(Struct, frozen=True, kw_only=True):
    """One criterion of the gate as a loss: positive is worse, `limit` is the most allowed.

    `low` is the optimistic bound of the loss, `high` the pessimistic one.
    """

    loss: float
    low: float
    high: float
    limit: float

    @property
    def verdict(self) -> Verdict:
        """'fail' if even the optimistic bound is over the limit, 'pass' if no bound is."""
        if self.low > self.limit:
            return "fail"
        return "pass" if self.high <= self.limit else "inconclusive"


class Concern(Struct, frozen=True, kw_only=True):
    """Why a model, or the figures about it, should not be trusted (`evaluation.concerns`).

    `kind` is a stable name for programs and `text` one sentence for people. `do_not_use`: the
    predictions are worth nothing; otherwise the evidence says little.
    """

    kind: str  # not a Literal: a newer edgelung may know more kinds
    text: str
    do_not_use: bool = False


class TilesNeeded(Struct, frozen=True, kw_only=True):
    """Gate tiles and groups of the same kind that would decide."""

    tiles: int
    groups: int


class OpenVinoCheck(Struct, frozen=True, kw_only=True):
    """The gate's verdict on what OpenVINO computes from the same file."""

    verdict: Verdict
    floating_point: str
    same_label_as_onnxruntime: float | None
    largest_probability_difference: float | None


class GateResult(Struct, frozen=True, kw_only=True):
    """What the gate decided about a variant, and from which figures.

    Full precision has the verdict 'reference'. Estimates are None where a variant gave
    probabilities that are not finite. `looks` counts how often these tiles judged a form of the
    variant. `unseen_sources`: a fault that strikes a smaller share of sources is missed by these
    groups in more than one case in ten.
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
