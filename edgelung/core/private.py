"""Open a folder that only this user, or root, can change, whatever others do meanwhile.

Whoever can write to a folder above can put another folder in its place. So the path is walked from
the root, one name at a time, each opened in the folder before. At each step nobody but this user
and root may be able to change what the next name leads to; a link counts like the folders on its
way. What is opened at the end is held, so that later calls stay in it.
"""

import os
import stat
from collections import deque
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.core.folder import HAS_FOLDER_CALLS, Folder

MAX_LINKS = 40  # as Linux
ROOT = 0  # the superuser's number


def open_private(path: Path, remedy: str) -> Folder:
    """Create the folder if it is missing, and open it.

    Args:
        path: of the folder; it must not be a link itself, folders above it may be.
        remedy: how the user can name another folder, for the errors.

    Raises:
        EdgelungError: others can enter the folder, or change it or a folder above it.
        OSError: it cannot be created or entered.
    """
    path = Path(os.path.abspath(path))
    if not HAS_FOLDER_CALLS:  # Windows: the access list of the profile folder protects it
        path.mkdir(parents=True, exist_ok=True)
        return Folder(path)
    here = Folder(Path("/"))
    names, links = deque(path.parts[1:]), 0
    while names:
        _check_parent(here, remedy)
        name = names.popleft()
        if names and (target := _read_link(here, name, remedy)) is not None:
            links += 1
            if links > MAX_LINKS:
                raise EdgelungError(f"{path} leads through more than {MAX_LINKS} links; {remedy}")
            parts = Path(os.path.normpath(here.path / target)).parts
            names.extendleft(reversed(parts[1:]))
            here = Folder(Path("/"))
        else:
            here = here.enter(name)
    _check_private(here, remedy)
    return here


def _check_parent(folder: Folder, remedy: str) -> None:
    """Raise EdgelungError if others can rename what is in the folder.

    In a sticky folder (such as /tmp) only the owner of an entry can rename it: the owner of each
    entry on the way is checked in turn.
    """
    info = folder.info()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid not in (ROOT, os.geteuid()):
        raise EdgelungError(
            f"{folder.path} belongs to another user (number {info.st_uid}), who can replace what "
            f"is in it, and the cache holds executable code; {remedy}"
        )
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise EdgelungError(
            f"others can write to {folder.path} (mode {mode:o}), and the cache holds executable "
            f"code; run: chmod go-w '{folder.path}', or {remedy}"
        )


def _check_private(folder: Folder, remedy: str) -> None:
    info = folder.info()
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid != os.geteuid() or mode & 0o077:
        raise EdgelungError(
            f"the cache {folder.path} is not a folder that only you can enter (mode {mode:o}, "
            f"owner {info.st_uid}), and it holds executable code; empty it and run: "
            f"chmod 700 '{folder.path}', or {remedy}"
        )


def _read_link(folder: Folder, name: str, remedy: str) -> str | None:
    """Where a link leads; None if `name` is no link. Raises EdgelungError for another user's."""
    try:
        info = folder.stat(name)
    except FileNotFoundError:
        return None
    if not stat.S_ISLNK(info.st_mode):
        return None
    if info.st_uid not in (ROOT, os.geteuid()):
        raise EdgelungError(
            f"{folder.path / name} is a link of another user (number {info.st_uid}), and the cache "
            f"holds executable code; {remedy}"
        )
    return os.readlink(name, dir_fd=folder.handle)
