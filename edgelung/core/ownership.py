"""Read files that are trusted because of where they lie: nobody else may change or replace them.

Whoever can write to a folder above a file can replace it, and the owner of a link can turn it. So
the path is walked from the root, one name at a time, each opened in the folder before: what is read
is what was checked, whatever others do meanwhile.

Windows has no such calls and other permissions: access lists protect both folders of settings.
"""

import os
import stat
from collections import deque
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.core.folder import HAS_FOLDER_CALLS, NO_LINK, read_regular
from edgelung.core.private import MAX_LINKS

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


def _open(path: Path, what: str) -> int:
    """Walk to `path` and open it for reading. Returns a descriptor."""
    names, links, place = deque(path.absolute().parts[1:]), 0, Path("/")
    here = os.open(place, _ENTER if names else os.O_RDONLY)
    try:
        while names:
            _check(os.fstat(here), place, path, what, above=True)
            name = names.popleft()
            found = os.stat(name, dir_fd=here, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > MAX_LINKS:
                    raise EdgelungError(f"{path} leads through more than {MAX_LINKS} links")
                _check_owner(found, place / name, path, what)
                target = Path(os.readlink(name, dir_fd=here))
                names.extendleft(reversed(target.parts[target.is_absolute() :]))
                if not target.is_absolute():
                    names = names or deque(["."])  # the folder itself
                    continue
                inner, place = os.open("/", _ENTER if names else os.O_RDONLY), Path("/")
            else:
                inner = os.open(name, _ENTER if names else os.O_RDONLY | NO_LINK, dir_fd=here)
                place = place.parent if name == ".." else place / name
            os.close(here)
            here = inner
        _check(os.fstat(here), place, path, what, above=False)
    except BaseException as error:
        os.close(here)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    return here


def _check(info: os.stat_result, place: Path, path: Path, what: str, *, above: bool) -> None:
    """Raise EdgelungError if others can change what is at `place`; `above`: `path` is below it."""
    _check_owner(info, place, path, what)
    if info.st_mode & 0o022 and not (above and info.st_mode & stat.S_ISVTX):
        raise EdgelungError(
            f"others can write to {place} (mode {stat.S_IMODE(info.st_mode):o}) and so change "
            f"the {what} {path}; run: chmod go-w '{place}'"
        )


def _check_owner(info: os.stat_result, place: Path, path: Path, what: str) -> None:
    if info.st_uid not in (0, os.geteuid()):
        raise EdgelungError(
            f"{place} belongs to the user {info.st_uid}, who could change the {what} {path}; "
            "expected you or root as the owner: move it to a folder of yours"
        )
