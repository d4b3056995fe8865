"""A folder that is opened once: what is made, renamed or removed in it stays in that folder.

A path is looked up anew by each call, so another user who may rename a folder above can lead two
calls to two places. A `Folder` holds the folder itself and takes plain names. New files have random
names and are created with O_EXCL; no link is ever followed to a file that is written, and only
regular files are replaced. `edgelung.core.files` writes through it, and so do the journal, locks
and the cache.

Windows has no calls relative to a folder: there the path is used.
"""

import errno
import os
import re
import secrets
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from edgelung.core.errors import EdgelungError

TEMPORARY_SUFFIX = ".edgelung-tmp"  # of files that are not finished; listing a folder skips them
# O_NONBLOCK: opening a FIFO must not wait for its other end.
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
HAS_FOLDER_CALLS = {os.open, os.stat, os.unlink, os.rename} <= os.supports_dir_fd
MAX_NAME_BYTES = 255
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Folder:
    """An open folder.

    Attributes:
        path: its name, for messages.
        handle: file descriptor; None on Windows.
    """

    def __init__(self, path: Path, handle: int | None = None) -> None:
        """Open the folder at `path`; links in the path are followed. Raises OSError.

        `handle`: a descriptor of the folder that is already open; it is closed with the object.
        """
        self.path = path
        if handle is None and HAS_FOLDER_CALLS:
            flags = os.O_DIRECTORY | os.O_CLOEXEC
            try:
                handle = os.open(path, os.O_RDONLY | flags)
            except PermissionError:  # a folder may be written to without being listed
                handle = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | flags)
        self.handle = handle
        self._close = weakref.finalize(self, os.close, handle) if handle is not None else None

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """Open a file in the folder without following a link. Returns a descriptor."""
        with self._naming(name):
            return os.open(self._at(name), flags | NO_LINK, mode, dir_fd=self.handle)

    def open_regular(
        self, name: str, flags: int = os.O_RDONLY, *, owned: bool = False, mode: int = 0o600
    ) -> int:
        """Open a regular file without following a link.

        Args:
            name: of a file in this folder.
            flags: as for `os.open`. With O_CREAT, a missing file is created with O_EXCL.
            owned: the file must belong to this user and have one name only: a hard link could be
                another's file.
            mode: of a created file.

        Returns:
            A descriptor.

        Raises:
            EdgelungError: it is a link, a FIFO, a device or a folder; or, with `owned`, another
                user's or one of several names.
            OSError: it cannot be opened.
        """
        while True:
            with suppress(FileExistsError):
                if flags & os.O_CREAT:
                    return self.open(name, flags | os.O_EXCL, mode)
            try:
                handle = self.open(name, flags & ~os.O_CREAT)
            except FileNotFoundError:
                if flags & os.O_CREAT:  # the previous owner has just deleted it
                    continue
                raise
            except OSError:  # a link (ELOOP), a socket (ENXIO), a folder (EISDIR)
                self.check_regular(name)
                raise
            try:
                self._check_opened(name, os.fstat(handle), owned=owned)
            except BaseException:
                os.close(handle)
                raise
            return handle

    def read(self, name: str, most: int = -1) -> bytes:
        """Read a regular file, or its first `most` bytes; a link is not followed.

        Raises EdgelungError for anything but a regular file, OSError if it cannot be read.
        """
        handle = self.open_regular(name)
        with os.fdopen(handle, "rb") as file:
            return file.read(most)

    def check_regular(self, name: str, called: str = "") -> None:
        """Raise EdgelungError if `name` is there and is no regular file.

        `called`: what the file is called in the message; default: its path.
        """
        with suppress(FileNotFoundError):
            kind = stat.S_IFMT(self.stat(name).st_mode)
            if kind != stat.S_IFREG:
                raise EdgelungError(
                    f"{called or self.path / name} is {KINDS.get(kind, 'no file')}; expected a "
                    "regular file; it was left alone: remove it or choose another name"
                )

    def stat(self, name: str) -> os.stat_result:
        """What `name` itself is; a link is not followed."""
        with self._naming(name):
            return os.stat(self._at(name), dir_fd=self.handle, follow_symlinks=False)

    def create(self, name: str) -> tuple[int, str]:
        """Create a temporary file for `name`. Returns its descriptor and its random name.

        Only this user can open it.
        """
        while True:
            temporary = _random_name(name)
            with suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                return self.open(temporary, flags), temporary

    def create_folder(self, name: str) -> str:
        """Create a temporary folder for `name`, which only this user can enter: its name."""
        while True:
            temporary = _random_name(name, "")
            with suppress(FileExistsError), self._naming(temporary):
                os.mkdir(self._at(temporary), 0o700, dir_fd=self.handle)
                return temporary

    def open_folder(self, name: str) -> int | None:
        """Open a folder in this one without following a link; None on Windows."""
        if self.handle is None:
            return None
        with self._naming(name):
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | NO_LINK, dir_fd=self.handle)

    def info(self) -> os.stat_result:
        """Owner and mode of the folder itself."""
        return os.stat(self.path if self.handle is None else self.handle)

    def replace(self, source: str, target: str) -> None:
        """Rename `source` to `target`, which may be a regular file.

        Raises EdgelungError if `target` is anything else.
        """
        self.check_regular(target)
        self._rename(source, target, os.replace)

    def replace_folder(self, source: str, target: str) -> None:
        """Rename the folder `source` to `target`, which may be an empty folder."""
        with suppress(FileNotFoundError), self._naming(source):
            os.rmdir(self._at(target), dir_fd=self.handle)
        self._rename(source, target, os.rename)

    def unlink(self, name: str) -> None:
        """Remove a name, if it is there; what a link leads to stays."""
        with suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self.handle)

    def remove_folder(self, name: str) -> None:
        """Remove the folder `name` with all that is in it, as far as the system lets it."""
        shutil.rmtree(self._at(name), ignore_errors=True, dir_fd=self.handle)

    def remove_leftovers(self, name: str) -> None:
        """Remove the temporary files of `name` that killed processes of this user left."""
        # Eight characters: as edgelung 0.2.0 and before named them.
        random = "[0-9a-z_]{8}|[0-9a-f]{16}"
        pattern = re.compile(f"{re.escape(_beginning(name))}({random}){TEMPORARY_SUFFIX}")
        names: list[str] = []
        with suppress(OSError):  # a folder that cannot be listed
            names = self.names()
        for entry in names:
            if pattern.fullmatch(entry):
                with suppress(OSError):
                    info = self.stat(entry)
                    if stat.S_ISREG(info.st_mode) and _user() in (None, info.st_uid):
                        self.unlink(entry)

    def names(self) -> list[str]:
        """The names of all that is in the folder."""
        return os.listdir(self.path if self.handle is None else self.handle)

    def close(self) -> None:
        """Close the folder; calling it again does nothing."""
        if self._close:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _has(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False
        return True

    def _at(self, name: str) -> str:
        return name if self.handle is not None else str(self.path / name)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Errors of the system name the whole path, as they do without an open folder."""
        try:
            yield
        except OSError as error:
            error.filename = str(self.path / name)
            raise

    def _rename(self, source: str, target: str, call: Callable[..., None]) -> None:
        with self._naming(source):
            names = self._at(source), self._at(target)
            call(*names, src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def _check_opened(self, name: str, info: os.stat_result, *, owned: bool) -> None:
        path = self.path / name
        kind = stat.S_IFMT(info.st_mode)
        if kind != stat.S_IFREG:
            raise EdgelungError(
                f"{path} is {KINDS.get(kind, 'no file')}; expected a regular file; it was left "
                "alone: remove it or choose another name"
            )
        if owned and info.st_nlink > 1:
            raise EdgelungError(
                f"{path} has {info.st_nlink} names (hard links); expected a file of its own; it "
                "was left alone: remove it or choose another name"
            )
        if owned and info.st_uid != _user() and not self._shows_as_own(info.st_uid):
            raise EdgelungError(
                f"{path} belongs to another user (number {info.st_uid}); expected a file of "
                "yours; it was left alone: remove it or choose another name"
            )

    def _shows_as_own(self, owner: int) -> bool:
        """True if `owner` is how this file system shows this user: network shares map users."""
        if _user() is None:
            return True
        try:
            handle, probe = self.create("owner")
        except OSError:
            return False
        try:
            return os.fstat(handle).st_uid == owner
        finally:
            os.close(handle)
            self.unlink(probe)


def open_for_reading(path: str | os.PathLike[str]) -> int:
    """Open a regular file for reading; links are followed, a FIFO is never waited for.

    Returns a descriptor. Raises OSError, also for anything but a regular file.
    """
    handle = os.open(path, os.O_RDONLY | (NO_LINK & ~getattr(os, "O_NOFOLLOW", 0)))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return handle


def open_below(root: str, path: str) -> int:
    """Open what is at `path`, a real path below the folder `root`, following no link below it.

    Returns a descriptor. Raises OSError.
    """
    if not HAS_FOLDER_CALLS:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_inside(folder, os.path.relpath(path, root).split(os.sep))
    finally:
        os.close(folder)


def open_inside(folder: int, parts: Sequence[str]) -> int:
    """Open what is at `parts` below an open folder, following no link.

    Returns a descriptor. Raises OSError.
    """
    *folders, name = parts
    here = os.dup(folder)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | NO_LINK, dir_fd=here)
            os.close(here)
            here = inner
        return os.open(name, os.O_RDONLY | NO_LINK, dir_fd=here)
    finally:
        os.close(here)


def read_regular(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """Read a regular file, or its first `most` bytes. Raises OSError as `open_for_reading`."""
    with os.fdopen(open_for_reading(path), "rb") as file:
        return file.read(most)


def is_temporary_folder(name: str) -> bool:
    """Whether a folder of this name is not finished: `Folder.create_folder` made it."""
    return re.fullmatch(r"\..*\.[0-9a-f]{16}", name, re.DOTALL) is not None


def _beginning(name: str) -> str:
    """How the temporary names of `name` begin; short enough for every file system."""
    room = MAX_NAME_BYTES - 2 - 16 - len(TEMPORARY_SUFFIX)
    return f".{os.fsdecode(os.fsencode(name)[:room])}."


def _random_name(name: str, suffix: str = TEMPORARY_SUFFIX) -> str:
    return f"{_beginning(name)}{secrets.token_hex(8)}{suffix}"


def _user() -> int | None:
    """This user's number; None on Windows."""
    return os.geteuid() if hasattr(os, "geteuid") else None
