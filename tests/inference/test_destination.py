"""A destination is checked once, before hours of work; nothing of the user's is overwritten."""

from pathlib import Path

import pytest

from edgelung.artifacts.predictions import CSV, FORMATS, JSON_LINES
from edgelung.core.errors import EdgelungError
from edgelung.inference.destination import STANDARD_OUTPUT, Destination


def test_summary_and_journal_lie_beside_the_rows(tmp_path: Path) -> None:
    destination = Destination.parse(tmp_path / "rows.jsonl")
    assert destination.format is JSON_LINES
    assert destination.summary == tmp_path / "rows.summary.json"
    assert destination.journal == tmp_path / "rows.jsonl.edgelung-journal"
    assert destination.files == (tmp_path / "rows.jsonl", tmp_path / "rows.summary.json")
    assert list(tmp_path.iterdir()) == []


def test_standard_output_is_csv_without_a_summary_or_a_journal(tmp_path: Path) -> None:
    destination = Destination.parse(STANDARD_OUTPUT)
    assert destination == Destination(None, CSV, None)
    assert destination.journal is None
    assert destination.files == ()
    assert destination.name == "-"
    named = Destination.parse(STANDARD_OUTPUT, tmp_path / "s.json")
    assert named.summary == tmp_path / "s.json"


def test_a_link_stands_for_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "rows.csv").touch()
    (tmp_path / "latest.csv").symlink_to(tmp_path / "kept" / "rows.csv")
    destination = Destination.parse(tmp_path / "latest.csv")
    assert destination.rows == tmp_path / "kept" / "rows.csv"
    assert destination.summary == tmp_path / "kept" / "rows.summary.json"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.txt", r"ends in \.csv, \.jsonl or \.parquet, or -"),
        ("rows", "ends in"),
        ("gone/rows.csv", r"--out .*gone/rows\.csv: the folder .*gone does not exist"),
        ("folder.csv", r"--out .*folder\.csv is a folder"),
        ("file.csv/rows.csv", r"--out .*file\.csv is not a folder"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.csv").touch()
    with pytest.raises(EdgelungError, match=message):
        Destination.parse(tmp_path / name)


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert Destination.parse(tmp_path / "ROWS.CSV").format is CSV


@pytest.mark.parametrize("suffix", list(FORMATS))
def test_only_predictions_are_overwritten(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rows = tmp_path / f"rows{suffix}"
    with rows.open("wb") as file:
        FORMATS[suffix].writer(file, ["a", "b"]).close()
    Destination.parse(rows)
    rows.write_bytes(b"something else")
    with pytest.raises(EdgelungError, match="no list of predictions"):
        Destination.parse(rows)
    assert rows.read_bytes() == b"something else"


def test_only_a_summary_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "rows.summary.json").write_text('{"mine": 1}')
    with pytest.raises(EdgelungError, match="no summary of a run"):
        Destination.parse(tmp_path / "rows.csv")
    (tmp_path / "mine.json").write_text('{"kind": "mine"}')
    with pytest.raises(EdgelungError, match="no summary of a run"):
        Destination.parse(STANDARD_OUTPUT, tmp_path / "mine.json")


def test_rows_of_two_formats_have_a_summary_each(tmp_path: Path) -> None:
    summary = tmp_path / "rows.summary.json"
    summary.write_text('{"kind": "edgelung infer", "out": "rows.jsonl"}')
    beside = Destination.parse(tmp_path / "rows.csv").summary
    assert beside == tmp_path / "rows.csv.summary.json"
    assert Destination.parse(tmp_path / "rows.jsonl").summary == summary
    assert Destination.parse(tmp_path / "rows.csv", summary).summary == summary


def test_rows_and_summary_are_two_files(tmp_path: Path) -> None:
    for made in (False, True):
        if made:
            (tmp_path / "rows.csv").write_text("path,status,label,confidence,p_a,error\r\n")
        with pytest.raises(EdgelungError, match="cannot both be"):
            Destination.parse(tmp_path / "rows.csv", tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["gone/s.json", "folder"])
def test_a_summary_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        EdgelungError, match=r"--summary .*(gone does not exist|folder is a folder)"
    ):
        Destination.parse(tmp_path / "rows.csv", tmp_path / name)


def test_a_name_that_is_not_utf_8_can_be_shown() -> None:
    name = b"r\xe9s.csv".decode(errors="surrogateescape")
    assert Destination(Path(name), CSV, None).name == "r\\xe9s.csv"
