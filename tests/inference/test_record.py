"""A record: what is kept of one file, and the row that is written from it."""

import io

import numpy as np
import pytest

from edgelung.artifacts.predictions import FORMATS, Prediction
from edgelung.inference.pipeline import Row
from edgelung.inference.record import LabelRule, Record, record_of
from edgelung.tiles.find import FoundFile
from edgelung.tiles.sizes import TrainedSizes
from edgelung.tiles.status import Status

CLASSES = ["lung, aca", "lung_n"]
UNKNOWN = TrainedSizes({})


@pytest.mark.parametrize(
    ("least", "status"), [(None, "ok"), (0.9, "ok"), (0.900001, "review"), (1.0, "review")]
)
def test_review_goes_by_the_confidence_that_is_printed(least: float | None, status: str) -> None:
    # 0.9 as float32 lies a little under 0.9
    row = Row(FoundFile("x.jpg", "lung_n/x.jpg"), Status.OK, "", np.float32([0.1, 0.9]))
    record = record_of(row, LabelRule(least, UNKNOWN, strict_size=False))
    assert record.status == status
    assert (record.decided is None) == (status == "review")
    assert bool(record.error) == (status == "review")


@pytest.mark.parametrize(
    ("size", "strict", "status"),
    [
        ((224, 224), True, "ok"),
        ((768, 200), False, "ok"),
        ((768, 200), True, "other-size"),
    ],
)
def test_a_tile_of_another_size_is_counted_and_has_no_label_if_sizes_are_strict(
    size: tuple[int, int], strict: bool, status: str
) -> None:
    rule = LabelRule(0.95, TrainedSizes({"224x224": 10}), strict_size=strict)
    row = Row(
        FoundFile("x.jpg", "x.jpg"), Status.OK, probabilities=np.float32([0.01, 0.99]), size=size
    )
    record = record_of(row, rule)
    assert (record.status, record.other_size) == (status, size != (224, 224))
    assert record.prediction(CLASSES).label == ("lung_n" if status == "ok" else None)
    assert record.prediction(CLASSES).confidence == pytest.approx(0.99)
    assert record.error == ("768×200 px; trained on 224×224 px" if status != "ok" else "")


def test_a_row_has_a_label_only_if_it_is_decided() -> None:
    probabilities = [0.25, 0.75]
    decided = Record("a.jpg", "ok", "", probabilities, None, (1, 2))
    assert decided.prediction(CLASSES) == Prediction("a.jpg", "ok", "lung_n", 0.75, (0.25, 0.75))
    review = decided._replace(status="review", error="not sure")
    assert review.prediction(CLASSES) == Prediction(
        "a.jpg", "review", None, 0.75, (0.25, 0.75), "not sure"
    )
    failed = Record("a.jpg", "empty", "no bytes", None, None, None)
    assert failed.prediction(CLASSES) == Prediction("a.jpg", "empty", error="no bytes")


def test_errors_of_any_text_can_be_written() -> None:
    row = Row(FoundFile("x.jpg", "x.jpg"), Status.CORRUPT, "caf\udce9 \n")
    file = io.BytesIO()
    record = record_of(row, LabelRule(None, UNKNOWN, strict_size=False))
    FORMATS[".csv"].writer(file, CLASSES).write([record.prediction(CLASSES)])
    assert b"caf\\udce9" in file.getvalue()
