"""Watching: each tile once, and only when it is whole."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgelung.inference import watch
from edgelung.inference.destination import Destination
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import stamp_of
from edgelung.inference.source import Source
from edgelung.inference.watch import PATIENCE_SECONDS, SETTLE_SECONDS, Watcher, being_written
from edgelung.tiles.find import FoundFile


def watcher_of(*folders: Path) -> Watcher:
    return Watcher(Source(folders), Destination.parse(folders[0].parent / "rows.csv"))


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(Source((tmp_path,)), Destination.parse(tmp_path / "rows.csv"))


def names(files: list[FoundFile]) -> list[str]:
    return [file.path for file in files]


def row(path: Path, status: str = "ok") -> Row:
    file = FoundFile(path.name, str(path))
    return Row(file, status, stamp=stamp_of(file))


def test_a_file_is_ready_when_it_has_stood_still(tmp_path: Path, watcher: Watcher) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"half")
    (tmp_path / "b.jpg.part").write_bytes(b"x")
    (tmp_path / "rows.csv").touch()
    assert watcher.ready(0) == []
    path.write_bytes(b"half and half")
    assert watcher.ready(SETTLE_SECONDS) == []  # it has changed
    assert watcher.ready(2 * SETTLE_SECONDS - 0.1) == []
    assert names(watcher.ready(2 * SETTLE_SECONDS)) == ["a.jpg"]
    assert watcher.waiting == 1
    watcher.mark_done("a.jpg")
    assert watcher.ready(9) == []
    assert watcher.waiting == 0


def test_what_does_not_decode_gets_time(tmp_path: Path, watcher: Watcher) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"half")
    watcher.ready(0)
    for status in ("truncated", "corrupt", "unsupported"):
        assert not watcher.is_final(row(path, status), PATIENCE_SECONDS - 1)
        assert watcher.is_final(row(path, status), PATIENCE_SECONDS)
    assert not watcher.is_final(row(path, "empty"), 1e9)
    assert watcher.is_final(row(path), 2)


def test_what_changed_since_it_was_ready_is_not_final(tmp_path: Path, watcher: Watcher) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"half")
    watcher.ready(0)
    before = row(path)
    path.write_bytes(b"whole now")
    assert not watcher.is_final(before, 5)
    assert not watcher.is_final(row(path), 5)


def test_a_folder_that_goes_away_may_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "share"
    watcher = watcher_of(folder)
    assert watcher.ready(0) == []
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    watcher.ready(1)
    assert names(watcher.ready(9)) == ["a.jpg"]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_share_that_drops_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    watcher = watcher_of(tmp_path)

    def drop(*arguments: object, **options: object) -> None:
        raise OSError(number, "the share")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", drop)
        assert watcher.ready(0) == []
    watcher.ready(1)
    assert names(watcher.ready(9)) == ["a.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="leases are Linux's")
def test_a_writer_is_seen(tmp_path: Path) -> None:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.write(b"x")
        file.flush()
        if not being_written(str(path)):
            pytest.skip("this file system grants no leases")
    assert not being_written(str(path))
    with path.open("rb"):
        assert not being_written(str(path))


def test_tiles_dropped_while_it_watches(bundle_folder: Path, tiles: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "rows.jsonl"
    folder.mkdir()
    sample = (tiles / "lung_n" / "lung_n_s0_0.jpeg").read_bytes()
    (folder / "before.jpg").write_bytes(sample)
    words = ["infer", folder, "--model", bundle_folder, "--out", out, "--watch"]

    def watch(*more: str) -> subprocess.Popen[bytes]:
        command = [Path(sys.executable).with_name("edgelung"), *map(str, words), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def rows() -> list[str]:
        if not out.exists():
            return []
        return [json.loads(line)["path"] for line in out.read_text().splitlines()]

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 120
        while len(rows()) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(rows()) >= count, "no row in two minutes"

    process = watch()
    wait_for(1)
    with (folder / "slow.jpg").open("wb") as file:
        for part in (sample[:300], sample[300:800], sample[800:]):
            assert "slow.jpg" not in rows()
            file.write(part)
            file.flush()
            time.sleep(0.6)
    (folder / ".moved").write_bytes(sample)
    (folder / ".moved").rename(folder / "moved.jpg")
    wait_for(3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert b"--resume" in said
    assert sorted(rows()) == ["before.jpg", "moved.jpg", "slow.jpg"]
    assert all(json.loads(line)["status"] == "ok" for line in out.read_text().splitlines())

    (folder / "next.jpg").write_bytes(sample)  # after a kill as after an end
    process = watch("--resume")
    wait_for(4)
    process.kill()
    process.communicate(timeout=60)
    process = watch("--resume")
    os.utime(folder / "before.jpg")  # touched: still one row
    time.sleep(3 * SETTLE_SECONDS)
    (folder / "last.jpg").write_bytes(sample)  # by its row the one before has had its chance
    wait_for(5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(rows()) == ["before.jpg", "last.jpg", "moved.jpg", "next.jpg", "slow.jpg"]


def test_a_file_that_never_becomes_an_image_does_not_keep_a_core_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Always:
        looks = 0

        def ready(self, now: float) -> list[FoundFile]:
            self.looks += 1
            return [FoundFile("a.jpg", "a.jpg")]

        def is_final(self, row: Row, now: float) -> bool:
            return False

    class DropsAll:
        def predict(self, files: object, accept: object) -> list[object]:
            return []

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    watcher = Always()
    with pytest.raises(KeyboardInterrupt):
        watch._watch(DropsAll(), watcher, lambda rows: None, lambda records: None)  # type: ignore[arg-type]
    assert watcher.looks == 1


def test_a_folder_that_goes_away_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edgelung")
    for name in "ab":
        (tmp_path / name).mkdir()
    watcher = watcher_of(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "1.jpg").write_bytes(b"x")
    (tmp_path / "a").rmdir()
    watcher.ready(0)
    assert names(watcher.ready(SETTLE_SECONDS)) == ["b/1.jpg"]
    assert caplog.messages == [f"{tmp_path / 'a'} is not there now; waiting for it"]
    (tmp_path / "a").mkdir()
    watcher.ready(9)
    assert caplog.messages[1:] == [f"{tmp_path / 'a'} is there again"]
