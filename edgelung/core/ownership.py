"""Open what is trusted because of where it lies: nobody else may change or replace it.

Whoever can write to a folder above a file can replace it, and the owner of a link can turn it. So
the path is walked from the root, one name at a time, each opened in the folder before: what is read
is what was checked, whatever others do meanwhile. Used for settings and keys, and for the private
folder of the cache.

Windows has no such calls and other permissions: access lists protect both folders of settings.
"""

import os
import stat
from collections import deque
from contextlib import suppress
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.core.folder import HAS_FOLDER_CALLS, NO_LINK, Folder, read_regular

MAX_LINKS = 40  # as Linux
OWN_REMEDY = "move it to a folder of yours"
# O_PATH: a folder may be entered without being listed.
_ENTER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | NO_LINK


def read_guarded(path: Path, what: str, most: int) -> bytes:
    """Read the first `most` bytes of a file that only this user and root can change.

    Links are followed if only this user and root can turn them. A folder such as /tmp, where nobody
    can replace the files of others (sticky bit), may be above the file.

    Args:
        path: the file.
        what: the word for it in errors.
        most: limit of the bytes.

    Raises:
        EdgelungError: if others can; it names the file or folder, and the command that helps. Also
            for anything but a regular file.
        OSError: if the file or something above it cannot be opened.
    """
    if not HAS_FOLDER_CALLS:
        return read_regular(path, most)
    handle = _open(path, what)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise EdgelungError(f"{path} is no regular file; expected the {what} in a file")
    with os.fdopen(handle, "rb") as file:
        return file.read(most)


def read_secret(path: Path, what: str, most: int) -> bytes:
    """As `read_guarded`, of a file that nobody but its owner (this user or root) may read either.

    Raises EdgelungError for a file that others can read, too.
    """
    data = read_guarded(path, what, most)
    info = path.stat()
    if HAS_FOLDER_CALLS and others_can_read(info):
        raise EdgelungError(
            f"others can read the {what} {path} (mode {stat.S_IMODE(info.st_mode):o}); run: "
            f"chmod 600 '{path}'"
        )
    return data


def others_can_read(info: os.stat_result) -> bool:
    """True if the mode of a secret lets anybody but its owner and root read it.

    The group of a file of root:root is root's. systemd makes its credentials so, with mode 0440:
    the group's right stands for an access list, which lets in the user of the service.
    """
    of_root = info.st_uid == info.st_gid == 0
    return bool(info.st_mode & (0o007 if of_root else 0o077))


def guarded_names(path: Path, what: str) -> list[str] | None:
    """The names in a folder that only this user and root can change; None for a file.

    Raises as `read_guarded`.
    """
    if not HAS_FOLDER_CALLS:
        return sorted(os.listdir(path)) if path.is_dir() else None
    handle = _open(path, what)
    try:
        return sorted(os.listdir(handle)) if stat.S_ISDIR(os.fstat(handle).st_mode) else None
    finally:
        os.close(handle)


def open_private(path: Path, what: str, remedy: str) -> Folder:
    """Open a folder that only this user can enter; create it if it is missing.

    Args:
        path: of the folder; it must not be a link itself, folders above it may be.
        what: the word for it in errors.
        remedy: how the user can name another folder, for errors.

    Raises:
        EdgelungError: others can enter the folder, or change it or a folder above it.
        OSError: it cannot be created or entered.
    """
    path = Path(os.path.abspath(path))
    if not HAS_FOLDER_CALLS:
        path.mkdir(parents=True, exist_ok=True)
        return Folder(path)
    folder = Folder(path, _open(path, what, remedy, create=True))
    info = folder.info()
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise EdgelungError(
            f"the {what} {path} is not a folder that only you can enter (mode "
            f"{stat.S_IMODE(info.st_mode):o}, owner {info.st_uid}); empty it and run: "
            f"chmod 700 '{path}', or {remedy}"
        )
    return folder


def _open(path: Path, what: str, remedy: str = OWN_REMEDY, *, create: bool = False) -> int:
    """Walk to `path` and open it for reading. Returns a descriptor.

    `create`: `path` is a folder; missing folders are created, and it may not be a link itself.
    """
    names, links, place = deque(path.absolute().parts[1:]), 0, Path("/")
    here = os.open(place, _ENTER if names else os.O_RDONLY)
    try:
        while names:
            _check(os.fstat(here), place, path, what, remedy, above=True)
            name = names.popleft()
            found = _stat(name, here, create=create)
            if stat.S_ISLNK(found.st_mode) and (names or not create):
                links += 1
                if links > MAX_LINKS:
                    raise EdgelungError(
                        f"{path} leads through more than {MAX_LINKS} links; {remedy}"
                    )
                _check_owner(found, place / name, path, what, remedy)
                target = Path(os.readlink(name, dir_fd=here))
                names.extendleft(reversed(target.parts[target.is_absolute() :]))
                if not target.is_absolute():
                    names = names or deque(["."])  # the folder itself
                    continue
                inner, place = os.open("/", _ENTER if names else os.O_RDONLY), Path("/")
            else:
                last = os.O_RDONLY | NO_LINK | (os.O_DIRECTORY if create else 0)
                inner = os.open(name, _ENTER if names else last, dir_fd=here)
                place = place.parent if name == ".." else place / name
            os.close(here)
            here = inner
        if not create:  # `open_private` asks for more
            _check(os.fstat(here), place, path, what, remedy, above=False)
    except BaseException as error:
        os.close(here)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    return here


def _stat(name: str, folder: int, *, create: bool) -> os.stat_result:
    """What `name` in an open folder is; with `create` a missing one becomes a private folder."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        if not create:
            raise
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _check(
    info: os.stat_result, place: Path, path: Path, what: str, remedy: str, *, above: bool
) -> None:
    """Raise EdgelungError if others can change what is at `place`; `above`: `path` is below it."""
    _check_owner(info, place, path, what, remedy)
    if info.st_mode & 0o022 and not (above and info.st_mode & stat.S_ISVTX):
        raise EdgelungError(
            f"others can write to {place} (mode {stat.S_IMODE(info.st_mode):o}) and so change "
            f"the {what} {path}; run: chmod go-w '{place}', or {remedy}"
        )


def _check_owner(info: os.stat_result, place: Path, path: Path, what: str, remedy: str) -> None:
    if info.st_uid not in (0, os.geteuid()):
        raise EdgelungError(
            f"{place} belongs to the user {info.st_uid}, who could change the {what} {path}; "
            f"expected you or root as the owner: {remedy}"
        )
