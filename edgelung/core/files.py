"""Files and folders that are written whole or not at all, and SHA-256.

Every room writes its results through `atomic_write`, `atomic_folder` or `write_json`, or at least
within `writing`: an error of the disk becomes one line that names the path. What another user may
plant in the folder (links, FIFOs, hard links, a swapped folder) is `edgelung.core.folder`'s matter.
"""

import errno
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.folder import TEMPORARY_SUFFIX, Folder

# Suffixes of files that a run has not finished yet. Code that lists a folder skips them.
JOURNAL_SUFFIX = ".edgelung-journal"
OWN_SUFFIXES = (TEMPORARY_SUFFIX, JOURNAL_SUFFIX)

# What the system reports when it cannot write: the reason in words, and what helps.
FULL = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("your disk quota is used up", "make room"),
    errno.EROFS: ("the file system is read-only", "make it writable or name another folder"),
}
FORBIDDEN = ("you have no permission to write there", "change that or name another folder")
NOTHING_KEPT = "nothing of it is kept"
REFUSED = FULL | {errno.EACCES: FORBIDDEN, errno.EPERM: FORBIDDEN}


class WriteError(EdgelungError):
    """The operating system could not write a file or a folder.

    Attributes:
        path: what was to be written, by the name that the user knows.
        cause: the system's error.
        fault: the path and the reason, for a message of one's own.
        remedy: what helps, as the beginning of a sentence.
    """

    def __init__(self, path: Path, cause: OSError, kept: str = "nothing was overwritten") -> None:
        reason, remedy = REFUSED.get(cause.errno or 0, (_text(cause), "correct that"))
        self.path, self.cause = path, cause
        self.fault, self.remedy = f"cannot write {path}: {reason}", remedy.capitalize()
        super().__init__(f"{self.fault}; {kept}. {self.remedy}, then run the same command again")


def describe_os_error(error: OSError) -> str:
    """An error that no code expected, as one line: its reason and its file, without its number."""
    reason, remedy = FULL.get(error.errno or 0, (_text(error), ""))
    name = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
    return one_line(
        f"{reason}{name}" + (f". {remedy.capitalize()}, then run it again" if remedy else "")
    )


@contextmanager
def writing(path: Path, own: Path | None = None) -> Iterator[None]:
    """Raise WriteError for `path` if the system cannot write in the block.

    Errors about files other than `own` and its folders (default: `path`), such as an input that
    cannot be read, are raised as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or not _concerns(error, own or path):
            raise
        raise WriteError(path, error) from error


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def atomic_write(
    path: Path,
    mode: str = "wb",
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` and rename it to `path` when the block succeeds.

    If the block raises or the process is killed, `path` keeps its old content. `mode` and the
    options are those of `open`. The folder of `path` is opened once: the file ends in the folder
    in which it began.

    Raises:
        WriteError: if the file cannot be written, for example on a full disk.
        EdgelungError: if `path` is there and is no regular file.
    """
    try:
        folder = Folder(path.parent)
    except OSError as error:
        raise WriteError(path, error) from error
    with (
        folder,
        replacing(folder, path.name) as descriptor,
        open(
            descriptor, mode, encoding=encoding, errors=errors, newline=newline, closefd=False
        ) as file,
    ):
        yield file


