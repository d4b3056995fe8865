"""Lists of files: on standard input, with zeros between, with names of any bytes."""

import io
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.inference.destination import Destination
from edgelung.inference.source import Source

OUT = Destination.parse(Path("predictions.csv"))


def paths(folder: Path, listing: Path | None, subset: str | None = None) -> list[str]:
    return [file.path for file in Source((folder,), listing, subset).files(OUT)]


def on_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", stream)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.jpg\nb/c.jpg\r\n\n./a.jpg\n", ["a.jpg", "b/c.jpg"]),
        (b"./a\nb.jpg\0c, d.jpg\0", ["a\nb.jpg", "c, d.jpg"]),
        (b"last.jpg\0without a zero", ["last.jpg", "without a zero"]),
        (b'\xef\xbb\xbfpath,class\n"a,b.jpg",x\n', ["a,b.jpg"]),
        (b'"class","path"\nx,a.jpg\n', ["a.jpg"]),
        (b"caf\xe9.jpg\n", [os.fsdecode(b"caf\xe9.jpg")]),
        (b"path\ncaf\xe9.jpg\n", [os.fsdecode(b"caf\xe9.jpg")]),
        (b"/abs/a.jpg", ["/abs/a.jpg"]),
    ],
)
def test_a_list_from_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[str]
) -> None:
    (tmp_path / "list").write_bytes(data)
    on_standard_input(monkeypatch, data)
    for listing in (tmp_path / "list", Path("-")):
        found = list(Source((tmp_path,), listing).files(OUT))
        assert [file.path for file in found] == expected
        assert [file.location for file in found] == [str(tmp_path / path) for path in expected]
        assert all(file.is_image for file in found)


