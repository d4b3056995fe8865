"""The journal: nothing planted is taken for one, and no changed or damaged line is vouched for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from plants import PLANTS, SECRET, root_only
from run_identity import IDENTITY

from edgelung.core.errors import EdgelungError
from edgelung.core.folder import Folder
from edgelung.core.locks import locked, wait_for_lock
from edgelung.inference import chain
from edgelung.inference.chain import checksum, write_line
from edgelung.inference.destination import Destination
from edgelung.inference.journal import Journal
from edgelung.inference.record import Record
from edgelung.inference.sinks import open_sink
from edgelung.tiles.find import FoundFile

BATCHES = [
    [Record("1.jpg", "ok", "", [0.75, 0.25], [0.5, 0.5], (1, 2))],
    [Record("2.jpg", "empty", "no bytes", None, None, (0, 2))],
    [Record("3.jpg", "review", "unsure", [0.5, 0.5], None, None)],
]
RECORDS = [record for batch in BATCHES for record in batch]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "rows.csv"


@pytest.fixture
def path(rows: Path) -> Path:
    return rows.with_name("rows.csv.edgelung-journal")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").write_bytes(SECRET)
    return tmp_path / "victim"


def written(path: Path) -> bytes:
    journal = Journal(path, classes=2)
    journal.begin(IDENTITY, "now")
    for batch in BATCHES:
        journal.append(batch)
    journal.close()
    return path.read_bytes()


def read(path: Path) -> list[Record]:
    """What a `--resume` would keep; none if the journal is refused."""
    try:
        journal = Journal(path, classes=2)
    except EdgelungError:
        return []
    try:
        return list(journal.records())
    finally:
        journal.close()


def chained(contents: list[bytes]) -> bytes:
    """Lines with the right checksums: by somebody who knows how they are computed."""
    data, before = b"", b""
    for content in contents:
        before = checksum(before, content)
        data += write_line(content, before)
    return data


def contents(data: bytes) -> list[bytes]:
    return [line.rpartition(b"\t")[0] for line in data.splitlines()]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("resume", [None, True, False])
def test_a_planted_journal_is_refused_before_the_work(
    rows: Path, path: Path, victim: Path, plant: str, resume: bool | None
) -> None:
    PLANTS[plant](path, victim)
    before = path.lstat()
    with pytest.raises(EdgelungError, match="it was left alone: remove it") as caught:
        open_sink(Destination.parse(rows), ["a", "b"], resume=resume, live=False)
    assert "\n" not in str(caught.value)
    assert path.lstat().st_ino == before.st_ino
    assert victim.read_bytes() == SECRET
    assert not victim.with_name("not-there-yet").exists()


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_lock_file_is_refused(tmp_path: Path, victim: Path, plant: str) -> None:
    """Of a run folder (`state.pt.lock`) and of a cache entry."""
    PLANTS[plant](tmp_path / "lock", victim)
    with Folder(tmp_path) as folder:
        with pytest.raises(EdgelungError, match="it was left alone"):
            locked(folder, "lock", "busy")
        with (
            pytest.raises(EdgelungError, match="it was left alone"),
            wait_for_lock(folder, "lock", lambda: None),
        ):
            pass
    assert victim.read_bytes() == SECRET


@root_only
def test_a_journal_of_another_user_is_refused(path: Path) -> None:
    data = written(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(EdgelungError, match="belongs to another user"):
        Journal(path)
    assert path.read_bytes() == data


def test_a_share_that_shows_all_files_as_one_users_can_be_written_to(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path)
    number = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: number)
    assert read(path) == RECORDS
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_every_changed_bit_ends_what_counts_before_its_line(path: Path) -> None:
    data = written(path)
    ends = [end for end, byte in enumerate(data, 1) if byte == ord("\n")]
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        whole = sum(end <= position for end in ends)  # lines before the changed one
        assert read(path) == RECORDS[: max(whole - 1, 0)], position


EDITS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a digit": lambda lines: [line.replace(b"0.75,0.25", b"0.25,0.75") for line in lines],
    "a reference": lambda lines: [line.replace(b"[0.5,0.5],[1,", b"[1,0],[1,") for line in lines],
    "a status": lambda lines: [line.replace(b'"review"', b'"ok"') for line in lines],
    "a path": lambda lines: [line.replace(b"1.jpg", b"9.jpg") for line in lines],
    "a line that is gone": lambda lines: [lines[0], *lines[2:]],
    "a line twice": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "lines in another order": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
    "a line of another run": lambda lines: [*lines[:3], lines[3].replace(b"3.jpg", b"4.jpg")],
    "no checksum": lambda lines: [*lines[:3], lines[3].rpartition(b"\t")[0]],
    "another identity": lambda lines: [lines[0].replace(b'"bundle":"b"', b'"bundle":"c"')],
}


@pytest.mark.parametrize("edit", EDITS)
def test_no_line_behind_an_edit_counts(path: Path, edit: str) -> None:
    lines = written(path).splitlines()
    changed = EDITS[edit](lines)
    path.write_bytes(b"\n".join(changed) + b"\n")
    kept = read(path)
    assert kept == RECORDS[: len(kept)]
    assert len(kept) < len(RECORDS) or len(changed) > len(lines)


def batch(text: str) -> bytes:
    return f"[{text}]".encode()


IMPOSSIBLE = {
    "a probability above 1": '["9.jpg","ok","",[1.5,-0.5],null,1,[1,2],false]',
    "a probability below 0": '["9.jpg","ok","",[-0.25,1.0],null,1,[1,2],false]',
    "a sum that is not 1": '["9.jpg","ok","",[0.75,0.5],null,1,[1,2],false]',
    "a class too few": '["9.jpg","ok","",[1.0],null,1,[1,2],false]',
    "a class too many": '["9.jpg","ok","",[0.5,0.25,0.25],null,1,[1,2],false]',
    "no class": '["9.jpg","ok","",[],null,1,[1,2],false]',
    "NaN": '["9.jpg","ok","",[NaN,0.5],null,1,[1,2],false]',
    "no number": '["9.jpg","ok","",[null,1.0],null,1,[1,2],false]',
    "a reference above 1": '["9.jpg","ok","",[0.5,0.5],[2.0,-1.0],1,[1,2],false]',
    "a reference alone": '["9.jpg","empty","",null,[0.5,0.5],1,[1,2],false]',
    "an unknown status": '["9.jpg","fine","",[0.5,0.5],null,1,[1,2],false]',
    "ok without a prediction": '["9.jpg","ok","",null,null,1,[1,2],false]',
    "a failure with a prediction": '["9.jpg","corrupt","x",[0.5,0.5],null,1,[1,2],false]',
    "an unknown class": '["9.jpg","ok","",[0.5,0.5],null,2,[1,2],false]',
    "a class below 0": '["9.jpg","ok","",[0.5,0.5],null,-1,[1,2],false]',
    "a stamp that is text": '["9.jpg","ok","",[0.5,0.5],null,1,["1",2],false]',
    "a stamp of three": '["9.jpg","ok","",[0.5,0.5],null,1,[1,2,3],false]',
    "a size below 0": '["9.jpg","ok","",[0.5,0.5],null,1,[-1,2],false]',
    "a path that is a number": '[9,"ok","",[0.5,0.5],null,1,[1,2],false]',
    "a record too short": '["9.jpg","ok"]',
    "a record that is an object": '{"path":"9.jpg"}',
    "deep nesting": "[" * 100_000 + "]" * 100_000,
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_a_record_that_cannot_be_true_never_counts(path: Path, what: str) -> None:
    """Also where all checksums were computed anew."""
    lines = contents(written(path))
    path.write_bytes(chained([*lines[:2], batch(IMPOSSIBLE[what]), *lines[2:]]))
    assert read(path) == RECORDS[:1]


@pytest.mark.parametrize(
    "line", [b"{}", b'{"resumed":1}', b"null", b"1", b'"x"', b'{"a":' * 100_000, b"", b"\xff"]
)
def test_a_line_that_no_run_writes_ends_what_counts(path: Path, line: bytes) -> None:
    lines = contents(written(path))
    path.write_bytes(chained([*lines[:2], line, *lines[2:]]))
    assert read(path) == RECORDS[:1]


def damaged(path: Path) -> bytes:
    """A bad disk: a bit in the second batch."""
    data = bytearray(written(path))
    data[data.index(b"2.jpg")] ^= 1
    path.write_bytes(data)
    return bytes(data)


def test_damage_is_said_in_one_line_and_what_is_whole_is_kept(
    rows: Path, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(path)
    sink = open_sink(Destination.parse(rows), ["a", "b"], resume=True, live=False)
    assert caplog.messages == [
        f"{path} was changed or damaged from line 3 on: the 1 rows before it are kept, 2 line(s) "
        "are dropped and their files predicted again"
    ]
    sink.start(IDENTITY, "later")
    assert [file.path for file in sink.remaining([FoundFile("2.jpg", "gone")])] == ["2.jpg"]
    for batch in BATCHES[1:]:
        sink.append(batch)
    sink.finish()
    assert rows.read_text().count("\n") == 4
    assert sink.evidence.journal_dropped == 2
    sink.close()
    journal = Journal(path, classes=2)
    assert (journal.rows, journal.damaged, journal.dropped) == (3, 0, 2)
    journal.close()


def test_a_damaged_journal_is_not_changed_before_that_is_asked_for(rows: Path, path: Path) -> None:
    data = damaged(path)
    with pytest.raises(EdgelungError, match=r"1 rows .*; line 3 of it is damaged; add --resume"):
        open_sink(Destination.parse(rows), ["a", "b"], resume=None, live=False)
    assert path.read_bytes() == data
    sink = open_sink(Destination.parse(rows), ["a", "b"], resume=True, live=False)
    sink.close()  # the engine could not be loaded
    assert path.read_bytes() == data


def test_a_journal_whose_first_batch_is_damaged_is_not_lost_unasked(rows: Path, path: Path) -> None:
    data = bytearray(written(path))
    data[data.index(b"1.jpg")] ^= 1
    path.write_bytes(data)
    with pytest.raises(EdgelungError, match="line 2 of it is damaged"):
        open_sink(Destination.parse(rows), ["a", "b"], resume=None, live=False)
    open_sink(Destination.parse(rows), ["a", "b"], resume=True, live=False).close()
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "data",
    [b'{"edgelung_journal":1,"begun":"now","identity":{}}\n[]\n', b'{"edgelung_journal":2,x\n'],
)
def test_another_versions_or_an_unreadable_journal_goes_only_with_restart(
    rows: Path, path: Path, data: bytes
) -> None:
    path.write_bytes(data)
    for resume in (None, True):
        with pytest.raises(EdgelungError, match=r"no journal of this edgelung: .*--restart"):
            open_sink(Destination.parse(rows), ["a", "b"], resume=resume, live=False)
        assert path.read_bytes() == data
    sink = open_sink(Destination.parse(rows), ["a", "b"], resume=False, live=False)
    sink.start(IDENTITY, "now")
    assert sink.close() == 0


def test_restart_never_drops_somebody_elses_file(rows: Path, path: Path) -> None:
    path.write_bytes(SECRET)
    with pytest.raises(EdgelungError, match="move it away"):
        open_sink(Destination.parse(rows), ["a", "b"], resume=False, live=False)
    assert path.read_bytes() == SECRET


def test_a_line_without_an_end_does_not_fill_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(path)
    with path.open("ab") as file:
        file.truncate(1 << 34)  # 16 GiB of zeros, which take no room on the disk
    monkeypatch.setattr(chain, "MAX_LINE_BYTES", 1 << 16)
    monkeypatch.setattr("edgelung.inference.journal.count_lines", lambda handle, start: 0)
    journal = Journal(path, classes=2)
    assert list(journal.records()) == RECORDS
    journal.resume(IDENTITY, "later")
    journal.close()
    assert path.read_bytes().startswith(data)
    assert path.stat().st_size < len(data) + 100


def test_the_evidence_names_the_last_checksum_and_the_bytes_that_were_written(
    rows: Path, path: Path
) -> None:
    from edgelung.core.files import sha256_file

    sink = open_sink(Destination.parse(rows), ["a", "b"], resume=None, live=True)
    sink.start(IDENTITY, "now")
    for batch in BATCHES:
        sink.append(batch)
    sink.finish()
    assert sink.evidence.journal_checksum == path.read_bytes().splitlines()[-1][-32:].decode()
    assert sink.evidence.out_sha256 == sha256_file(rows)
    assert sink.evidence.journal_dropped == 0
    sink.close()


def test_a_journal_that_is_swapped_while_it_is_open_is_not_read(rows: Path, path: Path) -> None:
    sink = open_sink(Destination.parse(rows), ["a", "b"], resume=None, live=False)
    sink.start(IDENTITY, "now")
    sink.append(BATCHES[0])
    forged = path.read_bytes().replace(b"0.75,0.25", b"0.25,0.75")
    path.unlink()
    path.write_bytes(forged)
    sink.finish()
    assert "0.750000,0.750000,0.250000" in rows.read_text()
    sink.complete()
    sink.close()
