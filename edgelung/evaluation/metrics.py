"""Classification metrics in plain numpy: the paper's Eqs. 9–13, calibration error, ROC AUC."""

import numpy as np
import numpy.typing as npt
from msgspec import structs

from edgelung.artifacts.results import Agreement, ClassMetrics, Metrics

Labels = npt.NDArray[np.int64]  # (N,)
TEMPERATURES = (0.5, 10.0)  # lowest and highest that a fit may return
BINS = 15  # confidence bins of the calibration error

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


def confusion_matrix(truth: Labels, predicted: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Counts int64 (classes, classes): rows are the truth, columns the prediction."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def classification_metrics(confusion: npt.NDArray[np.int64]) -> ClassMetrics:
    """Accuracy (Eq. 9), precision, recall, F1 per class (Eqs. 10–12) and macro averages (Eq. 13).

    A class that was never predicted has precision 0. A class without tiles is left out of the
    averages, and its own figures are None.
    """
    hits = np.diag(confusion).astype(float)
    actual, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    present = actual > 0
    recall = np.divide(hits, actual, out=np.zeros_like(hits), where=present)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(hits), where=both > 0)
    total = int(confusion.sum())

    def macro(values: Floats) -> float | None:
        return float(values[present].mean()) if present.any() else None

    def per_class(values: Floats) -> list[float | None]:
        return [float(v) if p else None for v, p in zip(values, present, strict=True)]

    return ClassMetrics(
        tiles=total,
        accuracy=float(hits.sum() / total) if total else None,
        balanced_accuracy=macro(recall),
        macro_precision=macro(precision),
        macro_recall=macro(recall),
        macro_f1=macro(f1),
        precision=per_class(precision),
        recall=per_class(recall),
        f1=per_class(f1),
        support=actual.tolist(),
        confusion=confusion.tolist(),
    )


def evaluate(probabilities: Floats, truth: Labels) -> Metrics:
    """All metrics of probabilities (N, classes) and true labels (N,), including calibration."""
    classes = probabilities.shape[1]
    confusion = confusion_matrix(truth, probabilities.argmax(axis=1), classes)
    return Metrics(
        **structs.asdict(classification_metrics(confusion)),
        expected_calibration_error=expected_calibration_error(probabilities, truth),
        negative_log_likelihood=negative_log_likelihood(probabilities, truth),
        roc_auc=roc_auc(probabilities, truth),
    )


def roc_auc(probabilities: Floats, truth: Labels) -> float | None:
    """Area under the one-against-the-rest ROC curve, averaged over the classes present.

    The area is the probability that a tile of the class scores above a tile of another class, with
    ties counted as half: the Mann-Whitney U divided by the number of pairs (Hanley and McNeil
    1982). None if there are fewer than two classes.
    """
    areas = []
    for label, scores in enumerate(probabilities.T):
        positive = truth == label
        pairs = int(positive.sum()) * int((~positive).sum())
        if pairs:
            _, index, tied = np.unique(scores, return_inverse=True, return_counts=True)
            rank = np.cumsum(tied) - (tied - 1) / 2  # per distinct score, from 1; ties averaged
            min_rank_sum = positive.sum() * (positive.sum() + 1) / 2
            areas.append((rank[index][positive].sum() - min_rank_sum) / pairs)
    return float(np.mean(areas)) if areas else None


def expected_calibration_error(probabilities: Floats, truth: Labels) -> float:
    """Mean |accuracy − confidence| over equal-width confidence bins, weighted by tiles.

    Guo et al. 2017, Eq. 3.
    """
    if len(truth) == 0:
        return 0.0
    gaps = confidence_gaps(probabilities, truth).sum(axis=0)
    return float(np.abs(gaps).sum() / len(truth))


def confidence_gaps(probabilities: Floats, truth: Labels) -> npt.NDArray[np.float64]:
    """Correctness − confidence of each tile, in the column of its confidence bin: (N, BINS)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == truth
    # A confidence that is not a number has no bin of its own; its gap makes the sum NaN.
    bins = np.minimum((np.nan_to_num(confidence) * BINS).astype(int), BINS - 1)
    gaps = np.zeros((len(truth), BINS))
    gaps[np.arange(len(truth)), bins] = correct - confidence
    return gaps


def negative_log_likelihood(probabilities: Floats, truth: Labels) -> float:
    """Mean −log p(truth), in nats."""
    if len(truth) == 0:
        return 0.0
    of_truth = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.maximum(of_truth, 1e-12)).mean())


def fit_temperature(logits: Floats, truth: Labels) -> float:
    """The T > 0 that minimises the negative log likelihood of softmax(logits / T).

    The loss is convex in 1/T, so a golden-section search over TEMPERATURES finds it. The bounds
    matter if every tile is right: the likelihood alone would drive T to 0.

    Args:
        logits: float (N, classes).
        truth: int64 (N,), class indices.

    Reference: Guo et al. (2017), temperature scaling.
    """
    logits = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scaled).sum(axis=1))
        return float((log_sum - scaled[np.arange(len(truth)), truth]).mean())

    low, high = np.log(TEMPERATURES)
    ratio = (np.sqrt(5.0) - 1) / 2
    while high - low > 1e-5:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def at_temperature(probabilities: Floats, temperature: float | Floats) -> Floats:
    """softmax(logits / T), float64 (N, classes), from the probabilities at T = 1.

    `temperature` is one number, or (N, 1) for one per row.
    """
    scaled = np.maximum(probabilities.astype(np.float64), 1e-12) ** (1 / temperature)
    normalised: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return normalised


def agreement(first: Floats, second: Floats) -> Agreement:
    """Agreement of two models: their probabilities, (N, classes) each, on the same tiles."""
    same = first.argmax(axis=1) == second.argmax(axis=1)
    return Agreement(
        tiles=len(same),
        agreement=float(same.mean()) if len(same) else None,
        differing_labels=int((~same).sum()),
        max_probability_difference=float(np.abs(first - second).max()) if len(same) else None,
    )
