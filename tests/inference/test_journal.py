"""The journal: what is whole counts, whatever a killed process or a bad disk left behind."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from run_identity import IDENTITY

from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName
from edgelung.inference.chain import checksum, write_line
from edgelung.inference.identity import RunIdentity
from edgelung.inference.journal import Journal
from edgelung.inference.reading import stamp_of
from edgelung.inference.record import Record
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.names import printable

# Without its checksum.
FIRST_LINE = (
    b'{"edgelung_journal":2,"begun":"now","identity":{"edgelung":"0.2.0","packages":{"numpy":"2"},'
    b'"bundle":"b","--engine":"openvino","--precision":"int8","floating point":"fp32",'
    b'"--batch-size":2,"--verify":false,"--verify-every":1,"--min-confidence":null,'
    b'"--prebuilt":null,"inputs":["x"],"--files":null,"--subset":null}}'
)
CHANGES = {
    "edgelung": ("edgelung", "0.3.0"),
    "packages": ("packages", {"numpy": "3"}),
    "bundle": ("bundle", "c"),
    "engine": ("--engine", EngineName.ONNXRUNTIME),
    "precision": ("--precision", Precision.FP32),
    "floating_point": ("floating point", "bf16"),
    "batch_size": ("--batch-size", 3),
    "verify": ("--verify", True),
    "verify_every": ("--verify-every", 2),
    "min_confidence": ("--min-confidence", 0.5),
    "prebuilt": ("--prebuilt", "/engines"),
    "inputs": ("inputs", ["x", "y"]),
    "listing": ("--files", "00"),
    "subset": ("--subset", "test"),
    "watch": ("--watch", True),
    "strict_size": ("--strict-size", True),
    "follow_links": ("--follow-links", True),
    "keep_unknown": ("--unknown keep", True),
    "coverage": ("--coverage", 0.99),
    "shard": ("--shard", "2/3"),
}


def chained(*contents: bytes) -> bytes:
    """Lines with the right checksums."""
    data, before = b"", b""
    for content in contents:
        before = checksum(before, content)
        data += write_line(content, before)
    return data


def record(file: FoundFile, confidence: float = 0.75) -> Record:
    chances = [confidence, 1 - confidence]
    return Record(printable(file.path), "ok", "", chances, None, stamp_of(file))


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
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv.edgelung-journal"


def begun(path: Path, files: list[FoundFile]) -> bytes:
    """Two batches of two; returns the journal's bytes."""
    journal = Journal(path)
    journal.begin(IDENTITY, "now")
    journal.append([record(f) for f in files[:2]])
    journal.append([record(f) for f in files[2:4]])
    journal.close()
    return path.read_bytes()


def test_records_come_back_exactly_and_the_rest_is_left(path: Path, files: list[FoundFile]) -> None:
    begun(path, files)
    journal = Journal(path)
    journal.resume(IDENTITY, "later")
    assert list(journal.records()) == [record(f) for f in files[:4]]
    assert (journal.batches, journal.rows) == (2, 4)
    assert journal.sessions == ["now", "later"]
    assert list(journal.remaining(files)) == files[4:]


def test_cut_at_every_byte_it_holds_whole_batches_only(path: Path, files: list[FoundFile]) -> None:
    data = begun(path, files)
    lines = data.splitlines(keepends=True)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        journal = Journal(path)
        whole = sum(len(b"".join(lines[: n + 1])) <= length for n in range(3))
        assert journal.batches == max(0, whole - 1)
        assert (journal.identity is None) == (whole == 0)
        if journal.identity is not None:
            journal.resume(IDENTITY, "later")
            rest = list(journal.remaining(files))
            journal.append([record(f) for f in rest])
            assert sorted(journal.records()) == sorted(record(f) for f in files)
        journal.close()


def test_zeros_of_a_power_cut_end_it(path: Path, files: list[FoundFile]) -> None:
    data = begun(path, files)
    first = data.index(b"\n", data.index(b"\n") + 1) + 1
    path.write_bytes(data[:first] + bytes(len(data) - first) + b"\n")
    journal = Journal(path)
    assert journal.rows == 2
    assert list(journal.remaining(files)) == files[2:]


