"""How the output reaches the disk or a pipe: in one step, or without a buffer."""

import hashlib
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import IO

from edgelung.core.errors import EdgelungError
from edgelung.core.files import WriteError, replacing
from edgelung.core.folder import Folder


def write_hashed(folder: Folder, name: str, write: Callable[[IO[bytes]], None]) -> str:
    """Write a file of an open folder in one step, through a temporary file of a random name.

    Returns:
        The SHA-256 of the bytes that were written, taken before the file has its name.
    """
    with replacing(folder, name) as descriptor:
        with open(descriptor, "wb", closefd=False) as file:
            write(file)
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(folder: Folder, name: str, write: Callable[[IO[bytes]], None]) -> str:
    """As `write_hashed`, for a run that has a journal.

    What killed runs left is removed first: the journal's lock keeps a second writer away.
    """
    folder.remove_leftovers(name)
    try:
        return write_hashed(folder, name, write)
    except WriteError as error:
        raise EdgelungError(
            f"{error.fault}; every row is kept in the journal. {error.remedy}, then run the same "
            "command with --resume"
        ) from error


class UnbufferedWriter:
    """Writes to a file descriptor without Python's buffer, so that an error shows at once."""

    def __init__(self, handle: int | None, name: str) -> None:
        self._handle, self._name = handle, name
        self._bytes_written = 0

    def write(self, data: bytes) -> int:
        """Write all of `data`. Raises EdgelungError if the reader is gone or the disk is full."""
        rest = memoryview(data)
        try:
            if self._handle is None:
                raise BrokenPipeError
            while rest:
                try:
                    rest = rest[os.write(self._handle, rest) :]
                except BlockingIOError:  # the other end made the pipe non-blocking
                    select.select([], [self._handle], [])
        except BrokenPipeError as error:
            raise EdgelungError(
                f"{self._name} was closed after {self._bytes_written} bytes of rows; nothing more "
                "was predicted"
            ) from error
        except OSError as error:
            failed = WriteError(Path(self._name), error)
            raise EdgelungError(f"{failed.fault}. {failed.remedy}, then run it again") from error
        self._bytes_written += len(data)
        return len(data)
