"""Locks on files: one process at a time.

A lock file may lie where others can write. It is opened without following a link, and only a
regular file of this user with one name is taken, so that nobody else's file is locked or changed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgelung.core.errors import EdgelungError
from edgelung.core.folder import Folder


def locked(folder: Folder, name: str, busy: str) -> int:
    """Open a file for reading and writing, and lock it for this process. Never waits.

    The file is created if it is missing. The lock is held until the descriptor is closed; a killed
    process releases it. The owner may delete the file before it releases the lock. On Windows, and
    on network shares without locks, the file is opened without a lock.

    Args:
        folder, name: the file to open.
        busy: message of the error if another process holds the lock.

    Returns:
        A file descriptor, to be closed with `os.close`.

    Raises:
        EdgelungError: `busy`; or the file is a link, a FIFO or a device, has other names, or
            belongs to another user.
        OSError: if the file cannot be opened.
    """
    while True:
        descriptor = folder.open_regular(name, os.O_RDWR | os.O_CREAT, owned=True, mode=0o666)
        try:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise EdgelungError(busy) from error
        except (ImportError, OSError):  # Windows, or a share without locks
            return descriptor
        try:
            if folder.stat(name).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:  # the previous owner exited and deleted the file
            pass
        os.close(descriptor)


@contextmanager
def wait_for_lock(folder: Folder, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a private file while the block runs; wait for it if necessary.

    `on_wait` is called once before waiting. The file stays. Windows has no such lock: there the
    block runs at once. Raises as `locked`, but never `busy`.
    """
    descriptor = folder.open_regular(name, os.O_RDWR | os.O_CREAT, owned=True)
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
