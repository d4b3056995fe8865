"""The page of predictions: what it shows first, what it refuses, and that it trusts no name."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgelung.artifacts.predictions import Prediction
from edgelung.artifacts.results import Concern
from edgelung.core.errors import EdgelungError
from edgelung.report import gallery
from edgelung.report.finished_run import open_finished_run
from edgelung.report.gallery import predictions_page, script_hash, script_json
from edgelung.tiles.names import from_printable, printable

WriteRun = Callable[..., Path]


def page_of(rows: Path, root: Path | None = None) -> str:
    return predictions_page(open_finished_run(rows, root=root), rows.with_suffix(".html"))


def data_of(html: str) -> dict:
    match = re.search(r'<script type="application/json" id="rows">(.*?)</script>', html, re.S)
    assert match
    return json.loads(match[1])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_what_needs_a_look_comes_first(write_run: WriteRun, suffix: str) -> None:
    data = data_of(page_of(write_run(suffix=suffix)))
    assert data["rows"]["name"] == [
        *("broken.png", "review.png", "surely_wrong.png", "wrong.png", "unsure.png", "sure.png"),
        "notes.txt",
    ]
    assert data["rows"]["truth"] == [1, 1, 1, 0, 1, 0, -1]
    assert data["rows"]["label"] == [-1, 1, 0, 1, 1, 0, -1]


def test_the_page_says_what_became_of_the_files(write_run: WriteRun) -> None:
    html = page_of(write_run())
    assert "4 of 7 files have a label; 1 could" in html
    assert "2026-01-02 03:04 UTC" in html
    assert "<code>--engine openvino</code>" in html


def test_a_confidence_below_1_is_not_shown_as_1(write_run: WriteRun) -> None:
    assert max(data_of(page_of(write_run()))["rows"]["confidence"]) == 9999


def test_predicted_tiles_have_thumbnails_and_the_others_a_link(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MAX_THUMBNAILS", 2)
    data = data_of(page_of(write_run()))
    assert list(data["thumbnails"]) == ["1", "2"]
    assert data["base"] == "./tiles/"


def test_a_page_has_room_for_rows_before_thumbnails(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "PAGE_BYTES", 500)
    data = data_of(page_of(write_run()))
    assert data["thumbnails"] == {}
    assert len(data["rows"]["name"]) == 7


def test_rows_that_are_left_out_are_counted(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "ROWS_BYTES", 150)
    html = page_of(write_run())
    shown = len(data_of(html)["rows"]["name"])
    assert 0 < shown < 7
    assert f"The page shows the {shown} most urgent rows of 7." in html


def test_no_name_ends_the_script_or_is_markup(write_run: WriteRun) -> None:
    hostile = "</script><script>alert(1)</script><!--"
    rows = (
        Prediction("x.png", "ok", hostile, 0.9, (0.9, 0.1)),
        Prediction(f"{hostile}.png", "truncated", error=hostile),
    )
    html = page_of(write_run(rows, classes=(hostile, "lung_n")))
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert "<!--" not in html
    assert data_of(html)["errors"] == {"0": hostile}


def test_json_in_a_script_keeps_its_value() -> None:
    value = ["</script>", "<!--", "腺癌", "\u2028", '"\\']
    assert json.loads(script_json(value)) == value
    assert "<" not in script_json(value)


def test_the_policy_allows_exactly_the_script_of_the_page(write_run: WriteRun) -> None:
    html = page_of(write_run())
    script = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(script) == 1
    assert f"script-src '{script_hash(script[0])}'" in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_a_row_never_leads_out_of_its_folder(
    write_run: WriteRun, tmp_path: Path, path: str
) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    rows = write_run((Prediction("x.png", "ok", "lung_n", 0.9, (0.1, 0.9)),))
    rows.write_text(rows.read_text().replace("x.png", path))
    data = data_of(page_of(rows))
    assert data["rows"]["outside"] == {"0": 1}
    assert data["thumbnails"] == {}


def test_changed_rows_and_missing_tiles_are_said(write_run: WriteRun, tmp_path: Path) -> None:
    rows = write_run()
    assert "have changed" not in page_of(rows)
    rows.write_text(rows.read_text().replace("it ends early", "it ends"))
    (tmp_path / "tiles" / "lung_n" / "unsure.png").unlink()
    html = page_of(rows)
    assert "The rows have changed since the run ended" in html
    assert "1 tile cannot be read where it was; name its folder with --root." in html


def test_tiles_that_moved_are_found_by_root(write_run: WriteRun, tmp_path: Path) -> None:
    rows = write_run()
    (tmp_path / "tiles").rename(tmp_path / "moved here")
    data = data_of(page_of(rows, tmp_path / "moved here"))
    assert len(data["thumbnails"]) == 5
    assert data["base"] == "./moved%20here/"


def test_a_model_that_is_not_to_be_used_heads_the_page(write_run: WriteRun) -> None:
    bad = Concern(kind="one-class", do_not_use=True, text="Do not use the model: it predicts x.")
    html = page_of(write_run(concerns=(bad,)))
    assert '<h1 class="bad">Do not use the model: it predicts x</h1>' in html


@pytest.mark.parametrize(
    "name", ["plain.png", "back\\slash\\x41.png", "\udcff\udc80.png", "腺.png"]
)
def test_a_printable_path_leads_back_to_its_file(name: str) -> None:
    assert from_printable(printable(name)) == name


def test_view_writes_a_page_and_writes_it_again(write_run: WriteRun, cli, tmp_path: Path) -> None:
    rows = write_run()
    for _ in range(2):
        done = cli("view", rows)
        assert done.returncode == 0, done.stderr
        assert "open it in a browser" in done.stderr
    assert (tmp_path / "predictions.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.csv"], "nowhere.csv is no file; expected the rows that `edgelung infer` wrote"),
        (["notes.csv"], "notes.csv holds no predictions: its columns are a,b, expected"),
        (["notes.txt"], "notes.txt is no name for predictions: expected one that ends in .csv"),
        (["alone.csv"], "alone.csv has no summary alone.summary.json; expected the rows of a"),
        (["predictions.csv", "--out", "notes.txt"], "--out notes.txt: expected a name that ends"),
        (["predictions.csv", "--out", "mine.html"], "mine.html exists and is no page that"),
        (["predictions.csv", "--out", "pipe.html"], "pipe.html exists and is no page that"),
        (["predictions.csv", "--out", "no/a.html"], "cannot write no/a.html: no is no folder"),
        (["predictions.csv", "--root", "no"], "--root no is no folder; expected the folder that"),
    ],
)
def test_view_refuses_in_one_line(
    words: list[str], line: str, write_run: WriteRun, cli, tmp_path: Path
) -> None:
    rows = write_run()
    (tmp_path / "alone.csv").write_bytes(rows.read_bytes())
    (tmp_path / "notes.csv").write_text("a,b\n")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    os.mkfifo(tmp_path / "pipe.html")
    done = cli("view", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"edgelung: {line}")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"


def test_a_tile_behind_a_link_that_leads_out_is_not_shown(
    write_run: WriteRun, tmp_path: Path
) -> None:
    rows = write_run()
    before = data_of(page_of(rows))
    tile = next((tmp_path / "tiles").rglob("sure.png"))
    tile.replace(tmp_path / "private.png")
    tile.symlink_to(tmp_path / "private.png")
    data = data_of(page_of(rows))
    place = str(data["rows"]["name"].index("sure.png"))
    assert place in before["thumbnails"]
    assert place not in data["thumbnails"]
    assert place in data["rows"]["outside"]
    assert data["rows"]["truth"] == before["rows"]["truth"]


def test_a_link_that_is_made_after_the_check_is_not_followed(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_finished_run(write_run())
    tile = next((tmp_path / "tiles").rglob("sure.png"))
    folder = tile.parent
    os.close(run.open_tile(str(tile)))
    folder.rename(tmp_path / "private")
    folder.symlink_to(tmp_path / "private")
    monkeypatch.setattr(os.path, "realpath", lambda path: str(path))  # as it was before
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        run.open_tile(str(tile))


@pytest.mark.parametrize("inputs", [["/a", "b"], ["/a\ud800b"], ["/a\0b"], ["", ""]])
def test_a_foreign_summary_ends_in_one_line(write_run: WriteRun, inputs: list[str]) -> None:
    rows = write_run()
    summary = rows.with_suffix(".summary.json")
    content = json.loads(summary.read_text("utf-8"))
    content["options"]["inputs"] = inputs
    summary.write_text(json.dumps(content))
    with pytest.raises(EdgelungError, match="--root"):
        page_of(rows)


def test_text_that_is_no_unicode_is_written_as_escapes(
    write_run: WriteRun, tmp_path: Path, cli
) -> None:
    rows = write_run()
    summary = rows.with_suffix(".summary.json")
    content = json.loads(summary.read_text("utf-8")) | {"bundle": "a\ud800b"}
    summary.write_text(json.dumps(content))
    rows.write_bytes(rows.read_bytes().replace(b"sure.png", b"\\x00.png"))
    done = cli("view", rows)
    assert done.returncode == 0, done.stderr
    assert "a\\ud800b" in rows.with_suffix(".html").read_text("utf-8")
