"""Sinks: where records go, and what is left of them however the run ends."""

import os
import threading
import time
from pathlib import Path

import pytest
from run_identity import IDENTITY

from edgelung.artifacts.predictions import read_predictions
from edgelung.core.errors import EdgelungError
from edgelung.inference.destination import STANDARD_OUTPUT, Destination
from edgelung.inference.output import UnbufferedWriter
from edgelung.inference.record import Record
from edgelung.inference.sinks import Sink, open_sink
from edgelung.inference.tally import NoTilesError

CLASSES = ["a", "b"]
FIRST = [Record("1.jpg", "ok", "", [0.75, 0.25], None, (1, 2))]
SECOND = [Record("2.jpg", "empty", "no bytes", None, None, (0, 2))]


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return Destination.parse(tmp_path / "rows.csv")


def started(destination: Destination, *, resume: bool | None = None, live: bool = False) -> Sink:
    sink = open_sink(destination, CLASSES, resume=resume, live=live)
    sink.start(IDENTITY, "now")
    return sink


def stopped(destination: Destination, *, live: bool = False) -> None:
    """A run that ended after its first batch."""
    sink = started(destination, live=live)
    sink.append(FIRST)
    assert sink.close() == 1


def paths(destination: Destination) -> list[str]:
    assert destination.rows is not None
    return [row.path for row in read_predictions(destination.rows).rows]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_output_appears_when_every_row_is_known(
    destination: Destination, tmp_path: Path
) -> None:
    sink = started(destination)
    sink.append(FIRST)
    sink.append(SECOND)
    assert names(tmp_path) == ["rows.csv.edgelung-journal"]
    assert sink.finish().files == 2
    sink.complete()
    assert sink.close() == 0
    assert paths(destination) == ["1.jpg", "2.jpg"]
    assert names(tmp_path) == ["rows.csv"]


def test_without_a_summary_the_journal_stays(destination: Destination, tmp_path: Path) -> None:
    sink = started(destination)
    sink.append(FIRST)
    sink.finish()
    assert sink.close() == 1
    assert names(tmp_path) == ["rows.csv", "rows.csv.edgelung-journal"]


def test_a_run_without_a_row_leaves_nothing(destination: Destination, tmp_path: Path) -> None:
    assert started(destination).close() == 0
    assert names(tmp_path) == []


def test_a_signal_behind_the_first_write_keeps_its_rows(
    destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = started(destination)
    write = os.write

    def interrupted(handle: int, data: bytes) -> int:
        write(handle, data)
        raise KeyboardInterrupt

    monkeypatch.setattr("edgelung.inference.journal.os.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.append(FIRST)
    monkeypatch.undo()
    assert sink.close() == 1
    again = started(destination, resume=True)
    assert again.rows == 1
    again.close()


def test_a_stopped_run_goes_on_only_if_that_is_said(
    destination: Destination, tmp_path: Path
) -> None:
    stopped(destination)
    with pytest.raises(EdgelungError, match="--resume to continue it, or --restart"):
        open_sink(destination, CLASSES, resume=None, live=False)
    sink = open_sink(destination, CLASSES, resume=True, live=False)
    assert sink.previous == IDENTITY
    assert (sink.rows, sink.batches) == (1, 1)
    assert list(sink.earlier_paths()) == ["1.jpg"]
    assert sink.close() == 0  # not started: there is nothing to report
    again = started(destination, resume=False)
    assert again.previous is None
    assert again.rows == 0
    again.close()
    assert names(tmp_path) == []


def test_a_folder_without_a_tile_leaves_the_old_output(
    destination: Destination, tmp_path: Path
) -> None:
    old = "path,status,label,confidence,p_a,error\n"
    (tmp_path / "rows.csv").write_text(old)
    sink = started(destination)
    sink.append([FIRST[0]._replace(status="skipped", probabilities=None)])
    with pytest.raises(NoTilesError):
        sink.finish()
    assert sink.close() == 0
    assert (tmp_path / "rows.csv").read_text() == old
    assert names(tmp_path) == ["rows.csv"]


def test_live_rows_are_in_the_output_at_once_and_the_journal_stays(
    destination: Destination, tmp_path: Path
) -> None:
    stopped(destination, live=True)
    (tmp_path / "rows.csv").unlink()
    sink = started(destination, resume=True, live=True)
    assert paths(destination) == ["1.jpg"]
    sink.append(SECOND)
    assert paths(destination) == ["1.jpg", "2.jpg"]
    assert sink.finish().files == 2
    sink.complete()
    assert sink.close() == 2
    assert paths(destination) == ["1.jpg", "2.jpg"]
    assert names(tmp_path) == ["rows.csv", "rows.csv.edgelung-journal"]


def test_a_watch_may_end_without_a_tile(destination: Destination) -> None:
    sink = started(destination, live=True)
    assert sink.finish().files == 0
    assert sink.close() == 0
    assert paths(destination) == []


def test_standard_output_gets_rows_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    sink = started(Destination.parse(STANDARD_OUTPUT))
    sink.append(FIRST)
    assert capfd.readouterr().out.splitlines()[1] == "1.jpg,ok,a,0.750000,0.750000,0.250000,,,,"
    assert sink.finish().files == 1
    assert sink.close() == 0


def test_standard_output_cannot_be_resumed() -> None:
    with pytest.raises(EdgelungError, match="only a file can be resumed"):
        open_sink(Destination.parse(STANDARD_OUTPUT), CLASSES, resume=True, live=False)


def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    data = bytes(range(256)) * 2000
    received = bytearray()

    def drain() -> None:
        while len(received) < len(data):
            time.sleep(0.001)
            received.extend(os.read(read, 1 << 14))

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    assert UnbufferedWriter(write, "a pipe").write(data) == len(data)
    reader.join(timeout=30)
    assert bytes(received) == data
    os.close(read)
    os.close(write)
