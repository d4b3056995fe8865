"""A record: what is kept of one file, and the row that is written from it."""

import io

import numpy as np
import pytest

from edgelung.artifacts.predictions import FORMATS, Prediction
from edgelung.inference.pipeline import Row
from edgelung.inference.record import LabelRule, Record, fault_of, record_of
from edgelung.tiles.find import FoundFile
from edgelung.tiles.sizes import TrainedSizes
from edgelung.tiles.status import Status

CLASSES = ["lung, aca", "lung_n"]
FAR = TrainedSizes({"32x32": 1})


def predicted(**more: object) -> Row[FoundFile]:
    """A row that the model is sure of."""
    return Row(FoundFile("x.jpg", "x.jpg"), Status.OK, probabilities=np.float32([0.1, 0.9]), **more)


@pytest.mark.parametrize(
    ("least", "status"), [(None, "ok"), (0.9, "ok"), (0.900001, "review"), (1.0, "review")]
)
def test_review_goes_by_the_confidence_that_is_printed(least: float | None, status: str) -> None:
    # 0.9 as float32 lies a little under 0.9
    row = Row(FoundFile("x.jpg", "lung_n/x.jpg"), Status.OK, "", np.float32([0.1, 0.9]))
    record = record_of(row, LabelRule(least))
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
    record = record_of(row, LabelRule())
    FORMATS[".csv"].writer(file, CLASSES).write([record.prediction(CLASSES)])
    assert b"caf\\udce9" in file.getvalue()


@pytest.mark.parametrize(
    ("row", "rule", "status", "reason"),
    [
        (predicted(ood=1.5), LabelRule(known_up_to=1.5), "ok", ""),
        (predicted(ood=1.6), LabelRule(known_up_to=1.5), "unknown", "score 1.60, known up to 1.50"),
        (predicted(ood=9.0), LabelRule(), "ok", ""),  # a bundle that cannot tell
        (predicted(), LabelRule(known_up_to=1.5), "ok", ""),
        (predicted(ood=9.0), LabelRule(known_up_to=1.5, marks_unknown=False), "ok", ""),
        (predicted(blank="glass: white"), LabelRule(), "blank", "glass: white"),
        (predicted(blank="glass: white"), LabelRule(marks_unknown=False), "ok", ""),
        # The first that applies: blank, unknown, size, confidence.
        (predicted(ood=9.0, blank="pen"), LabelRule(known_up_to=1.5), "blank", "pen"),
        (
            predicted(ood=9.0, size=(900, 90)),
            LabelRule(0.95, FAR, strict_size=True, known_up_to=1.5),
            "unknown",
            "unlike the training tiles",
        ),
        (
            predicted(ood=1.0, size=(900, 90)),
            LabelRule(0.95, FAR, strict_size=True, known_up_to=1.5),
            "other-size",
            "900×90 px",
        ),
    ],
)
def test_what_the_model_was_not_made_for_has_no_label(
    row: Row[FoundFile], rule: LabelRule, status: str, reason: str
) -> None:
    record = record_of(row, rule)
    assert (record.status, record.ood) == (status, row.ood)
    assert reason in record.error
    assert (record.prediction(CLASSES).label is None) == (status != "ok")
    assert record.prediction(CLASSES).confidence == pytest.approx(0.9)
    assert fault_of(record, 2) == ""


@pytest.mark.parametrize(
    ("level", "expected"),
    [(None, None), (0.05, [0, 1]), (0.1, [0, 1]), (0.5, [1]), (0.95, [1]), (0.0, [0, 1])],
)
def test_a_set_holds_what_cannot_be_excluded_and_is_never_empty(
    level: float | None, expected: list[int] | None
) -> None:
    row = Row(FoundFile("x", "x"), Status.OK, probabilities=np.array([0.1, 0.9]))
    record = record_of(row, LabelRule(set_level=level))
    assert record.prediction_set == expected
    names = record.prediction(CLASSES).prediction_set
    assert names == (None if expected is None else tuple(CLASSES[i] for i in expected))


@pytest.mark.parametrize("wrong", [[], [2], [-1], [1, 0], [0, 0]])
def test_a_record_with_an_impossible_set_is_damaged(wrong: list[int]) -> None:
    record = record_of(predicted(), LabelRule(set_level=0.5))
    assert fault_of(record._replace(prediction_set=wrong), 2)
    assert fault_of(record._replace(ood=-1.0), 2)
