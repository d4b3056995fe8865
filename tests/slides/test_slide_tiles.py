"""The tables of a slide's tiles: both formats keep everything, and no cell becomes a formula."""

import csv
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from edgelung.artifacts import slide_tiles
from edgelung.artifacts.slide_tiles import SlideTiles, read_tiles, write_tiles, write_wsinfer
from edgelung.core.errors import EdgelungError

NASTY = ("=1+1", "a;=1+1", 'a","b', "<b>&'", "lung_aca")


def tiles_of(
    classes: tuple[str, ...] = ("lung_aca", "lung_n"), count: int = 40, *, scored: bool = False
) -> SlideTiles:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(classes)), count).astype(np.float32)
    probabilities[3] = np.nan
    statuses = ["ok"] * count
    statuses[3], statuses[5] = "corrupt", "review"
    errors = [""] * count
    errors[3], errors[5] = "=cmd|' /C calc'!A0\nnext", "confidence 0.51"
    return SlideTiles(
        classes=classes,
        x=np.arange(count, dtype=np.int64) % 8 * 168,
        y=np.arange(count, dtype=np.int64) // 8 * 168,
        side=224,
        step=168.0,
        probabilities=probabilities,
        statuses=statuses,
        errors=errors,
        ood=np.where(np.arange(count) == 3, np.nan, 1.5).astype(np.float32) if scored else None,
        stage=np.where(np.arange(count) == 3, 0, 1 + np.arange(count) % 2).astype(np.uint8)
        if scored
        else None,
    )


def test_unknown_tiles_have_no_label_and_keep_what_is_most_probable() -> None:
    tiles = tiles_of()
    statuses = ["unknown" if i in (0, 1) else status for i, status in enumerate(tiles.statuses)]
    tiles = dataclasses.replace(tiles, statuses=statuses)
    most = tiles.probabilities[:2].argmax(axis=1).tolist()
    assert tiles.labels[:2].tolist() == [-1, -1]
    assert tiles.shown_labels[:6].tolist() == [*most, tiles.labels[2], -1, tiles.labels[4], -1]
    assert np.flatnonzero(tiles.unknown).tolist() == [0, 1]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("classes", [("lung_aca", "lung_n"), NASTY])
@pytest.mark.parametrize(("suffix", "tolerance"), [(".parquet", 0.0), (".csv", 5.1e-7)])
def test_tiles_come_back_as_they_were(
    tmp_path: Path, suffix: str, tolerance: float, classes: tuple[str, ...], scored: bool
) -> None:
    tiles, path = tiles_of(classes, scored=scored), tmp_path / f"tiles{suffix}"
    write_tiles(path, tiles)
    back = read_tiles(path)
    for field in dataclasses.fields(SlideTiles):
        ours, theirs = getattr(tiles, field.name), getattr(back, field.name)
        if field.name == "probabilities":
            np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance)
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(theirs, ours)
            assert theirs.dtype == ours.dtype
        else:
            assert list(np.atleast_1d(theirs)) == list(np.atleast_1d(ours)), field.name
    np.testing.assert_array_equal(back.labels, tiles.labels)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_slide_without_tissue_has_a_table_without_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tiles{suffix}"
    empty = tiles_of(count=40)
    kept = np.zeros(40, bool)
    empty = dataclasses.replace(
        empty,
        x=empty.x[kept],
        y=empty.y[kept],
        probabilities=empty.probabilities[kept],
        statuses=[],
        errors=[],
    )
    write_tiles(path, empty)
    back = read_tiles(path)
    assert len(back) == 0
    assert back.classes == empty.classes


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_same_tiles_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        write_tiles(tmp_path / f"{name}{suffix}", tiles_of())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_beyond_one_group_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(slide_tiles, "ROW_GROUP", 7)
    path = tmp_path / f"tiles{suffix}"
    write_tiles(path, tiles_of())
    np.testing.assert_array_equal(read_tiles(path).x, tiles_of().x)


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles.csv", tiles_of(NASTY))
    write_wsinfer(tmp_path / "wsinfer.csv", tiles_of(NASTY))
    for name in ("tiles.csv", "wsinfer.csv"):
        with (tmp_path / name).open(newline="") as file:
            # A spreadsheet that is set to semicolons begins a cell within ours.
            cells = [part for row in csv.reader(file) for cell in row for part in cell.split(";")]
        assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]


def test_only_a_decided_tile_has_a_label(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles.csv", tiles_of())
    with (tmp_path / "tiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        rows[3]["label"] == rows[5]["label"] == rows[3]["confidence"] == rows[3]["p_lung_n"] == ""
    )
    assert rows[5]["confidence"]
    assert {row["label"] for row in rows if row["status"] == "ok"} <= {"lung_aca", "lung_n"}


def test_a_missing_probability_is_null_in_parquet(tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles.parquet", tiles_of())
    table = pyarrow.parquet.read_table(tmp_path / "tiles.parquet")
    assert table["p_lung_aca"].null_count == table["confidence"].null_count == 1
    assert table["label"].null_count == 2


def test_the_wsinfer_table_has_its_columns_and_the_predicted_tiles(tmp_path: Path) -> None:
    tiles = tiles_of()
    write_wsinfer(tmp_path / "slide.csv", tiles)
    lines = (tmp_path / "slide.csv").read_bytes().decode().split("\n")
    assert lines[0] == "minx,miny,width,height,prob_lung_aca,prob_lung_n"
    rows = [line.split(",") for line in lines[1:-1]]
    assert len(rows) == 39  # all but the damaged one
    assert rows[3][:4] == ["672", "0", "224", "224"]
    assert float(rows[3][4]) == pytest.approx(float(tiles.probabilities[4, 0]), abs=1e-6)


def _other_columns(path: Path) -> None:
    path.write_text("path,status\na,ok\n")


def _short_line(path: Path) -> None:
    write_tiles(path, tiles_of())
    path.write_text(path.read_text() + "1,2,3\n")


def _no_table(path: Path) -> None:
    path.write_bytes(b"\x00\xff not a table")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("spoil", [_other_columns, _no_table])
def test_a_file_that_holds_no_tiles_is_refused_in_one_line(
    tmp_path: Path, suffix: str, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / f"tiles{suffix}"
    spoil(path)
    with pytest.raises(EdgelungError, match="holds no tiles"):
        read_tiles(path)


def test_a_line_of_another_length_is_refused(tmp_path: Path) -> None:
    _short_line(tmp_path / "tiles.csv")
    with pytest.raises(EdgelungError, match="line 43 has 3 cells, expected 12"):
        read_tiles(tmp_path / "tiles.csv")


def test_a_newer_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_tiles, "SCHEMA_VERSION", 2)
    write_tiles(tmp_path / "tiles.parquet", tiles_of())
    monkeypatch.undo()
    with pytest.raises(EdgelungError, match="update edgelung"):
        read_tiles(tmp_path / "tiles.parquet")


def test_a_missing_library_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EdgelungError, match=r"needs pyarrow .*pip install 'edgelung\[slides\]'"):
        write_tiles(tmp_path / "tiles.parquet", tiles_of())
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match=r"\.parquet or \.csv"):
        write_tiles(tmp_path / "tiles.json", tiles_of())
