"""What another user can put where edgelung will write: links, FIFOs, sockets, folders."""

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

SECRET = b"somebody else's work\n"


def symlink(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not-there-yet"))


def hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # the name of a socket must be short
        os.close(here)


def folder(path: Path, victim: Path) -> None:
    path.mkdir()


def endless(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/zero")


Plant = Callable[[Path, Path], None]
PLANTS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (symlink, dangling, hard_link, fifo, unix_socket, folder, endless)
}
NOT_REGULAR = [name for name in PLANTS if name != "hard_link"]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")


def exchange(first: Path, second: Path) -> None:
    """Swap two names in one step, as Linux can: neither is ever missing."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        pytest.skip("renameat2 is not here")
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(first), here, os.fsencode(second), swap):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first))


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder with the bytes of regular files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in sorted(folder.rglob("*"))
    }
