"""How the output reaches the disk or a pipe: in one step, or without a buffer."""

import os
import select
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgelung.core.errors import EdgelungError
from edgelung.core.files import TEMPORARY_SUFFIX, WriteError


def write_whole(output: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write `output` in one step, through a temporary sibling with a fixed name.

    The fixed name lets the next run overwrite what a killed run left. The journal's lock keeps a
    second writer away.
    """
    part = temporary_sibling(output)
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            failed = WriteError(output, error)
            raise EdgelungError(
                f"{failed.fault}; every row is kept in the journal. {failed.remedy}, then run the "
                "same command with --resume"
            ) from error
        raise


def temporary_sibling(output: Path) -> Path:
    """The name that `output` has until it is complete. Listing a folder passes over it."""
    return output.with_name(f".{output.name}{TEMPORARY_SUFFIX}")


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
