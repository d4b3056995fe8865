"""Files written whole or not at all, and their hashes."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgelung.core.errors import EdgelungError

# Of files under way; whoever lists a folder passes them over.
TEMPORARY_SUFFIX = ".edgelung-tmp"
JOURNAL_SUFFIX = ".edgelung-journal"
OWN_SUFFIXES = (TEMPORARY_SUFFIX, JOURNAL_SUFFIX)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of the file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def atomic_write(path: Path, mode: str = "wb", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path`; on leaving without an error it takes the name `path`.

    A killed process leaves the old file or none, never half a file.
    """
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX
        )
    except OSError as error:
        raise EdgelungError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes private files; results are not secrets
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    # What is no UTF-8 in a file's name becomes an escape that JSON knows.
    with atomic_write(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder; on leaving without an error it takes the name `path`.

    `path` must not hold anything (see `new_folder`).
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise EdgelungError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        folder.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        if path.exists():
            path.rmdir()
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_folder(path: Path, what: str, hint: str = "choose another name or remove it") -> None:
    """Refuse a `path` that already holds something, so that nothing is written over."""
    path = path.absolute()
    if (path.exists() or path.is_symlink()) and not _is_empty_folder(path):
        raise EdgelungError(f"{path} already exists; expected a new folder for the {what}; {hint}")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise EdgelungError(f"cannot write {path}: {above} is no folder that can be written to")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def locked(path: Path, busy: str) -> int:
    """A descriptor of the file, made if need be, that this process alone has until it is closed.

    Raises EdgelungError `busy` where another has it. No lock where the system or share has none.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise EdgelungError(busy) from error
        except (ImportError, OSError):  # Windows; a share without locks
            return handle
        try:
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:  # who had it has just ended, and removed it
            pass
        os.close(handle)
