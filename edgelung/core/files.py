"""Files and folders that are written whole or not at all, file locks, and SHA-256.

Every room writes its results through `atomic_write`, `atomic_folder` or `write_json`, or at least
within `writing`: an error of the disk becomes one line that names the path.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgelung.core.errors import EdgelungError, one_line

# Suffixes of files that a run has not finished yet. Code that lists a folder skips them.
TEMPORARY_SUFFIX = ".edgelung-tmp"
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
    options are those of `open`.

    Raises:
        WriteError: if the file cannot be written, for example on a full disk.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX
        )
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        with writing(path, own=Path(temporary)):
            with os.fdopen(
                descriptor, mode, encoding=encoding, errors=errors, newline=newline
            ) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp creates files that only their owner can read; results are not secret.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON in UTF-8."""
    # A file name that is not valid UTF-8 is written with escapes that JSON can hold.
    with atomic_write(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a temporary folder beside `path` and rename it to `path` when the block succeeds.

    `path` must be missing or empty: call `new_folder` first. If the block raises, nothing is kept.

    Raises:
        WriteError: if something in the folder cannot be written, for example on a full disk.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise WriteError(path, error, NOTHING_KEPT) from error
    try:
        with writing(path, own=temporary):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            # mkdtemp creates folders that only their owner enters.
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                path.rmdir()
            temporary.rename(path)
    except WriteError as error:  # of the folder, or of a file in it under its temporary name
        raise WriteError(path, error.cause, NOTHING_KEPT) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
        EdgelungError: if `path` is a folder, or its folder is missing or not writable.
    """
    named, parent = f"{option} {path}", path.absolute().parent
    if path.is_dir():
        raise EdgelungError(f"{named} is a folder; expected the name of a file to write")
    if not parent.exists():
        raise EdgelungError(
            f"{named}: the folder {path.parent} does not exist; create it or name another file"
        )
    _check_parent(parent, named)


def _check_parent(parent: Path, named: str) -> None:
    if not parent.is_dir():
        raise EdgelungError(f"{named}: {parent} is not a folder; name another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise EdgelungError(
            f"{named}: you have no permission to write to the folder {parent}, or it is "
            "read-only; change that or name another place"
        )


def locked(path: Path, busy: str) -> int:
    """Open `path` for reading and writing, and lock it for this process. Never waits.

    The file is created if it is missing. The lock is held until the descriptor is closed; a killed
    process releases it. The owner may delete the file before it releases the lock. On Windows, and
    on network shares without locks, the file is opened without a lock.

    Args:
        path: the file to open.
        busy: message of the error if another process holds the lock.

    Returns:
        A file descriptor, to be closed with `os.close`.

    Raises:
        EdgelungError: `busy`.
        OSError: if the file cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise EdgelungError(busy) from error
        except (ImportError, OSError):  # Windows, or a share without locks
            return descriptor
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:  # the previous owner exited and deleted the file
            pass
        os.close(descriptor)


@contextmanager
def wait_for_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the private file `path` while the block runs; wait for it if necessary.

    `on_wait` is called once before waiting. The file stays. Windows has no such lock: there the
    block runs at once.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    with os.fdopen(descriptor, "r+b") as file:  # closing the file releases the lock
        try:
            import fcntl
        except ImportError:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
