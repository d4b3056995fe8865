"""Runs with an early exit: rows and summary say which stage answered, whatever the batch size."""

from pathlib import Path

import pytest

from edgelung.artifacts.bundle import open_bundle
from edgelung.artifacts.predictions import Prediction, read_predictions
from edgelung.classifier import Classifier
from edgelung.core.precision import Precision
from edgelung.engines.choose import open_engine
from edgelung.inference.destination import Destination
from edgelung.inference.record import LabelRule, Record, fault_of
from edgelung.inference.session import Options, infer_folder
from edgelung.inference.source import Source

EARLY = Precision.INT8_EARLY_EXIT


def test_rows_are_the_same_at_every_batch_size_and_say_their_stage(
    early_exit_bundle: Path, tiles: Path, tmp_path: Path
) -> None:
    """One row is of a broken file, which shortens its batch."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for number, path in enumerate(sorted(tiles.glob("*/*.jpeg"))[:70]):
        data = path.read_bytes()
        (folder / f"{number:02d}.jpeg").write_bytes(data[:700] if number == 33 else data)
    bundle = open_bundle(early_exit_bundle)
    first: tuple[Prediction, ...] = ()
    for size in (1, 7, 16, 64):
        out = tmp_path / f"rows{size}.csv"
        options = Options(precision=EARLY, batch_size=size, threads=1, verify=True)
        summary = infer_folder(Source((folder,)), bundle, Destination.parse(out), options)
        rows = read_predictions(out).rows
        first = first or rows
        for row, one in zip(rows, first, strict=True):
            assert (row.path, row.status, row.label) == (one.path, one.status, one.label)
            assert row.stage == one.stage
            assert row.probabilities == pytest.approx(one.probabilities, abs=2e-6)
            assert row.ood == pytest.approx(one.ood, abs=1e-5)
        stages = [row.stage for row in rows]
        assert stages[33] is None
        assert summary.stages == {"1": stages.count(1), "2": stages.count(2)}
        assert summary.precision == EARLY
    assert min(summary.stages.values()) > 5


def test_the_python_api_says_the_stage(early_exit_bundle: Path, tiles: Path) -> None:
    bundle = open_bundle(early_exit_bundle)
    chosen = open_engine(bundle, precision=EARLY, threads=1)
    with Classifier(bundle, chosen, LabelRule()) as classifier:
        found = classifier.classify_all(sorted(tiles.glob("*/*.jpeg"))[:40])
    assert {row.stage for row in found.rows} == {1, 2}
    assert {record["stage"] for record in found.to_records()} == {1, 2}


@pytest.mark.parametrize("stage", [0, 3, -1])
def test_a_record_of_an_impossible_stage_is_damaged(stage: int) -> None:
    right = Record("a", "ok", "", [1.0, 0.0], None, (1, 1), stage=2)
    assert fault_of(right) == ""
    assert "stage" in fault_of(right._replace(stage=stage))
    assert "stage" in fault_of(Record("a", "empty", "", None, None, (1, 1), stage=1))
