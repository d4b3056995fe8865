"""Find the files of a folder, each once, in a fixed order, and the class a folder name gives."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import OWN_SUFFIXES

IMAGE_SUFFIXES = frozenset(
    # What is read, and what is plainly an image but not read: that gets a row that says so.
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".webp",
        ".gif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jxl",
        ".avif",
        ".heic",
        ".svs",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".dcm",
    ]
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of the folder: where it is and the name of its row.

    `path` is relative to the folder asked for, with forward slashes; `reason` is set where the
    entry could not even be listed; `listed` where the user named this very file.
    """

    path: str
    location: str
    reason: str = ""
    listed: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it is meant to be a tile, by its name; the content shows when it is read."""
        return self.listed or os.path.splitext(self.path)[1].lower() in IMAGE_SUFFIXES


def find_files(folder: Path, entered: set[tuple[int, int]] | None = None) -> Iterator[FoundFile]:
    """Every file below `folder`, sorted within each folder; links are followed.

    Each real folder is entered once, by whatever name comes first, so links in a circle end. A
    folder that cannot be listed is one entry with a reason, so that it is not lost in silence.
    `entered` is shared by several that must not have a file twice.
    """
    if not folder.exists():
        raise EdgelungError(f"{folder} does not exist; expected a folder of tiles or a tile")
    if not folder.is_dir():
        yield FoundFile(folder.name, str(folder), listed=True)
        return
    entered = set() if entered is None else entered
    # A stack of its own: folders may nest deeper than Python's.
    stack: list[Iterator[FoundFile | _Folder]] = [iter([_Folder("", str(folder))])]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, FoundFile):
            yield entry
        else:
            stack.append(_list(entry, entered))


@dataclass(frozen=True, slots=True)
class _Folder:
    prefix: str  # of the rows below it: empty, or ends in a slash
    location: str


def _list(folder: _Folder, entered: set[tuple[int, int]]) -> Iterator[FoundFile | _Folder]:
    try:
        info = os.stat(folder.location)
        if (info.st_dev, info.st_ino) in entered:
            return
        entered.add((info.st_dev, info.st_ino))
        with os.scandir(folder.location) as entries:
            # Names alone, as bytes: a folder may hold a million. A folder's ends in NUL, which no
            # name holds and which sorts as the name itself does.
            found = sorted(os.fsencode(e.name) + (b"\0" if _is_folder(e) else b"") for e in entries)
    except OSError as error:
        yield FoundFile(folder.prefix or ".", folder.location, error.strerror or one_line(error))
        return
    for name in map(os.fsdecode, found):
        if name.endswith("\0"):
            name = name[:-1]
            yield _Folder(f"{folder.prefix}{name}/", os.path.join(folder.location, name))
        elif not name.endswith(OWN_SUFFIXES):
            yield FoundFile(folder.prefix + name, os.path.join(folder.location, name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle: reading it will say so, on its own row
        return False


def class_of(location: str | PurePath, classes: Sequence[str]) -> int | None:
    """Index of the class that the nearest folder above the file is named after, if any."""
    for name in reversed(PurePath(location).parts[:-1]):
        if name in classes:
            return classes.index(name)
    return None
