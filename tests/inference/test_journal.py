"""The journal: what is whole counts, whatever a killed process or a bad disk left behind."""

from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.inference.journal import Journal, journal_of
from edgelung.inference.pipeline import stamp_of
from edgelung.inference.record import Record, printable
from edgelung.tiles.find import FoundFile, find_files

IDENTITY = {"bundle": "b", "--batch-size": 2, "inputs": ["x"]}


def record(file: FoundFile, confidence: float = 0.75) -> Record:
    chances = [confidence, 1 - confidence]
    return Record(printable(file.path), "ok", "", chances, None, 1, stamp_of(file))


@pytest.fixture
def files(tmp_path: Path) -> list[FoundFile]:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (
        "a.jpg",
        "b.jpg",
        "c\n.jpg",
        "d.jpg",
        b"e\xff.jpg".decode(errors="surrogateescape"),
    ):
        (folder / name).write_text(name, errors="surrogateescape")
    return list(find_files(folder))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def begun(out: Path, files: list[FoundFile]) -> bytes:
    """Two batches of two; returns the journal's bytes."""
    journal = Journal(out)
    journal.begin(IDENTITY, "now")
    journal.append([record(f) for f in files[:2]])
    journal.append([record(f) for f in files[2:4]])
    journal.close()
    return journal_of(out).read_bytes()


def test_records_come_back_exactly_and_the_rest_is_left(out: Path, files: list[FoundFile]) -> None:
    begun(out, files)
    journal = Journal(out)
    journal.go_on(IDENTITY, "later")
    assert list(journal.records()) == [record(f) for f in files[:4]]
    assert (journal.batches, journal.rows) == (2, 4)
    assert journal.sessions == ["now", "later"]
    assert list(journal.without_done(files)) == files[4:]


def test_cut_at_every_byte_it_holds_whole_batches_only(out: Path, files: list[FoundFile]) -> None:
    data = begun(out, files)
    lines = data.splitlines(keepends=True)
    for length in range(len(data)):
        journal_of(out).write_bytes(data[:length])
        journal = Journal(out)
        whole = sum(len(b"".join(lines[: n + 1])) <= length for n in range(3))
        assert journal.batches == max(0, whole - 1)
        assert (journal.identity is None) == (whole == 0)
        if journal.identity is not None:
            journal.go_on(IDENTITY, "later")
            rest = list(journal.without_done(files))
            journal.append([record(f) for f in rest])
            assert sorted(journal.records()) == sorted(record(f) for f in files)
        journal.close()


def test_zeros_of_a_power_cut_end_it(out: Path, files: list[FoundFile]) -> None:
    data = begun(out, files)
    first = data.index(b"\n", data.index(b"\n") + 1) + 1
    journal_of(out).write_bytes(data[:first] + bytes(len(data) - first) + b"\n")
    journal = Journal(out)
    assert journal.rows == 2
    assert list(journal.without_done(files)) == files[2:]


def test_a_file_that_changed_is_predicted_again_and_its_last_row_counts(
    out: Path, files: list[FoundFile]
) -> None:
    begun(out, files)
    Path(files[1].location).write_text("another content")
    for _ in range(2):  # also when the second run is stopped before it gets there
        journal = Journal(out)
        journal.go_on(IDENTITY, "later")
        assert list(journal.without_done(files)) == [files[1], files[4]]
        journal.close()
    journal = Journal(out)
    journal.go_on(IDENTITY, "later")
    again = [record(f, 0.5) for f in journal.without_done(files)]
    journal.append(again)
    expected = [record(files[0]), record(files[2]), record(files[3]), *again]
    assert list(journal.records()) == expected
    journal.close()
    reopened = Journal(out)
    assert list(reopened.records()) == expected
    assert list(reopened.without_done(files)) == []


def test_a_file_that_is_gone_keeps_its_row(out: Path, files: list[FoundFile]) -> None:
    begun(out, files)
    Path(files[0].location).unlink()
    journal = Journal(out)
    assert list(journal.without_done(files[1:])) == files[4:]
    assert len(list(journal.records())) == 4


@pytest.mark.parametrize("key", list(IDENTITY))
def test_another_run_is_refused_with_the_reason(
    out: Path, files: list[FoundFile], key: str
) -> None:
    before = begun(out, files)
    journal = Journal(out)
    with pytest.raises(EdgelungError, match=f"{key} was"):
        journal.go_on(IDENTITY | {key: "other"}, "later")
    assert journal_of(out).read_bytes() == before


@pytest.mark.parametrize("data", [b"my notes\n", b"{}\n", b"[1]\n", b'{"edgelung_journal":2}\n'])
def test_somebody_elses_file_is_left_alone(out: Path, data: bytes) -> None:
    journal_of(out).write_bytes(data)
    with pytest.raises(EdgelungError, match="no journal of this edgelung"):
        Journal(out)
    assert journal_of(out).read_bytes() == data


def test_one_process_at_a_time(out: Path) -> None:
    pytest.importorskip("fcntl")
    journal = Journal(out)
    with pytest.raises(EdgelungError, match="another run is writing"):
        Journal(out)
    journal.remove()
    Journal(out).remove()
    assert not journal_of(out).exists()


def test_what_a_watch_began_only_a_watch_goes_on_with(out: Path, files: list[FoundFile]) -> None:
    watched = Journal(out)
    watched.begin(IDENTITY | {"--watch": True}, "then")
    watched.append([record(files[0])])
    watched.close()
    journal = Journal(out)
    with pytest.raises(EdgelungError, match="--watch was True and is None now"):
        journal.go_on(IDENTITY, "now")
    journal.go_on(IDENTITY | {"--watch": True}, "now")
    journal.close()


def test_a_folder_that_could_not_be_listed_is_asked_again(
    out: Path, files: list[FoundFile], tmp_path: Path
) -> None:
    closed = FoundFile("sub/", str(tmp_path / "in"), "Permission denied")
    refused = Record("sub/", "unreadable", closed.reason, None, None, None, stamp_of(closed))
    journal = Journal(out)
    journal.begin(IDENTITY, "now")
    journal.append([record(files[0]), refused])
    journal.close()

    journal = Journal(out)  # it can be listed now
    journal.go_on(IDENTITY, "later")
    assert list(journal.without_done(files[:1])) == []
    assert list(journal.records()) == [record(files[0])]
    journal.close()

    journal = Journal(out)  # it still cannot: one row, not none and not two
    journal.go_on(IDENTITY, "later still")
    assert list(journal.without_done([files[0], closed])) == [closed]
    journal.append([refused])
    assert list(journal.records()) == [record(files[0]), refused]
    journal.close()
