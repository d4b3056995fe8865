"""The run as a user meets it: where rows go, the audit record, abstention, lists."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.inference.session import Options, Unbuffered, infer_folder
from edgelung.inference.summary import summary_path
from edgelung.tiles.find import find_files

EDGELUNG = Path(sys.executable).with_name("edgelung")


def test_rows_on_standard_output(bundle_folder: Path, tiles: Path, tmp_path: Path, cli) -> None:
    result = cli("infer", tiles, "--model", bundle_folder, "--out", "-")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert len(rows) == 110
    assert {row["status"] for row in rows} == {"ok", "skipped"}
    assert "110 files" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "-", "--json"], "--json and the rows"),
        (["--out", "-", "--resume"], "only a file can be resumed"),
        (["--watch", "--files", "x"], "--watch finds its files itself"),
        (["--watch", "--out", "p.parquet"], "cannot be added to"),
        (["--min-confidence", "1.5"], "min-confidence"),
        (["--summary", "gone/s.json"], "cannot write the summary"),
        (["--files", "-", "--subset", "test"], "`subset`"),
    ],
)
def test_what_does_not_go_together(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli, words: list[str], message: str
) -> None:
    result = cli("infer", tiles, "--model", bundle_folder, *words, input="a.jpg\n")
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("full", [False, True])
def test_rows_that_nobody_takes_end_the_run(bundle_folder: Path, tiles: Path, full: bool) -> None:
    """A closed pipe, and a device without room."""
    if full:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        write = os.open("/dev/full", os.O_WRONLY)
    else:
        read, write = os.pipe()
        os.close(read)
    done = subprocess.run(
        [EDGELUNG, "infer", tiles, "--model", bundle_folder, "--out", "-"],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(write)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert (b"No space left" if full else b"standard output was closed") in done.stderr


def test_the_summary_is_an_audit_record(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    words = ["infer", tiles, "--model", bundle_folder, "--min-confidence", "1", "--json"]
    result = cli(*words, "--out", "rows.jsonl")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "rows.summary.json").read_text())
    assert summary == json.loads(result.stdout)
    assert summary["statuses"] == {"review": 108, "skipped": 2}
    assert summary["labels"] == {"lung_aca": 0, "lung_n": 0, "lung_scc": 0}
    assert summary["labelled"] is None
    out, manifest = tmp_path / "rows.jsonl", bundle_folder / "bundle.json"
    assert summary["out_sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert summary["bundle_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert summary["started"] <= summary["ended"]
    assert summary["options"]["--min-confidence"] == 1
    assert summary["host"]["packages"]["numpy"]
    assert summary["milliseconds"]["read and decode, a tile"]["p50"] > 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["label"] for row in rows} == {None}
    reviewed = [row for row in rows if row["status"] == "review"]
    assert all(
        row["confidence"] == max(row["p_lung_aca"], row["p_lung_n"], row["p_lung_scc"])
        for row in reviewed
    )
    (tmp_path / "rows.summary.json").write_text("my notes")
    assert cli(*words, "--out", "rows.jsonl").returncode == 2
    assert (tmp_path / "rows.summary.json").read_text() == "my notes"


def test_a_list_on_standard_input(bundle_folder: Path, tiles: Path, tmp_path: Path, cli) -> None:
    names = "lung_n/lung_n_s0_0.jpeg\0gone.jpeg\0lung_scc/lung_scc_s0_0.jpeg\0"
    result = cli("infer", tiles, "--model", bundle_folder, "--files", "-", input=names)
    assert result.returncode == 3, result.stderr
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names.split("\0")[:-1]
    assert [row["status"] for row in rows] == ["ok", "unreadable", "ok"]


def test_one_tile_at_a_time_gives_the_same_rows(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    """The latency mode takes another way through the pipeline and the engine."""
    for name, size in (("one.csv", 1), ("many.csv", 16)):
        words = ["infer", tiles, "--model", bundle_folder, "--batch-size", size]
        assert cli(*words, "--out", name).returncode == 0
    one, many = ((tmp_path / name).read_text().splitlines() for name in ("one.csv", "many.csv"))
    assert len(one) == len(many) == 111
    for line, other in zip(csv.reader(one[1:]), csv.reader(many[1:]), strict=True):
        assert line[:3] == other[:3]
        for a, b in zip(line[3:7], other[3:7], strict=True):
            assert (a == b == "") or abs(float(a) - float(b)) <= 2e-6


def test_bench_measures_every_scenario(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    words = ["bench", bundle_folder, tiles, "--seconds", "0.1", "--threads", "2", "--json"]
    result = cli(*words, "--out", "bench.json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures == json.loads((tmp_path / "bench.json").read_text())
    (tmp_path / "mine.txt").write_text("precious")
    refused = cli(*words, "--out", "mine.txt")
    assert refused.returncode == 2
    assert "was left alone" in refused.stderr
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert figures["samples"]["files"] == 108
    assert figures["threads"] == figures["streams"] == 2
    for kind in ("model", "end_to_end"):
        single = figures["single_stream"][kind]
        assert 0 < single["p50_ms"] <= single["p90_ms"] <= single["p99_ms"]
        assert single["queries"] >= 100
        assert figures["offline_tiles_per_second"][kind] > 0
        assert figures["server"][kind]["bound_ms"] == 100
    loop = figures["single_stream"]["fixed_loop"]
    assert 0 < loop["p50_ms"] <= loop["p99_ms"]
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.jpg").write_text("no tile")
    assert "no tile that can be read" in cli("bench", bundle_folder, text).stderr


def test_a_summary_takes_no_place_of_something_else(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    with pytest.raises(EdgelungError, match="cannot both be"):
        summary_path(out, out)
    (tmp_path / "rows.summary.json").write_text('{"kind": "edgelung infer", "out": "rows.jsonl"}')
    with pytest.raises(EdgelungError, match=r"is the summary of rows\.jsonl"):
        summary_path(out, None)
    asked = tmp_path / "rows.summary.json"
    assert summary_path(out, asked) == asked  # by name it may be replaced
    (tmp_path / "mine.json").write_text('{"kind": "mine"}')
    with pytest.raises(EdgelungError, match="no summary of a run"):
        summary_path(out, tmp_path / "mine.json")


def test_an_output_whose_name_is_no_utf_8(tiles: Path, bundle_folder: Path, tmp_path: Path, cli):
    name = b"r\xe9s.csv".decode(errors="surrogateescape")
    result = cli("infer", tiles / "lung_n", "--model", bundle_folder, "--out", name)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / name).is_file()
    summary = json.loads((tmp_path / name).with_suffix(".summary.json").read_text())
    assert summary["out"] == "r\\xe9s.csv"


def test_a_share_that_went_away_does_not_end_a_stopped_run(
    bundle: Bundle, tiles: Path, tmp_path: Path
) -> None:
    """Its mount point is an empty folder: the rows so far are not the whole."""
    out, files = tmp_path / "rows.csv", list(find_files(tiles))[:6]

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    options = Options(batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        infer_folder(files, bundle, out, options, on_rows=stop)
    with pytest.raises(EdgelungError, match="a share that went away"):
        infer_folder([], bundle, out, options, resume=True)
    assert not out.exists()
    result = infer_folder(files, bundle, out, options, resume=True)
    assert result["files"] == 6


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_all() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    data = bytes(range(256)) * 2000
    found = bytearray()

    def drain() -> None:
        while len(found) < len(data):
            time.sleep(0.001)
            found.extend(os.read(read, 1 << 14))

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    assert Unbuffered(write, "a pipe").write(data) == len(data)
    reader.join(timeout=30)
    assert bytes(found) == data
    os.close(read)
    os.close(write)
