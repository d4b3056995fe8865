"""Counts and percentiles over the rows of a run."""

import pytest

from edgelung.inference.percentiles import DurationHistogram
from edgelung.inference.record import Record
from edgelung.inference.tally import NoTilesError, Tally

CLASSES = ["lung_aca", "lung_n"]


def record(status: str, probabilities: list[float] | None = None) -> Record:
    return Record("x.jpg", status, "", probabilities, None, None)


def tallied(*records: Record) -> Tally:
    tally = Tally(CLASSES)
    for one in records:
        tally.add(one)
    return tally


def test_labels_count_what_was_decided() -> None:
    tally = tallied(record("ok", [0.25, 0.75]), record("truncated"), record("review", [0.5, 0.5]))
    assert tally.statuses == {"ok": 1, "truncated": 1, "review": 1}
    assert tally.labels == {"lung_n": 1}
    assert (tally.files, tally.failed) == (3, 1)


def test_a_file_that_is_no_image_has_not_failed() -> None:
    assert tallied(record("ok", [1.0, 0.0]), record("skipped")).failed == 0


def test_verification_compares_what_both_predicted_decided_or_not() -> None:
    same = record("review", [0.75, 0.25])._replace(reference=[0.5, 0.25])
    other = record("ok", [0.25, 0.75])._replace(reference=[0.75, 0.25])
    verification = tallied(same, other, record("ok", [1.0, 0.0])).verification()
    assert verification is not None
    assert (verification.tiles, verification.differing_labels) == (2, 1)
    assert verification.agreement == 0.5
    assert verification.max_probability_difference == 0.5
    assert not verification.passed
    assert tallied(record("ok", [1.0, 0.0])).verification() is None


def test_a_folder_without_a_tile_is_a_mistake() -> None:
    with pytest.raises(NoTilesError, match="no file at all"):
        tallied().check_tiles()
    with pytest.raises(NoTilesError, match="2 files and no image"):
        tallied(record("skipped"), record("skipped")).check_tiles()
    tallied(record("skipped"), record("corrupt")).check_tiles()


def test_percentiles_are_within_a_hundredth() -> None:
    durations = DurationHistogram()
    assert durations.latency() is None
    for i in range(1, 1001):
        durations.add(i / 1000)
    latency = durations.latency()
    assert latency is not None
    assert (latency.p50, latency.p90, latency.p99) == pytest.approx((500, 900, 990), rel=0.012)


def test_a_duration_of_zero_is_counted() -> None:
    durations = DurationHistogram()
    durations.add(0.0)
    assert durations.latency() is not None
