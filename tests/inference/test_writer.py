"""The same rows in every form, `review`, and names that are taken."""

import csv
import io
import json
from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.inference import writer as writer_module
from edgelung.inference.pipeline import Row
from edgelung.inference.record import Record, record_of
from edgelung.inference.summary import Percentiles, Tally, summary_path
from edgelung.inference.writer import FORMATS, columns, format_of
from edgelung.tiles.find import FoundFile

CLASSES = ["lung, aca", "lung_n"]
RECORDS = [
    Record('a,"b"\n.jpg', "ok", "", [0.25, 0.75], None, 1, (1, 2)),
    Record("b.jpg", "truncated", "cut, off", None, None, 0, None),
    Record("c.jpg", "review", "confidence 0.500000 is under 0.6", [0.5, 0.5], None, 0, (1, 2)),
]


def written(suffix: str, path: Path) -> Path:
    out = path / f"rows{suffix}"
    with out.open("wb") as file:
        rows = FORMATS[suffix](file, CLASSES)
        for record in RECORDS:
            rows.write([record])
        rows.close()
    return out


def test_the_forms_say_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with written(".csv", tmp_path).open(newline="") as file:
        from_csv = list(csv.DictReader(file))
    lines = written(".jsonl", tmp_path).read_text().splitlines()
    from_json = [json.loads(line) for line in lines]
    table = parquet.read_table(written(".parquet", tmp_path))
    assert list(from_csv[0]) == list(from_json[0]) == table.column_names == columns(CLASSES)
    for one, two, three in zip(from_csv, from_json, table.to_pylist(), strict=True):
        assert two == three  # the numbers here are exact in float32
        assert {k: str(v or "") for k, v in two.items() if k in ("path", "status", "label")} == {
            k: v for k, v in one.items() if k in ("path", "status", "label")
        }
        for name in ("confidence", "p_lung, aca", "p_lung_n"):
            assert one[name] == ("" if two[name] is None else f"{two[name]:.6f}")
    assert [row["label"] for row in from_json] == ["lung_n", None, None]
    assert [row["confidence"] for row in from_json] == [0.75, None, 0.5]


def test_parquet_is_written_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(writer_module.ParquetRows, "GROUP", 2)
    file = parquet.ParquetFile(written(".parquet", tmp_path))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EdgelungError, match=r"edgelung\[parquet\]"):
        format_of(tmp_path / "rows.parquet")


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_only_predictions_are_written_over(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = written(suffix, tmp_path)
    format_of(out)
    out.write_bytes(b"something else")
    with pytest.raises(EdgelungError, match="no list of predictions"):
        format_of(out)


def test_a_parquet_file_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"path": ["a"]}), out)
    with pytest.raises(EdgelungError, match="no list of predictions"):
        format_of(out)


def test_only_a_summary_is_written_over(tmp_path: Path) -> None:
    assert summary_path(tmp_path / "rows.csv", None) == tmp_path / "rows.summary.json"
    (tmp_path / "rows.summary.json").write_text('{"mine": 1}')
    with pytest.raises(EdgelungError, match="no summary of a run"):
        summary_path(tmp_path / "rows.csv", None)
    assert summary_path(Path("-"), None) is None


@pytest.mark.parametrize(
    ("least", "status"), [(None, "ok"), (0.9, "ok"), (0.900001, "review"), (1.0, "review")]
)
def test_review_goes_by_the_confidence_that_is_printed(least: float | None, status: str) -> None:
    import numpy as np

    # 0.9 as float32 lies a little under 0.9
    row = Row(FoundFile("x.jpg", "lung_n/x.jpg"), "ok", "", np.float32([0.1, 0.9]))
    record = record_of(row, CLASSES, least)
    assert record.status == status
    assert (record.decided is None) == (status == "review")
    assert record.truth == 1
    assert bool(record.error) == (status == "review")


def test_the_tally_counts_what_was_decided() -> None:
    tally = Tally(CLASSES)
    for record in RECORDS:
        tally.add(record)
    assert tally.statuses == {"ok": 1, "truncated": 1, "review": 1}
    assert tally.labels == {"lung_n": 1}
    assert tally.confusion.tolist() == [[0, 0], [0, 1]]


def test_errors_of_any_text_can_be_written() -> None:
    row = Row(FoundFile("x.jpg", "x.jpg"), "corrupt", "caf\udce9 \n")
    file = io.BytesIO()
    FORMATS[".csv"](file, CLASSES).write([record_of(row, CLASSES, None)])
    assert b"caf\\udce9" in file.getvalue()


def test_percentiles_to_within_a_hundredth() -> None:
    found = Percentiles()
    assert found.milliseconds() is None
    for i in range(1, 1001):
        found.add(i / 1000)
    assert found.milliseconds() == pytest.approx({"p50": 500, "p90": 900, "p99": 990}, rel=0.012)
