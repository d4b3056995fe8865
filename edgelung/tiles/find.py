"""Find the files of a folder, each once, in a fixed order, and the class a folder name gives."""

import logging
import os
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import OWN_SUFFIXES
from edgelung.core.folder import HAS_FOLDER_CALLS, open_below
from edgelung.core.own_folders import own_kind

logger = logging.getLogger(__name__)

# Whole slides by their names: what these hold is no tile, even where it opens as an image (a .mrxs
# is the JPEG of a thumbnail). DICOM (.dcm) is told by its content.
SLIDE_SUFFIXES = frozenset(
    (
        *(".svs", ".svslide", ".ndpi", ".ndpis", ".scn", ".mrxs", ".vms", ".vmu", ".vsi", ".bif"),
        *(".czi", ".isyntax", ".qptiff", ".afi"),
    )
)
# What is read, and what is clearly an image but not read: that gets a row with the reason.
IMAGE_SUFFIXES = SLIDE_SUFFIXES | frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp"),
        *(".btf", ".tf8", ".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".avif", ".heic", ".dcm"),
    )
)
# Folders that systems add to data: archives made by macOS, recycle bins, thumbnails, old copies.
LEFTOVER_FOLDERS = frozenset(
    (
        # macOS
        *("__MACOSX", ".AppleDouble", ".Trash", ".Trashes", ".Spotlight-V100", ".fseventsd"),
        *(".DocumentRevisions-V100", ".TemporaryItems", "Network Trash Folder"),
        # Windows
        *("$RECYCLE.BIN", "RECYCLER", "System Volume Information"),
        # Synology, QNAP
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".@__thumb"),
        # Linux, file servers, Jupyter
        *("lost+found", ".Trash-1000", ".thumbnails", ".snapshot", ".ipynb_checkpoints"),
    )
)
# The reason in the row of such a link.
LEADS_OUT = "a link that leads out of the folder; --follow-links follows it"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a folder.

    `path` is the name of its row: relative to the folder, with forward slashes. `location` is where
    to open it. `reason` is set if the entry could not be listed; `listed` if the user named this
    file directly; `leads_out` if it is a link that leads out of the folder, which is not followed.
    `inside`: the real paths that it may lie in, with a slash at the end; None: it may lie anywhere.
    """

    path: str
    location: str
    reason: str = ""
    listed: bool = False
    leads_out: bool = False
    inside: tuple[str, ...] | None = None

    @property
    def is_image(self) -> bool:
        """Whether the name is that of an image; the content is checked when it is read."""
        if self.leads_out:
            return False
        return self.listed or os.path.splitext(self.path)[1].lower() in IMAGE_SUFFIXES

    @property
    def leftover_of(self) -> str:
        """Name of the folder that a system made and this file lies in; '' for other files."""
        if self.listed:
            return ""
        folders = self.path.split("/")[:-1]  # of a folder that was not listed: itself too
        return next((name for name in folders if name in LEFTOVER_FOLDERS), "")


def find_files(
    folder: Path,
    entered: set[tuple[int, int]] | None = None,
    *,
    follow_links: bool = False,
    beside: Sequence[Path] = (),
) -> Iterator[FoundFile]:
    """Yield every file below `folder`, sorted within each folder.

    `folder` itself may be a link. Links in it that stay in it, or lead into a folder of `beside`,
    are followed. One that leads out is an entry with `leads_out`, unless `follow_links`: a link to
    / would lead through the whole machine. Each real folder is entered once, under the first of
    its names, so circular links end. A folder that cannot be listed becomes one entry with a
    reason. Share `entered` (device and inode of folders) between calls that must not yield a file
    twice. Raises EdgelungError if `folder` does not exist.
    """
    if not folder.exists():
        raise EdgelungError(f"{folder} does not exist; expected a folder of tiles or a tile")
    if not folder.is_dir():
        yield FoundFile(folder.name, str(folder), listed=True)
        return
    entered = set() if entered is None else entered
    inside = None
    if not follow_links:
        inside = tuple(os.path.join(os.path.realpath(path), "") for path in (folder, *beside))
    # An explicit stack: folders may nest deeper than Python's call stack.
    stack: list[Iterator[FoundFile | _Folder]] = [iter([_Folder("", str(folder))])]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, FoundFile):
            yield entry
        else:
            stack.append(_list(entry, entered, inside))


@dataclass(frozen=True, slots=True)
class _Folder:
    prefix: str  # of the paths below it: empty, or ends in a slash
    location: str


def _list(
    folder: _Folder, entered: set[tuple[int, int]], inside: tuple[str, ...] | None
) -> Iterator[FoundFile | _Folder]:
    try:
        with _opened(folder.location, inside) as place:
            if place is None:  # a link that leads out has just replaced it
                yield FoundFile(folder.prefix.rstrip("/"), folder.location, leads_out=True)
                return
            info = os.stat(place)
            if (info.st_dev, info.st_ino) in entered:
                return
            entered.add((info.st_dev, info.st_ino))
            with os.scandir(place) as entries:
                # Names only, as bytes: a folder may hold a million.
                found = sorted(
                    os.fsencode(entry.name) + _mark(entry, folder.location, inside)
                    for entry in entries
                )
    except OSError as error:
        yield FoundFile(folder.prefix or ".", folder.location, error.strerror or one_line(error))
        return
    if folder.prefix:
        kind = own_kind(folder.location, lambda name: _has(found, os.fsencode(name)))
        if kind:
            _report_skipped(folder.location, kind)
            return
    base = os.path.join(folder.location, "")
    for name in map(os.fsdecode, found):
        if "\0" not in name:
            if not name.endswith(OWN_SUFFIXES):
                yield FoundFile(folder.prefix + name, base + name, inside=inside)
            continue
        name, _, mark = name.partition("\0")
        if mark:
            yield FoundFile(folder.prefix + name, base + name, leads_out=True)
        else:
            yield _Folder(f"{folder.prefix}{name}/", base + name)


@contextmanager
def _opened(location: str, inside: tuple[str, ...] | None) -> Iterator[int | str | None]:
    """The folder to list: a descriptor, which stays the same folder whatever replaces its name.

    None if it lies in no folder of `inside`. The path itself where links may lead anywhere, and on
    Windows.
    """
    if inside is None or not HAS_FOLDER_CALLS:
        yield location
        return
    handle = open_within(location, inside, os.O_DIRECTORY)
    if handle is None:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def open_within(location: str, inside: tuple[str, ...], flags: int = 0) -> int | None:
    """Open a file or folder if it lies in one of `inside`, wherever its name leads by now.

    Returns a descriptor; None if it lies elsewhere. Raises OSError.
    """
    # O_NONBLOCK: opening a named pipe must not hang the run.
    handle = os.open(location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if _root_of(_path_of(handle), inside):
        return handle
    os.close(handle)
    real = os.path.realpath(location)
    root = _root_of(real, inside)
    return open_below(root, real) if root else None


def _path_of(handle: int) -> str:
    """The real path of an open folder, as Linux knows it; '' elsewhere."""
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return ""


def _root_of(real: str, inside: tuple[str, ...]) -> str:
    """The first of `inside` that a real path is in; '' if it is in none."""
    path = os.path.join(real, "")
    return next((root for root in inside if path.startswith(root)), "")


@lru_cache(maxsize=1024)  # a watched folder is listed again and again
def _report_skipped(location: str, kind: str) -> None:
    shown = os.fsencode(location).decode(errors="backslashreplace")
    logger.warning("skipped %s: it is an edgelung %s folder, not data", shown, kind)


def _has(names: Sequence[bytes], name: bytes) -> bool:
    """Whether a sorted list holds a name."""
    place = bisect_left(names, name)
    return place < len(names) and names[place] == name


def _mark(entry: os.DirEntry[str], folder: str, inside: tuple[str, ...] | None) -> bytes:
    """What is behind the name of a folder (a NUL) or of a link that leads out (a NUL and a sign).

    No name contains a NUL, and it does not change the order. `inside`: the real paths that links
    may lead into, with a slash at the end; None: they may lead anywhere.
    """
    try:
        link = os.path.join(folder, entry.name)
        if inside is not None and entry.is_symlink() and not _stays(link, inside):
            return b"\0>"
        return b"\0" if entry.is_dir() else b""
    except OSError:  # a circular link: reading it fails, with the reason in its own row
        return b""


def _stays(link: str, inside: tuple[str, ...]) -> bool:
    try:
        return os.path.join(os.path.realpath(link), "").startswith(inside)
    except OSError:  # replaced while it was read
        return False


def class_of(location: str | PurePath, classes: Sequence[str]) -> int | None:
    """Return the index of the class named by the nearest folder above the file, or None.

    Names are compared in their composed form (NFC): macOS writes letters with accents decomposed.
    """
    names = [unicodedata.normalize("NFC", name) for name in classes]
    for folder in reversed(PurePath(location).parts[:-1]):
        name = unicodedata.normalize("NFC", folder)
        if name in names:
            return names.index(name)
    return None
