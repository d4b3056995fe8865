"""The bytes of an open file, read where they are asked for.

Not mapped into memory: a mapped file that another process shortens ends this one with a signal.
"""

import os
import threading
from pathlib import Path

from edgelung.core.errors import one_line
from edgelung.core.folder import open_for_reading
from edgelung.tiles.errors import Status, TileError


class FileBytes:
    """Bytes by slices, as of `bytes`; several threads may read.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises OSError, also for anything but a regular file."""
        self.path = path
        self._handle = -1
        self._handle = open_for_reading(path)
        self._length = os.fstat(self._handle).st_size
        self._lock = threading.Lock()  # of the position, where the system has no pread

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._length)
        return self.read(start, max(stop - start, 0))

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on.

        Raises:
            TileError: `truncated` where the file ends before, `unreadable` where the system cannot
                read it.
        """
        if offset + count > self._length:
            raise TileError(Status.TRUNCATED, "its data lies beyond the end of the file")
        try:
            data = self._pread(offset, count)
        except OSError as error:
            raise TileError(Status.UNREADABLE, error.strerror or one_line(error)) from error
        if len(data) != count:
            raise TileError(Status.TRUNCATED, "the file became shorter while it was read")
        return data

    def will_need(self, start: int, end: int) -> None:
        """Tell the system that these bytes are read next, so that it fetches them in order."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle, start, end - start, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        self.close()

    def _pread(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            data = os.pread(self._handle, count, offset)
            while 0 < len(data) < count:  # the system reads at most 2 GiB at once
                more = os.pread(self._handle, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        with self._lock:
            os.lseek(self._handle, offset, os.SEEK_SET)
            return os.read(self._handle, count)
