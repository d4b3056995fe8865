"""Lists of tiles in every dialect that people's programs write."""

import os
import threading
from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.tiles.lists import read_rows

PATHS = ["lung_n/1.jpeg", "lung_n/ä, b.jpeg"]


def paths(file: Path, *wanted: str) -> list[str]:
    return [row["path"] for row in read_rows(file, wanted)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("column", ["path", "Path", "FILE", "filename", "image_path"])
def test_a_csv_of_any_dialect_is_read(
    tmp_path: Path, delimiter: str, encoding: str, newline: str, column: str
) -> None:
    lines = [f"{column}{delimiter}Label"]
    lines += [f'"{path}"{delimiter}x' for path in PATHS]
    file = tmp_path / "list.csv"
    file.write_bytes((newline.join(lines) + newline).encode(encoding))
    assert list(read_rows(file, ["label"])) == [
        {column.lower(): path, "label": "x", "path": path} for path in PATHS
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_plain_list_is_read(tmp_path: Path, encoding: str, newline: str) -> None:
    file = tmp_path / "list.txt"
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    file.write_bytes(mark + newline.join([*PATHS, "", ""]).encode(encoding))
    assert paths(file) == PATHS


def test_a_list_of_find_print0_is_read(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(b"\0".join(os.fsencode(p) for p in ["a\nb.jpeg", *PATHS]) + b"\0")
    assert paths(file) == ["a\nb.jpeg", *PATHS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "lines", [["sep=;"], ['"sep=;"'], ["#TYPE System.IO.FileInfo"], ["", " ", ";;"], ["", "sep=;"]]
)
def test_lines_before_the_header_are_passed_over(
    tmp_path: Path, encoding: str, newline: str, lines: list[str]
) -> None:
    file = tmp_path / "list.csv"
    text = newline.join([*lines, "Path;Group", "a/1.jpeg;g", ""])
    file.write_bytes(text.encode(encoding))
    assert list(read_rows(file, ["group"])) == [{"path": "a/1.jpeg", "group": "g"}]


@pytest.mark.parametrize(
    "column",
    ["File Name", "Image Path", "image-name", "tile_name", "Image ID", "FullName", "Tile  Path"],
)
def test_the_column_of_the_paths_is_found_however_it_is_written(
    tmp_path: Path, column: str
) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f'"Mode","{column}"\n"-a","a/1.jpeg"\n')
    assert paths(file) == ["a/1.jpeg"]


def test_the_index_that_pandas_writes_is_no_path(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text(",path,subset\n0,a/1.jpeg,test\n1,a/2.jpeg,test\n\n")
    assert paths(file) == ["a/1.jpeg", "a/2.jpeg"]


def test_bytes_of_a_name_that_are_not_utf8_go_through(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(b"path\na/\xff.jpeg\n")
    assert [os.fsencode(path) for path in paths(file)] == [b"a/\xff.jpeg"]


@pytest.mark.parametrize(
    ("content", "wanted", "words"),
    [
        (b"PK\3\4rest", (), r"is a zip archive or an \.xlsx, not text; save it as CSV"),
        (b"\xd0\xcf\x11\xe0rest\n", (), r"is an old \.xls, not text; save it as CSV"),
        (b"path,label\na,b\n", ("group",), "has the columns path, label; expected group too"),
        (b"a/1.jpeg\n", ("group",), "expected path and group in its first line"),
        (b"path,group\n,g\n", (), "line 2: a row without a path"),
        (b"path,label\na,b.jpg,n\n", (), "line 2: 3 cells, but the header has 2; put quotes"),
        ("a/1.jpeg\n".encode("utf-16-le"), (), "is UTF-16 without a byte-order mark"),
        ("a/1.jpeg\n".encode("utf-16-be"), (), "is UTF-16 without a byte-order mark"),
        (b"path\n" + b"x" * 200_000, (), "cannot read the list"),
        (b'path,n\na,1\n"b,2\nc,3\n"d,4\n', (), "list.csv, line 3: a cell goes on in the next"),
        (b'path,n\na,1\n"b,2\nc,3\n', (), "line 3: a cell goes on in the next line; close the"),
        (b'path\na\n"b\n' + b"x\n" * 100_000, (), "line 3: field larger than field limit"),
        (b"path,group,Group\na,1,2\n", ("group",), "has the columns group and group; expected one"),
        (b"path,group,cluster\na,1,2\n", ("group|cluster",), "the columns group and cluster; exp"),
        (b"#TYPE x\n\npath\n\n,\na,b\n", (), "line 6: 2 cells"),
        ("Path\n".encode("utf-16") + b"\x00\xd8\x00", (), "save it as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, content: bytes, wanted: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(content)
    with pytest.raises(EdgelungError, match=words):
        list(read_rows(file, wanted))


def test_lines_that_end_in_a_lone_carriage_return_are_read(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(b"path;label\ra/1.jpeg;x\ra/2.jpeg;y\r")
    assert paths(file, "label") == ["a/1.jpeg", "a/2.jpeg"]
    file.write_bytes(b"a/1.jpeg\ra/2.jpeg\r")
    assert paths(file) == ["a/1.jpeg", "a/2.jpeg"]


def test_a_short_row_has_empty_cells(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("path,subset\na.jpg,test\nb.jpg\n")
    assert [row["subset"] for row in read_rows(file, ["subset"])] == ["test", ""]


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for piece in (b"pa", b"th,x\na/1", b".jpeg,1\na/2.jpeg,2\n"):
                file.write(piece)

    writer = threading.Thread(target=write)
    writer.start()
    assert paths(pipe) == ["a/1.jpeg", "a/2.jpeg"]
    writer.join()
