"""The run as a user meets it: where rows go, the audit record, abstention, lists."""

import csv
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.summary import read_summary
from edgelung.core.errors import EdgelungError
from edgelung.core.files import WriteError
from edgelung.core.precision import Precision
from edgelung.inference.destination import Destination
from edgelung.inference.session import OnStopped, Options, infer_folder
from edgelung.inference.source import Source

EDGELUNG = Path(sys.executable).with_name("edgelung")
BY_TWO = Options(batch_size=2)


def some_tiles(tiles: Path, folder: Path) -> None:
    """Six tiles, copied into a new folder."""
    folder.mkdir()
    for path in sorted((tiles / "lung_n").glob("*.jpeg"))[:6]:
        shutil.copy(path, folder)


def stop_after_a_batch(
    source: Source,
    bundle: Bundle,
    destination: Destination,
    on_stopped: OnStopped = lambda count, journal: None,
) -> None:
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_folder(source, bundle, destination, BY_TWO, on_rows=interrupt, on_stopped=on_stopped)


def test_tiles_of_sizes_that_the_model_never_saw_are_counted_and_can_be_left_without_a_label(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    folder = tmp_path / "some"
    some_tiles(tiles, folder)
    with Image.open(next(iter(folder.iterdir()))) as image:
        side = image.width
        image.resize((5 * side, side)).save(folder / "wide.png")
    words = ["infer", folder, "--model", bundle_folder, "--out", "rows.csv"]
    counted = cli(*words)
    assert counted.returncode == 0
    assert (
        f"sizes     1 tiles are of other sizes than the training tiles ({side}×{side} px)"
        in counted.stdout
    )
    summary = read_summary(tmp_path / "rows.summary.json")
    assert (summary.other_sizes, summary.statuses) == (1, {"ok": 7})
    assert cli(*words, "--strict-size").returncode == 0
    summary = read_summary(tmp_path / "rows.summary.json")
    assert summary.statuses == {"ok": 6, "other-size": 1}
    assert summary.options["--strict-size"] is True
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    wide = next(row for row in rows if row["path"] == "wide.png")
    assert wide["label"] == ""
    assert wide["error"] == f"{5 * side}×{side} px; trained on {side}×{side} px"


def test_rows_on_standard_output(bundle_folder: Path, tiles: Path, tmp_path: Path, cli) -> None:
    result = cli("infer", tiles, "--model", bundle_folder, "--out", "-", "--unknown", "keep")
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
        (["--summary", "gone/s.json"], "--summary gone/s.json: the folder gone does not exist"),
        (["--files", "-", "--subset", "test"], "expected path and subset"),
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
    assert (b"the disk is full" if full else b"standard output was closed") in done.stderr


def test_the_summary_is_an_audit_record(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    words = ["infer", tiles, "--model", bundle_folder, "--min-confidence", "1", "--json"]
    words += ["--unknown", "keep"]
    result = cli(*words, "--out", "rows.jsonl")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "rows.summary.json").read_text())
    assert summary == json.loads(result.stdout)
    assert summary["statuses"] == {"review": 108, "skipped": 2}
    assert summary["labels"] == {"lung_aca": 0, "lung_n": 0, "lung_scc": 0}
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
    share, away = tmp_path / "share", tmp_path / "away"
    some_tiles(tiles, share)
    source, destination = Source((share,)), Destination.parse(tmp_path / "rows.csv")
    stop_after_a_batch(source, bundle, destination)
    share.rename(away)
    share.mkdir()
    with pytest.raises(EdgelungError, match="check that the share is still there"):
        infer_folder(source, bundle, destination, BY_TWO, resume=True)
    assert not (tmp_path / "rows.csv").exists()
    share.rmdir()
    away.rename(share)
    assert infer_folder(source, bundle, destination, BY_TWO, resume=True).files == 6


def test_a_resumed_run_does_not_say_that_its_variant_was_asked_for(
    bundle: Bundle, tiles: Path, tmp_path: Path
) -> None:
    """An audit record never says what was not asked."""
    some_tiles(tiles, tmp_path / "in")
    source, destination = Source((tmp_path / "in",)), Destination.parse(tmp_path / "rows.csv")
    stop_after_a_batch(source, bundle, destination)
    summary = infer_folder(source, bundle, destination, BY_TWO, resume=True)
    assert summary.choice.startswith(f"as the run began: {summary.precision} on openvino")
    assert "asked" not in summary.choice
    assert read_summary(tmp_path / "rows.summary.json") == summary

    stop_after_a_batch(source, bundle, destination)
    named = replace(BY_TWO, precision=Precision(summary.precision))
    assert "asked for" in infer_folder(source, bundle, destination, named, resume=True).choice


