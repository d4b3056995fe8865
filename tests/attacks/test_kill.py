"""A run killed at any moment goes on, and ends with the rows of an undisturbed run."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edgelung.inference.chain import checksum, write_line

EDGELUNG = Path(sys.executable).with_name("edgelung")


@pytest.fixture(scope="module")
def many(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,296 tiles (hard links) in three folders, with a broken file and a text among them."""
    folder = tmp_path_factory.mktemp("many") / "tiles"
    for path in tiles.glob("*/*.jpeg"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            os.link(path, folder / path.parent.name / f"{i}{path.name}")
    (folder / "lung_n" / "half.jpeg").write_bytes(path.read_bytes()[:700])
    (folder / "notes.txt").write_text("no tile")
    return folder


def command(many: Path, bundle: Path, out: Path, *more: str, precision: str = "int8") -> list[str]:
    words = [EDGELUNG, "infer", many, "--model", bundle, "--out", out, "--precision", precision]
    return list(map(str, [*words, *more]))


def finish(words: list[str], code: int = 3) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stderr
    return done


def start_and_kill(words: list[str], journal: Path, size: int, number: int) -> int:
    """Kill once the journal has grown to `size`; its exit code (it may have ended before)."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.stat().st_size >= size:
            process.send_signal(number)
            break
        time.sleep(0.0005)
    return process.wait(60)


@pytest.mark.parametrize(
    ("kills", "bundle", "precision"),
    [
        (3, "bundle_folder", "int8"),
        pytest.param(30, "bundle_folder", "int8", marks=pytest.mark.slow),
        pytest.param(30, "early_exit_bundle", "int8-early-exit", marks=pytest.mark.slow),
    ],
)
def test_killed_again_and_again(
    many: Path,
    tmp_path: Path,
    kills: int,
    bundle: str,
    precision: str,
    request: pytest.FixtureRequest,
) -> None:
    """Rows and summary are those of a run that was not disturbed."""
    bundle_folder = request.getfixturevalue(bundle)
    run = partial(command, many, bundle_folder, precision=precision)
    whole, out = tmp_path / "whole.csv", tmp_path / "out" / "rows.csv"
    out.parent.mkdir()
    finish(run(whole))
    journal = out.with_name("rows.csv.edgelung-journal")
    rng = random.Random(kills)
    size = 0
    for _ in range(kills):
        # Anywhere from before the first byte to some batches on.
        size += rng.randrange(0, 1298 * 130 // (kills + 1))
        code = start_and_kill(run(out, "--resume"), journal, size, signal.SIGKILL)
        assert code == -signal.SIGKILL, "it came to its end before it could be killed"
        assert not out.exists(), "under its final name before it was whole"
        size = journal.stat().st_size if journal.exists() else 0
    kept = journal.exists() and journal.read_bytes().count(b"\n") > 1
    finish(run(out, "--resume"))
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert {path.name for path in out.parent.iterdir()} == {"rows.csv", "rows.summary.json"}
    one, other = (json.loads(p.with_suffix(".summary.json").read_text()) for p in (whole, out))
    for key in ("files", "statuses", "labels", "options_sha256", "out_sha256"):
        assert one[key] == other[key], key
    assert bool(other["resumed"]) >= kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_run_says_how_to_go_on(
    many: Path, bundle_folder: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "rows.csv"
    journal = tmp_path / "rows.csv.edgelung-journal"
    process = subprocess.Popen(
        command(many, bundle_folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 3000):
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"--resume" in said
    assert b"Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == [journal.name]
    before = journal.read_bytes()
    refused = finish(command(many, bundle_folder, out), 2).stderr
    assert "--resume" in refused
    assert "--restart" in refused
    assert journal.read_bytes() == before
    finish(command(many, bundle_folder, out, "--resume"))
    with out.open(newline="") as file:
        counts = Counter(row["path"] for row in csv.DictReader(file))
    assert len(counts) == 1298
    assert set(counts.values()) == {1}


@pytest.fixture(scope="module")
def stopped(
    many: Path, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], bytes]:
    """Puts the journal of a killed run where that of another output would lie."""
    out = tmp_path_factory.mktemp("stopped") / "rows.csv"
    journal = out.with_name("rows.csv.edgelung-journal")
    code = start_and_kill(command(many, bundle_folder, out), journal, 4000, signal.SIGKILL)
    assert code == -signal.SIGKILL
    data = journal.read_bytes()

    def put(out: Path) -> bytes:
        out.with_name(f"{out.name}.edgelung-journal").write_bytes(data)
        return data

    return put


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--batch-size", "8"], "--batch-size was 16 and is 8"),
        (["--min-confidence", "0.5"], "--min-confidence was None and is 0.5"),
        (["--verify"], "--verify was False"),
        (["--precision", "fp32"], "--precision was int8 and is fp32"),
        pytest.param(["--engine", "onnxruntime"], "--engine was openvino", marks=pytest.mark.vnni),
    ],
)
def test_a_changed_option_refuses_to_go_on(
    stopped: Callable[[Path], bytes],
    many: Path,
    bundle_folder: Path,
    tmp_path: Path,
    more: list[str],
    named: str,
) -> None:
    out = tmp_path / "rows.csv"
    before = stopped(out)
    refused = finish([*command(many, bundle_folder, out, "--resume"), *more], 2).stderr
    assert named in refused
    assert refused.count("\n") <= 2  # the other line says that a variant did not pass its gate
    assert (tmp_path / "rows.csv.edgelung-journal").read_bytes() == before


def test_another_floating_point_refuses_to_go_on(
    stopped: Callable[[Path], bytes], many: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """A CPU with BF16 beside INT8 gives other rows than one without."""
    out = tmp_path / "rows.csv"
    before = stopped(out)
    journal = tmp_path / "rows.csv.edgelung-journal"
    elsewhere, last = b"", b""
    for line in before.splitlines():
        content = line.rpartition(b"\t")[0]
        content = content.replace(b'"floating point":"fp32"', b'"floating point":"bf16"')
        last = checksum(last, content)
        elsewhere += write_line(content, last)
    assert elsewhere != before
    journal.write_bytes(elsewhere)
    refused = finish(command(many, bundle_folder, out, "--resume"), 2).stderr
    assert "floating point was bf16 and is fp32" in refused
    assert journal.read_bytes() == elsewhere


def test_another_bundle_or_folder_refuses_and_restart_begins_anew(
    stopped: Callable[[Path], bytes],
    many: Path,
    bundle_folder: Path,
    copied_bundle: Path,
    tiles: Path,
    tmp_path: Path,
) -> None:
    from edgelung.artifacts.bundle import write_bundle

    out = tmp_path / "rows.csv"
    stopped(out)
    manifest = json.loads((copied_bundle / "bundle.json").read_text())
    del manifest["files"]
    write_bundle(copied_bundle, manifest | {"name": "another"})
    assert "bundle was" in finish(command(many, copied_bundle, out, "--resume"), 2).stderr
    assert "inputs was" in finish(command(tiles, bundle_folder, out, "--resume"), 2).stderr
    finish(command(tiles, bundle_folder, out, "--restart"), 0)
    assert len(out.read_bytes().splitlines()) == 111


def test_two_runs_do_not_write_one_file(many: Path, bundle_folder: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "rows.csv"
    with (tmp_path / "rows.csv.edgelung-journal").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = finish(command(many, bundle_folder, out), 2).stderr
    assert "another run is writing rows.csv" in refused


def test_a_full_disk_keeps_what_is_done(many: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "rows.csv"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        command(many, bundle_folder, out),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=small_disk,
    )
    assert done.returncode == 2
    assert "rows are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    whole = tmp_path / "whole.csv"
    finish(command(many, bundle_folder, whole))
    finish(command(many, bundle_folder, out, "--resume"))
    assert out.read_bytes() == whole.read_bytes()
