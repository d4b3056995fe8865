"""Figures of a run and pictures as data URIs, to embed in an HTML page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import simplejpeg

from edgelung.artifacts.run import EpochRecord
from edgelung.evaluation.metrics import BINS, Floats, Labels
from edgelung.report.chart import Axis, Points, Series, chart, padded

CURVE_POINTS = 150  # most points of a ROC curve; more would not be visible


@dataclass(frozen=True)
class TilePicture:
    """A tile on the page of a run, with the prediction if one is shown. `picture` is a data URI."""

    picture: str
    truth: str
    path: str = ""
    label: str | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class RunPictures:
    """The tiles on the page of a run, by the section that shows them.

    `by_group`: group → some of the student's wrong test tiles in it.
    """

    augmented: list[TilePicture]
    sample: list[TilePicture]
    mistakes: list[TilePicture]
    by_group: dict[str, list[TilePicture]] = field(default_factory=dict)


def picture(pixels: npt.NDArray[np.uint8]) -> str:
    """Encode RGB pixels, uint8 (H, W, 3), as a JPEG data URI."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def curves(history: Sequence[EpochRecord], title: str) -> list[str]:
    """Charts of loss and validation accuracy over the epochs of a stage (the paper's Figs. 11–13).

    Empty for fewer than two epochs, which make no curve. The losses are not comparable: training is
    Eq. 8 on augmented tiles, validation is the negative log likelihood on plain tiles.
    """
    if len(history) < 2:
        return []

    def points(key: str, scale: float = 1) -> Points:
        values = [(record.epoch, getattr(record, key)) for record in history]
        return [(epoch, scale * value) for epoch, value in values if value is not None]

    losses = [
        Series("training", points("loss")),
        Series("validation, −log p", points("val_loss")),
    ]
    shares = [
        Series("accuracy", points("val_accuracy", 100)),
        Series("balanced accuracy", points("val_balanced_accuracy", 100)),
    ]
    epochs = Axis("epoch", history[0].epoch - 0.2, history[-1].epoch + 0.2, whole=True)
    begin = next((record.epoch for record in history if record.val_loss is not None), 1)
    later = f"; labels from epoch {begin}" if begin > 1 else ""
    charts = [
        chart(f"{title}: loss{later}", epochs, Axis("loss", *_range(losses, 0.1, 0, 1e9)), losses)
    ]
    if shares[0].points:
        percent = Axis("%", *_range(shares, 2, 0, 100))
        charts.append(chart(f"{title}: validation", epochs, percent, shares))
    return charts


def roc_chart(probabilities: Floats, truth: Labels, classes: Sequence[str]) -> str:
    """ROC curves, each class against the rest. Classes without or with all tiles have no curve."""
    series = [
        Series(name, _roc_points(probabilities[:, label], truth == label), dots=False)
        for label, name in enumerate(classes)
    ]
    x, y = Axis("false positive rate"), Axis("true positive rate")
    return chart("ROC, each class against the rest", x, y, series, diagonal=True)


def _roc_points(scores: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> Points:
    """(false positive rate, true positive rate) at falling thresholds; ties are one step."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return []
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # last tile of each threshold
    hits = np.cumsum(positive[order])[ends]
    x, y = (ends + 1 - hits) / negatives, hits / positives
    shown = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), CURVE_POINTS)).astype(int))
    return [(0.0, 0.0), *zip(x[shown].tolist(), y[shown].tolist(), strict=True)]


def reliability_chart(models: dict[str, Floats], truth: Labels) -> str:
    """Accuracy against mean confidence, per confidence bin. `models`: name → (N, classes)."""
    series = [Series(name, _reliability_points(values, truth)) for name, values in models.items()]
    x, y = Axis("mean confidence"), Axis("accuracy")
    return chart("Reliability: on the diagonal, confidence is right", x, y, series, diagonal=True)


def _reliability_points(probabilities: Floats, truth: Labels) -> Points:
    """(mean confidence, accuracy) of each bin that holds tiles."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == truth
    bins = np.minimum((np.nan_to_num(confidence) * BINS).astype(int), BINS - 1)
    return [
        (float(confidence[bins == index].mean()), float(correct[bins == index].mean()))
        for index in np.unique(bins)
    ]


def _range(series: Sequence[Series], least: float, low: float, high: float) -> tuple[float, float]:
    return padded((y for one in series for _, y in one.points), least, low, high)
