"""Files and folders that are written whole or not at all, file locks, and SHA-256.

Every room writes its results through `atomic_write`, `atomic_folder` or `write_json`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgelung.core.errors import EdgelungError

# Suffixes of files that a run has not finished yet. Code that lists a folder skips them.
TEMPORARY_SUFFIX = ".edgelung-tmp"
JOURNAL_SUFFIX = ".edgelung-journal"
OWN_SUFFIXES = (TEMPORARY_SUFFIX, JOURNAL_SUFFIX)


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
        EdgelungError: if the folder cannot be written to.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX
        )
    except OSError as error:
        raise EdgelungError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, mode, encoding=encoding, errors=errors, newline=newline) as file:
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

    `path` must be missing or empty: call `new_folder` first.

    Raises:
        EdgelungError: if the parent folder cannot be written to.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise EdgelungError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o777 & ~_umask())  # mkdtemp creates folders that only their owner enters
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def new_folder(path: Path, what: str, hint: str = "choose another name or remove it") -> None:
    """Check that `path` can become a new folder: nothing is ever overwritten.

    Args:
        path: must be missing or an empty folder.
        what: what the folder is for, named in the error.
        hint: what the user can do if the folder exists.

    Raises:
        EdgelungError: if `path` holds something or cannot be created.
    """
    path = path.absolute()
    if (path.exists() or path.is_symlink()) and not _is_empty_folder(path):
        raise EdgelungError(f"{path} already exists; expected a new folder for the {what}; {hint}")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise EdgelungError(f"cannot write {path}: {parent} is not a folder you can write to")


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


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _umask() -> int:
    mask = os.umask(0)  # the umask can only be read by setting it
    os.umask(mask)
    return mask
