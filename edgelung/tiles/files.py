"""Reading a file's bytes, and telling by name or first bytes what it is."""

import mmap
import os
import stat
from collections.abc import Callable
from contextlib import closing
from functools import partial

from edgelung.core.errors import one_line
from edgelung.core.folder import HAS_FOLDER_CALLS
from edgelung.tiles.budget import DECODING
from edgelung.tiles.errors import NOT_A_TILE, Status, TileError
from edgelung.tiles.find import LEADS_OUT, SLIDE_SUFFIXES, FoundFile, open_within
from edgelung.tiles.tiff_directory import TIFF_MARKS, directories

MAX_BYTES = 512 * 2**20


def read_bytes(
    path: str | os.PathLike[str], first: int = -1, open_file: Callable[[], int] | None = None
) -> bytes:
    """Read a file, or its `first` bytes only.

    `open_file` returns a descriptor of the file; None opens `path`.

    Raises TileError `unreadable`, `empty`, `too-large`, or `slide` where the name or, above
    MAX_BYTES, the content says that it is one. A `first` is read from any file.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not hang the run.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
        handle = open_file() if open_file else os.open(path, flags)
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            os.close(handle)
            raise TileError(Status.UNREADABLE, "not a regular file")
        with os.fdopen(handle, "rb") as file:
            if first < 0:
                _check_slide(path, file.fileno(), info.st_size)
                check_length(info.st_size)
            data = file.read(first)
            now = os.fstat(file.fileno())
            if first < 0 and (now.st_size, now.st_mtime_ns) != (info.st_size, info.st_mtime_ns):
                raise TileError(Status.UNREADABLE, "the file was changed while it was read")
    except (OSError, ValueError) as error:  # ValueError: a NUL in a listed name
        reason = getattr(error, "strerror", None) or one_line(error)
        raise TileError(Status.UNREADABLE, reason) from error
    check_bytes(data)
    return data


def check_bytes(data: bytes) -> None:
    """Raise TileError `empty` for a file without bytes."""
    if not data:
        raise TileError(Status.EMPTY, "the file holds no bytes")


def check_length(length: int) -> None:
    """Reserve memory for a large file; raises TileError `too-large` for one over MAX_BYTES."""
    if length > MAX_BYTES:
        raise TileError(Status.TOO_LARGE, f"{length} bytes; the limit is {MAX_BYTES}")
    DECODING.reserve_file(length)


def _check_slide(path: str | os.PathLike[str], handle: int, length: int) -> None:
    """Raise TileError `slide` for a slide's name, or for a slide of more than MAX_BYTES."""
    suffix = "." + os.fsdecode(path).rpartition(".")[2].lower()
    named = suffix in SLIDE_SUFFIXES
    if not length or not (named or length > MAX_BYTES):
        return
    described = ""
    with closing(mmap.mmap(handle, length, access=mmap.ACCESS_READ)) as data:
        if data[:4] in TIFF_MARKS:
            from edgelung.tiles.tiff_pages import describe_slide  # reads XML: for TIFF alone

            try:
                described = describe_slide(directories(data))
            except TileError:
                described = ""
    if described or named:
        name = f"a whole slide by its name ({suffix}), {NOT_A_TILE}"
        raise TileError(Status.SLIDE, described or name)


def read_found(file: FoundFile, first: int = -1) -> bytes:
    """Read a file that `find_files` found, or its `first` bytes only.

    Raises TileError as `read_bytes` does, and `skipped` if a link that leads out of the folder has
    replaced the file since it was found.
    """
    if file.inside is None or not HAS_FOLDER_CALLS:
        return read_bytes(file.location, first)
    return read_bytes(file.location, first, partial(_open_found, file.location, file.inside))


def _open_found(location: str, inside: tuple[str, ...]) -> int:
    handle = open_within(location, inside)
    if handle is None:
        raise TileError(Status.SKIPPED, LEADS_OUT)
    return handle


def looks_like_image(file: FoundFile) -> bool:
    """Whether a file whose name says nothing begins as an image does."""
    try:
        return looks_like(read_found(file, 16))
    except TileError:
        return False


def looks_like(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG, PNG, TIFF or WebP does (BMP's two letters say little)."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", *TIFF_MARKS))