def test_a_file_that_changed_is_predicted_again_and_its_last_row_counts(
    path: Path, files: list[FoundFile]
) -> None:
    begun(path, files)
    Path(files[1].location).write_text("another content")
    for _ in range(2):  # also when the second run is stopped before it gets there
        journal = Journal(path)
        journal.resume(IDENTITY, "later")
        assert list(journal.remaining(files)) == [files[1], files[4]]
        journal.close()
    journal = Journal(path)
    journal.resume(IDENTITY, "later")
    again = [record(f, 0.5) for f in journal.remaining(files)]
    journal.append(again)
    expected = [record(files[0]), record(files[2]), record(files[3]), *again]
    assert list(journal.records()) == expected
    journal.close()
    reopened = Journal(path)
    assert list(reopened.records()) == expected
    assert list(reopened.remaining(files)) == []


def test_a_file_that_is_gone_keeps_its_row(path: Path, files: list[FoundFile]) -> None:
    begun(path, files)
    Path(files[0].location).unlink()
    journal = Journal(path)
    assert list(journal.remaining(files[1:])) == files[4:]
    assert len(list(journal.records())) == 4


def test_the_first_line_is_the_one_that_journals_of_this_version_have(
    path: Path, files: list[FoundFile]
) -> None:
    assert begun(path, files).startswith(chained(FIRST_LINE))
    path.write_bytes(chained(FIRST_LINE))
    journal = Journal(path)
    assert journal.identity == IDENTITY
    journal.resume(IDENTITY, "later")


def test_every_field_of_the_identity_is_changed_below() -> None:
    assert list(CHANGES) == list(RunIdentity.__struct_fields__)


@pytest.mark.parametrize("name", list(CHANGES))
def test_another_run_is_refused_with_the_reason(
    path: Path, files: list[FoundFile], name: str
) -> None:
    before = begun(path, files)
    key, value = CHANGES[name]
    journal = Journal(path)
    with pytest.raises(EdgelungError, match=f"cannot resume: {key} was"):
        journal.resume(replace(IDENTITY, **{name: value}), "later")
    assert path.read_bytes() == before


def test_the_identity_of_an_unknown_edgelung_is_refused_in_one_line(path: Path) -> None:
    path.write_bytes(chained(FIRST_LINE.replace(b'"openvino"', b'"a new engine"')))
    with pytest.raises(EdgelungError, match=r"another edgelung wrote it .*--engine"):
        assert Journal(path).identity


@pytest.mark.parametrize(
    "data",
    [
        b"my notes\n",
        b"{}\n",
        b"[1]\n",
        b'{"edgelung_journal":2}\n',
        b'{"edgelung_journal":1}\n',
        b'{"edgelung_journal":1,"begun":"now","identity":[]}\n',
        FIRST_LINE.replace(b":2,", b":1,") + b"\n",
        FIRST_LINE + b"\n",
        chained(b"[]"),
        chained(b'{"resumed":"now"}'),
    ],
)
def test_somebody_elses_file_is_left_alone(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(EdgelungError, match="no journal of this edgelung"):
        Journal(path)
    assert path.read_bytes() == data


def test_one_process_at_a_time(path: Path) -> None:
    pytest.importorskip("fcntl")
    journal = Journal(path)
    with pytest.raises(EdgelungError, match="another run is writing"):
        Journal(path)
    journal.remove()
    Journal(path).remove()
    assert not path.exists()


def test_what_a_watch_began_only_a_watch_goes_on_with(path: Path, files: list[FoundFile]) -> None:
    watched = Journal(path)
    watched.begin(replace(IDENTITY, watch=True), "then")
    watched.append([record(files[0])])
    watched.close()
    journal = Journal(path)
    with pytest.raises(EdgelungError, match="--watch was True and is None now"):
        journal.resume(IDENTITY, "now")
    journal.resume(replace(IDENTITY, watch=True), "now")
    journal.close()


def test_a_folder_that_could_not_be_listed_is_asked_again(
    path: Path, files: list[FoundFile], tmp_path: Path
) -> None:
    closed = FoundFile("sub/", str(tmp_path / "in"), "Permission denied")
    refused = Record("sub/", "unreadable", closed.reason, None, None, stamp_of(closed))
    journal = Journal(path)
    journal.begin(IDENTITY, "now")
    journal.append([record(files[0]), refused])
    journal.close()

    journal = Journal(path)  # it can be listed now
    journal.resume(IDENTITY, "later")
    assert list(journal.remaining(files[:1])) == []
    assert list(journal.records()) == [record(files[0])]
    journal.close()

    journal = Journal(path)  # it still cannot: one row, not none and not two
    journal.resume(IDENTITY, "later still")
    assert list(journal.remaining([files[0], closed])) == [closed]
    journal.append([refused])
    assert list(journal.records()) == [record(files[0]), refused]
    journal.close()