@contextmanager
def replacing(folder: Folder, name: str, mode: int = 0o666) -> Iterator[int]:
    """Give the descriptor of a temporary file that becomes `name` when the block succeeds.

    Args:
        folder: where both are.
        name: of the file that is made or replaced.
        mode: permissions of the file, less the umask. Until it is renamed, only this user can
            open it.

    Raises:
        WriteError: if the file cannot be written.
        EdgelungError: if `name` is there and is no regular file.
    """
    path = folder.path / name
    with writing(path):
        folder.check_regular(name)
        descriptor, temporary = folder.create(name)
    try:
        with writing(path, own=folder.path / temporary):
            yield descriptor
            os.fsync(descriptor)
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode & ~_umask())
            folder.replace(temporary, name)
    except BaseException:
        with suppress(OSError):
            folder.unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def json_bytes(value: object) -> bytes:
    """Indented JSON in UTF-8: the one form in which `write_json` writes a value."""
    # A file name that is not valid UTF-8 is written with escapes that JSON can hold.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON in UTF-8."""
    with atomic_write(path) as file:
        file.write(json_bytes(value))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path` and rename it to `path` when the block succeeds.

    `path` must be missing or empty: call `new_folder` first. If the block raises, nothing is kept.

    Yields:
        A path of the temporary folder. On Linux it leads to the folder itself, whatever happens to
        the names above; elsewhere it is the folder's name, which cannot be guessed.

    Raises:
        WriteError: if something in the folder cannot be written, for example on a full disk.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parent = Folder(path.parent)
        temporary = parent.create_folder(path.name)
    except OSError as error:
        raise WriteError(path, error, NOTHING_KEPT) from error
    with parent:
        try:
            with writing(path, own=path.parent / temporary):
                with Folder(path.parent / temporary, parent.open_folder(temporary)) as folder:
                    yield from _written(path, folder)
                parent.replace_folder(temporary, path.name)
        except WriteError as error:  # of the folder, or of a file in it under its temporary name
            raise WriteError(path, error.cause, NOTHING_KEPT) from error
        finally:
            parent.remove_folder(temporary)


def _written(path: Path, folder: Folder) -> Iterator[Path]:
    """Yield where to write; then make all of it durable."""
    inside = folder.path
    if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
        inside = Path(f"/proc/{os.getpid()}/fd/{folder.handle}")
    with writing(path, own=inside):
        yield inside
        for file in inside.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        os.chmod(inside, 0o777 & ~_umask())  # until now only this user could enter it


def new_folder(
    path: Path,
    what: str,
    hint: str = "choose another name or remove it",
    *,
    option: str = "--out",
) -> None:
    """Check that `path` can become a new folder: nothing is ever overwritten.

    Args:
        path: must be missing or an empty folder.
        what: what the folder is for, named in the error.
        hint: what the user can do if the folder exists.
        option: the option that named the folder.

    Raises:
        EdgelungError: if `path` holds something or cannot be created.
    """
    named, path = f"{option} {path}", path.absolute()
    with writing(path):  # a folder above it may not be entered
        if (path.exists() or path.is_symlink()) and not _is_empty_folder(path):
            raise EdgelungError(
                f"{named} already exists; expected a new folder for the {what}; {hint}"
            )
        parent = next(folder for folder in path.parents if folder.exists())
    _check_parent(parent, named)


def check_output_file(path: Path, option: str = "--out") -> None:
    """Check, before the work, that `path` can be written as a file.

    Args:
        path: the file; if it exists, it will be replaced.
        option: the option that named it, for the error.

    Raises:
        EdgelungError: if `path` is a folder, a link, a FIFO or a device (also /dev/null), or its
            folder is missing or not writable.
    """
    named, parent = f"{option} {path}", path.absolute().parent
    if path.is_dir() and not path.is_symlink():
        raise EdgelungError(f"{named} is a folder; expected the name of a file to write")
    if not parent.exists():
        raise EdgelungError(
            f"{named}: the folder {path.parent} does not exist; create it or name another file"
        )
    _check_parent(parent, named)
    with writing(path), Folder(parent) as folder:
        folder.check_regular(path.name, named)


def _check_parent(parent: Path, named: str) -> None:
    if not parent.is_dir():
        raise EdgelungError(f"{named}: {parent} is not a folder; name another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise EdgelungError(
            f"{named}: you have no permission to write to the folder {parent}, or it is "
            "read-only; change that or name another place"
        )
    try:  # some places forbid it whatever the permissions say: /proc, a share, a full disk
        os.rmdir(tempfile.mkdtemp(prefix=".", suffix=TEMPORARY_SUFFIX, dir=parent))
    except OSError as error:
        raise WriteError(parent, error) from error


def _concerns(error: OSError, own: Path) -> bool:
    """True if the error is about `own`, something in it or a folder above it, or names no file."""
    if not isinstance(error.filename, str | bytes):
        return True
    named, path = (Path(os.path.abspath(os.fsdecode(name))) for name in (error.filename, own))
    return named.is_relative_to(path) or path.is_relative_to(named)


def _text(error: OSError) -> str:
    return error.strerror or one_line(error)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _umask() -> int:
    mask = os.umask(0)  # the umask can only be read by setting it
    os.umask(mask)
    return mask
