"""What the system refuses to write is one line: the path, what is kept, and how to go on."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.core.files import (
    WriteError,
    atomic_folder,
    atomic_write,
    check_output_file,
    describe_os_error,
    new_folder,
    write_json,
    writing,
)

FORBIDDEN = ("you have no permission to write there", "Change that or name another folder")
REASONS = {
    errno.ENOSPC: ("the disk is full", "Make room"),
    errno.EDQUOT: ("your disk quota is used up", "Make room"),
    errno.EROFS: ("the file system is read-only", "Make it writable or name another folder"),
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.EIO: ("Input/output error", "Correct that"),
}


def refuse(number: int, *names: object) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number), *names)

    return call


@pytest.mark.parametrize("number", REASONS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_keeps_its_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    monkeypatch.setattr(os, call, refuse(number))
    with pytest.raises(WriteError) as caught, atomic_write(path, "w") as file:
        file.write("new")
    reason, remedy = REASONS[number]
    assert str(caught.value) == (
        f"cannot write {path}: {reason}; nothing was overwritten. {remedy}, then run the same "
        "command again"
    )
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["rows.csv"]


@pytest.mark.parametrize("failing", ["block", "file", "rename"])
def test_a_folder_that_cannot_be_written_leaves_nothing_and_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Not its temporary name, also where a file in it fails."""
    path = tmp_path / "bundle"

    def write(folder: Path) -> None:
        (folder / "a.onnx").write_bytes(b"graph")
        if failing == "block":
            refuse(errno.ENOSPC, str(folder / "a.onnx"))()
        monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
        if failing == "file":
            write_json(folder / "b.json", {})

    with pytest.raises(WriteError) as caught, atomic_folder(path) as folder:
        write(folder)
    assert str(caught.value) == (
        f"cannot write {path}: the disk is full; nothing of it is kept. Make room, then run the "
        "same command again"
    )
    assert os.listdir(tmp_path) == []


def test_an_input_that_cannot_be_read_is_not_called_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "bundle"):
        (tmp_path / "tiles" / "gone.png").read_bytes()
    with pytest.raises(PermissionError), writing(tmp_path / "out"):
        refuse(errno.EACCES, str(tmp_path / "tiles" / "a.png"))()
    with pytest.raises(WriteError), writing(tmp_path / "out"):
        refuse(errno.EACCES, str(tmp_path / "out" / "a.png"))()
    with pytest.raises(WriteError), writing(tmp_path / "new" / "out"):
        refuse(errno.EACCES, str(tmp_path / "new"))()


def test_an_error_of_our_own_passes_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^ours$"), writing(tmp_path / "out"):
        raise OSError("ours")


def test_an_unexpected_error_of_the_disk_has_its_reason_and_no_number(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/tmp/graph")
    assert describe_os_error(full) == "the disk is full (/tmp/graph). Make room, then run it again"
    read = OSError(errno.EACCES, "Permission denied", "tiles/a.png")
    assert describe_os_error(read) == "Permission denied (tiles/a.png)"


@pytest.mark.parametrize("option", ["--out", "--summary"])
def test_an_output_is_checked_by_the_name_of_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    (tmp_path / "file").touch()
    check_output_file(tmp_path / "file", option)
    check_output_file(tmp_path / "new.csv", option)
    for name, reason in {
        "gone/e.csv": f"the folder {tmp_path / 'gone'} does not exist; create it",
        ".": "is a folder; expected the name of a file",
        "file/e.csv": "is not a folder",
    }.items():
        with pytest.raises(EdgelungError) as caught:
            check_output_file(tmp_path / name, option)
        assert str(caught.value).startswith(f"{option} {tmp_path / name}")
        assert reason in str(caught.value)
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write everywhere
    with pytest.raises(EdgelungError, match=f"{option} .*no permission to write to the folder"):
        check_output_file(tmp_path / "new.csv", option)


def test_a_new_folder_is_checked_by_the_name_of_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    new_folder(tmp_path / "a" / "b", "run")
    with pytest.raises(EdgelungError, match=r"--out .*file already exists; expected a new folder"):
        new_folder(tmp_path / "file", "run")
    with pytest.raises(EdgelungError, match=r"--out .*file/b: .*file is not a folder"):
        new_folder(tmp_path / "file" / "b", "run")
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(EdgelungError, match=r"--out .*no permission to write to the folder"):
        new_folder(tmp_path / "b", "run")