def test_a_stopped_run_tells_how_many_rows_its_journal_keeps(
    bundle: Bundle, tiles: Path, tmp_path: Path
) -> None:
    some_tiles(tiles, tmp_path / "in")
    source, destination = Source((tmp_path / "in",)), Destination.parse(tmp_path / "rows.csv")
    kept: list[tuple[int, Path]] = []
    stop_after_a_batch(source, bundle, destination, lambda *told: kept.append(told))
    assert kept == [(2, destination.journal)]
    with pytest.raises(EdgelungError, match="2 rows of a run that did not end"):
        infer_folder(source, bundle, destination, BY_TWO)
    done: list[int] = []
    infer_folder(source, bundle, destination, BY_TWO, resume=True, on_rows=done.append)
    assert done == [2, 2, 2]
    assert destination.journal is not None
    assert not destination.journal.exists()


MAC_METADATA = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)


def test_a_summary_without_room_is_written_by_a_resume(
    bundle: Bundle, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_tiles(tiles, tmp_path / "some")
    source = Source((tmp_path / "some",))
    destination = Destination.parse(tmp_path / "rows.csv")

    def full(path: Path, summary: object) -> None:
        raise WriteError(path, OSError(errno.ENOSPC, "no space"))

    with monkeypatch.context() as patch:
        patch.setattr("edgelung.inference.session.write_summary", full)
        with pytest.raises(EdgelungError) as caught:
            infer_folder(source, bundle, destination, BY_TWO)
    assert str(caught.value) == (
        f"cannot write {tmp_path}/rows.summary.json: the disk is full; the rows in "
        f"{tmp_path}/rows.csv are complete. Make room, then run the same command with --resume"
    )
    infer_folder(source, bundle, destination, BY_TWO, resume=True)
    assert read_summary(tmp_path / "rows.summary.json").files == 6


@pytest.fixture
def travelled(tiles: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A folder that a Mac copied to a Windows share on a NAS, and the tiles in it."""
    folder, real = tmp_path / "travelled", []
    stems = ["Gewebe gesünd", "肺", "a,b;c", "führend ", "ß", "it's"]
    for label in ("lung_aca", "lung_n"):
        (folder / label).mkdir(parents=True)
        sources = sorted((tiles / label).glob("*.jpeg"))
        for i, stem in enumerate(stems):
            name = unicodedata.normalize("NFD" if i % 2 else "NFC", stem) + (".JPG", ".jpeg")[i % 2]
            path = folder / label / name
            shutil.copy(sources[i], path)
            real.append(path)
            path.with_name(f"._{name}").write_bytes(MAC_METADATA)
        (folder / label / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(500))
        (folder / label / "Thumbs.db").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1"))
        (folder / label / "desktop.ini").write_text("[.ShellClassInfo]")
    for name in ("__MACOSX", ".fseventsd", "$RECYCLE.BIN", "@eaDir", "#recycle", ".Trash-1000"):
        (folder / name).mkdir()
        shutil.copy(real[0], folder / name / "1.jpeg")
    return folder, real


def test_every_tile_of_a_travelled_folder_is_predicted_and_every_leftover_skipped(
    travelled: tuple[Path, list[Path]], bundle_folder: Path, tmp_path: Path, cli
) -> None:
    folder, real = travelled
    result = cli("infer", folder, "--model", bundle_folder)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    status = {row["path"]: row["status"] for row in rows}
    names = {path.relative_to(folder).as_posix() for path in real}
    assert {path for path in status if status[path] == "ok"} == names
    assert {status[path] for path in status if path not in names} == {"skipped"}


@pytest.mark.parametrize(
    ("encoding", "delimiter", "root"),
    [("utf-16", ";", "D:\\Scans\\tiles\\"), ("utf-8-sig", "\t", ""), ("utf-16", "\t", ".\\")],
)
def test_every_tile_that_windows_lists_is_predicted(
    travelled: tuple[Path, list[Path]],
    bundle_folder: Path,
    tmp_path: Path,
    cli,
    encoding: str,
    delimiter: str,
    root: str,
) -> None:
    folder, real = travelled
    with (tmp_path / "list.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow(["Filename", "Label"])
        for path in real:
            name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
            writer.writerow([root + name.replace("/", "\\"), path.parent.name])
    result = cli("infer", folder, "--files", "list.csv", "--model", bundle_folder)
    assert result.returncode == 0, result.stderr
    assert "12 files → predictions.csv (12 ok)" in result.stdout


def test_a_closed_pipe_does_not_change_the_exit_code(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    some_tiles(tiles, tmp_path / "some")
    read, write = os.pipe()
    os.close(read)
    command = [EDGELUNG, "infer", tmp_path / "some", "--model", bundle_folder]
    done = subprocess.run(command, cwd=tmp_path, stdout=write, stderr=write, check=False)
    os.close(write)
    assert done.returncode == 0
    assert (tmp_path / "predictions.csv").is_file()
