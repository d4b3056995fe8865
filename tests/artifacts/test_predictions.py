"""Predictions: three formats with the same rows; what is read is what was written."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from edgelung.artifacts import predictions
from edgelung.artifacts.predictions import (
    FORMATS,
    Prediction,
    columns,
    format_of,
    is_predictions,
    read_predictions,
)
from edgelung.core.errors import EdgelungError

CLASSES = ("lung, aca", "lung_n")
# These numbers are exact in float32 and in six decimals.
ROWS = (
    Prediction('a,"b"\n.jpg', "ok", "lung_n", 0.75, (0.25, 0.75)),
    Prediction("b.jpg", "truncated", error="cut, off"),
    Prediction("c.jpg", "review", None, 0.5, (0.5, 0.5), "confidence 0.500000 is under 0.6"),
    Prediction(
        "d.jpg", "unknown", None, 0.75, (0.25, 0.75), "far", 3.5, ("lung, aca", "lung_n"), 2
    ),
)
JSON_ROW = (
    b'{"path": "a", "status": "empty", "label": null, "confidence": null, "p_n": null, '
    b'"error": "no bytes"}\n'
)


@pytest.fixture(params=list(FORMATS))
def suffix(request: pytest.FixtureRequest) -> str:
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return str(request.param)


def written(suffix: str, folder: Path, rows: tuple[Prediction, ...] = ROWS) -> Path:
    path = folder / f"rows{suffix}"
    with path.open("wb") as file:
        writer = FORMATS[suffix].writer(file, CLASSES)
        for row in rows:
            writer.write([row])
        writer.close()
    return path


def test_what_is_read_is_what_was_written(suffix: str, tmp_path: Path) -> None:
    read = read_predictions(written(suffix, tmp_path))
    assert read.classes == CLASSES
    assert read.rows == ROWS


def test_written_again_the_bytes_are_the_same(suffix: str, tmp_path: Path) -> None:
    uneven = (Prediction("a.jpg", "ok", "lung_n", 2 / 3, (1 / 3, 2 / 3)),)
    path = written(suffix, tmp_path, uneven)
    before = path.read_bytes()
    assert written(suffix, tmp_path, read_predictions(path).rows).read_bytes() == before


def test_records_have_the_columns_of_the_file(suffix: str, tmp_path: Path) -> None:
    records = read_predictions(written(suffix, tmp_path)).to_records()
    assert [list(record) for record in records] == [columns(CLASSES)] * len(ROWS)
    assert records[0] == {
        "path": 'a,"b"\n.jpg',
        "status": "ok",
        "label": "lung_n",
        "confidence": 0.75,
        "p_lung, aca": 0.25,
        "p_lung_n": 0.75,
        "ood": None,
        "set": None,
        "stage": None,
        "error": None,
    }
    assert records[1]["p_lung_n"] is None


def test_a_file_without_rows_is_read(suffix: str, tmp_path: Path) -> None:
    assert read_predictions(written(suffix, tmp_path, ())).rows == ()


def test_csv_is_rfc_4180_with_six_decimals(tmp_path: Path) -> None:
    assert written(".csv", tmp_path).read_bytes() == (
        b'path,status,label,confidence,"p_lung, aca",p_lung_n,ood,set,stage,error\r\n'
        b'"a,""b""\n.jpg",ok,lung_n,0.750000,0.250000,0.750000,,,,\r\n'
        b'b.jpg,truncated,,,,,,,,"cut, off"\r\n'
        b"c.jpg,review,,0.500000,0.500000,0.500000,,,,confidence 0.500000 is under 0.6\r\n"
        b'd.jpg,unknown,,0.750000,0.250000,0.750000,3.500000,"lung, aca;lung_n",2,far\r\n'
    )


def test_json_lines_hold_null_where_csv_is_empty(tmp_path: Path) -> None:
    lines = written(".jsonl", tmp_path).read_text().splitlines()
    assert json.loads(lines[1]) == {
        "path": "b.jpg",
        "status": "truncated",
        "label": None,
        "confidence": None,
        "p_lung, aca": None,
        "p_lung_n": None,
        "ood": None,
        "set": None,
        "stage": None,
        "error": "cut, off",
    }


def test_parquet_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(predictions, "ROW_GROUP", 2)
    file = parquet.ParquetFile(written(".parquet", tmp_path))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2]


def test_parquet_holds_float32_and_says_who_made_it(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    schema = parquet.read_schema(written(".parquet", tmp_path))
    assert [str(schema.field(name).type) for name in ("confidence", "p_lung_n")] == ["float"] * 2
    assert schema.metadata[b"made by"] == b"edgelung infer"


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EdgelungError, match=r"edgelung\[parquet\]"):
        format_of(Path("rows.parquet"))


def test_our_files_are_told_from_others(suffix: str, tmp_path: Path) -> None:
    path = written(suffix, tmp_path)
    assert is_predictions(path)
    path.write_bytes(b"something else")
    assert not is_predictions(path)


def test_another_parquet_file_is_not_ours(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"path": ["a"]}), tmp_path / "rows.parquet")
    assert not is_predictions(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.csv", b"", "its columns are missing"),
        ("rows.csv", b"path,class\na,b\n", "its columns are path,class"),
        ("rows.csv", b"path,status,label,confidence,error\r\n", "its columns are"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\na,ok,n", "line 2 has 3 cells"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\na,ok,m,1,1,\r\n", "not a class"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\na,ok,n,1,x,\r\n", "float"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\na,ok,n,1,,\r\n", "in 0…1"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\na,ok,n,2,2,\r\n", "in 0…1"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\na,ok,n,nan,1,\r\n", "in 0…1"),
        ("rows.csv", b"path,status,label,confidence,p_n,error\r\n\xff,ok,n,1,1,\r\n", "decode"),
        ("rows.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("rows.jsonl", b'{"path": "a"}\n', "its columns are path"),
        ("rows.jsonl", JSON_ROW + b'{"path": "a"}\n', "line 2 has other columns than line 1"),
        ("rows.jsonl", b"[" * 100_000, "nested too deeply"),
        ("rows.parquet", b"PAR1 and no more", "holds no predictions"),
        ("rows.txt", b"", "no name for predictions"),
    ],
)
def test_what_holds_no_predictions_is_named_in_one_line(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EdgelungError, match=message):
        read_predictions(tmp_path / name)


def test_a_file_that_is_not_there_is_named(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="cannot read"):
        read_predictions(tmp_path / f"gone{suffix}")


def test_a_writer_adds_to_what_it_wrote() -> None:
    file = io.BytesIO()
    writer = FORMATS[".csv"].writer(file, CLASSES)
    for row in ROWS:
        writer.write([row])
    assert len(list(csv.reader(io.StringIO(file.getvalue().decode(), newline="")))) == 5


OLDER = b"path,status,label,confidence,p_a,p_b,error\r\na.jpg,ok,a,0.750000,0.750000,0.250000,\r\n"


def test_rows_without_score_and_set_are_read(tmp_path: Path) -> None:
    """Files of edgelung 0.1."""
    (tmp_path / "rows.csv").write_bytes(OLDER)
    (tmp_path / "rows.jsonl").write_bytes(JSON_ROW)
    assert read_predictions(tmp_path / "rows.csv").rows == (
        Prediction("a.jpg", "ok", "a", 0.75, (0.75, 0.25)),
    )
    assert read_predictions(tmp_path / "rows.jsonl").rows == (
        Prediction("a", "empty", error="no bytes"),
    )
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"path": ["a"], "status": ["ok"], "label": ["n"], "confidence": [1.0], "p_n": [1.0]}
    parquet.write_table(pyarrow.table(columns | {"error": [None]}), tmp_path / "rows.parquet")
    assert read_predictions(tmp_path / "rows.parquet").rows == (
        Prediction("a", "ok", "n", 1.0, (1.0,)),
    )


@pytest.mark.parametrize("names", ["c", "b;a", "a;", "a;a"])
def test_a_set_of_other_classes_is_refused(tmp_path: Path, names: str) -> None:
    text = f"path,status,label,confidence,p_a,p_b,ood,set,error\nx,ok,a,1,1,0,1.0,{names},\n"
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(EdgelungError, match="not made of the file's classes"):
        read_predictions(tmp_path / "rows.csv")


def test_names_with_the_separator_are_read_back(tmp_path: Path) -> None:
    classes = ("a;b", "a", "b")
    row = Prediction("x", "ok", "a", 0.5, (0.25, 0.5, 0.25), "", 1.0, ("a;b", "b"))
    with (tmp_path / "rows.csv").open("wb") as file:
        FORMATS[".csv"].writer(file, classes).write([row])
    assert read_predictions(tmp_path / "rows.csv").rows == (row,)