def test_a_bad_line_at_the_end_is_found_before_the_work(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,subset\n" + "a.jpg,test\n" * 50 + ",test\n")
    with pytest.raises(EdgelungError, match="without a path"):
        next(iter(Source((tmp_path,), listing).files(OUT)))


@pytest.mark.parametrize("data", [b"", b"\n\n", b"PK\3\4rest", b"path,class\n"])
def test_what_is_no_list(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(EdgelungError):
        list(Source((tmp_path,), tmp_path / "list").files(OUT))


def test_a_table_of_unknown_columns_is_told_which_ones_are_understood(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jpg").touch()
    listing = tmp_path / "list.csv"
    listing.write_text("Slide Tile;Class\na.jpg;n\n")
    paths(tmp_path, listing)
    assert "none of the files" in caplog.messages[0]
    assert f"the columns of {listing} were not recognised (slide_tile, class)" in caplog.messages[1]
    assert "one of path, filepath," in caplog.messages[1]
    caplog.clear()
    listing.write_text("path;class\ngone.jpg;n\n")
    paths(tmp_path, listing)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("encoding", ["cp1252", "cp850", "mac_roman"])
@pytest.mark.parametrize("header", ["", "path\n"])
def test_a_list_of_another_encoding_is_told_apart_from_a_name_of_those_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str, header: str
) -> None:
    for name in ("a.jpg", "ä.jpg"):
        (tmp_path / name).touch()
    listing = tmp_path / "list"
    listing.write_text(f"{header}a.jpg\nä.jpg\n", encoding=encoding)
    paths(tmp_path, listing)
    (message,) = caplog.messages
    assert message.startswith(f"{listing} is not UTF-8, and ")
    assert message.endswith(" is not there; save the list as UTF-8")
    caplog.clear()
    (tmp_path / os.fsdecode("ä.jpg".encode(encoding))).touch()
    paths(tmp_path, listing)
    assert caplog.messages == []


def test_a_subset_that_is_not_there_is_told_which_ones_are(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,subset\na.jpg,Test\nb.jpg, test\nc.jpg,val\n")
    with pytest.raises(EdgelungError) as caught:
        paths(tmp_path, listing, "test")
    assert str(caught.value) == (
        f"{listing} names no files in subset 'test'; it has the subsets ' test', 'Test', 'val'"
    )


def test_what_the_run_writes_is_no_input(tmp_path: Path) -> None:
    for name in ("a.jpg", "p.csv", "p.summary.json", "p.csv.edgelung-journal", "deep/p.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "p.csv").write_text("path,status,label,confidence,p_a,error\r\n")
    (tmp_path / "p.summary.json").write_text('{"kind": "edgelung infer", "out": "p.csv"}')
    found = Source((tmp_path,)).files(Destination.parse(tmp_path / "p.csv"))
    assert [file.path for file in found] == ["a.jpg", "deep/p.csv"]


def test_another_list_is_another_source(tmp_path: Path) -> None:
    listing = tmp_path / "list"
    listing.write_text("a.jpg\n")
    source = Source((tmp_path,), listing)
    before = source.listing_id
    assert source.listing_id == before
    listing.write_text("b.jpg\n")
    assert source.listing_id != before
    assert Source((tmp_path,)).listing_id is None


def test_a_pipe_is_a_list(tmp_path: Path) -> None:
    """`--files <(find …)`: it can be read once only."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a.jpg\nb.jpg\n",), daemon=True)
    writer.start()
    found = Source((tmp_path,), pipe).files(OUT)
    assert [file.path for file in found] == ["a.jpg", "b.jpg"]
    assert Source((tmp_path,), pipe).listing_id == "a stream"


def test_utf_16_is_read_with_its_mark_and_refused_without(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n", encoding="utf-16")
    found = Source((tmp_path,), tmp_path / "list.txt").files(OUT)
    assert [file.path for file in found] == ["a.jpg"]
    (tmp_path / "list.txt").write_text("a.jpg\n", encoding="utf-16-le")
    with pytest.raises(EdgelungError, match="is UTF-16 without a byte-order mark"):
        Source((tmp_path,), tmp_path / "list.txt").files(OUT)


def test_a_link_from_one_folder_into_another_gives_no_file_twice(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(b"x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    found = Source((tmp_path / "a", tmp_path / "b")).files(OUT)
    assert [Path(file.location).name for file in found] == ["a.jpg", "b.jpg"]


def test_dots_in_names_lead_where_the_system_would_go(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for name in ("here/a.jpg", "elsewhere/a.jpg"):
        (tmp_path / name).write_text(name)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "list").write_text("a.jpg\nlink/../a.jpg\n./x/../a.jpg\n")
    found = Source((tmp_path / "here",), tmp_path / "list").files(OUT)
    read = [Path(file.location).read_text() for file in found]
    assert read == ["here/a.jpg", "elsewhere/a.jpg"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"pa", b"th,subset\na.jpg,test\n"], ["a.jpg"]),
        ([b"a.j", b"pg\0b.jpg\0"], ["a.jpg", "b.jpg"]),
        ([b"a.jpg", b"", b"\nb.jpg"], ["a.jpg", "b.jpg"]),
    ],
)
def test_a_pipe_may_bring_a_list_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], expected: list[str]
) -> None:
    read, write = os.pipe()

    def write_slowly() -> None:
        with os.fdopen(write, "wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(0.1)

    threading.Thread(target=write_slowly, daemon=True).start()
    with os.fdopen(read) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert paths(tmp_path, Path("-")) == expected


def test_a_name_that_no_system_takes_is_a_row_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a.jpg\n" * 20_000 + b"x/../a\0b\n")
    assert paths(tmp_path, tmp_path / "list") == ["a.jpg", "a\0b"]


def test_folders_that_overlap_are_refused_and_thousands_are_no_burden(tmp_path: Path) -> None:
    for name in ("a/deep", "b"):
        (tmp_path / name).mkdir(parents=True)
    for wrong in (["a", "b", "a"], ["a/deep", "b", "a"], ["a", "b/../a/deep"]):
        with pytest.raises(EdgelungError, match="two rows each"):
            Source(tuple(tmp_path / name for name in wrong)).files(OUT)
    with pytest.raises(EdgelungError, match="two rows each"):
        Source((tmp_path, tmp_path)).files(OUT)
    files = [tmp_path / f"{i}.jpg" for i in range(3000)]
    for file in files:
        file.touch()
    assert len(list(Source(tuple(files)).files(OUT))) == 3000


@pytest.mark.parametrize("listed", [False, True])
def test_the_count_is_the_number_of_files_to_predict(tmp_path: Path, listed: bool) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    for name in ("1.png", "a/2.png", "predictions.csv"):
        (folder / name).touch()
    listing = tmp_path / "list"
    listing.write_text("1.png\n./1.png\na/2.png\ngone.png\n")
    source = Source((folder,), listing if listed else None)
    destination = Destination.parse(folder / "predictions.csv")
    expected = len(list(source.files(destination)))
    assert source.count(destination, threading.Event()) == expected == (3 if listed else 2)


def test_a_stream_is_not_read_to_count_it(tmp_path: Path) -> None:
    stop = threading.Event()
    assert Source((tmp_path,), Path("-")).count(OUT, stop) is None


def test_counting_stops_when_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    stop = threading.Event()
    stop.set()
    assert Source((tmp_path,)).count(OUT, stop) is None
