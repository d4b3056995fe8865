"""Find the files of a folder, each once, in a fixed order, and the class a folder name gives."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from edgelung.errors import EdgelungError, one_line

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib", ".webp"]
)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of the folder: where it is and the name of its row.

    `path` is relative to the folder asked for, with forward slashes; `reason` is set where the
    entry could not even be listed.
    """

    path: str
    location: str
    reason: str = ""

    @property
    def is_image(self) -> bool:
        """Whether the name has an image suffix; the content is checked when it is read."""
        return os.path.splitext(self.path)[1].lower() in IMAGE_SUFFIXES


def find_files(folder: Path) -> Iterator[FoundFile]:
    """Every file below `folder`, sorted within each folder; links followed, loops cut.

    A folder that cannot be listed is one entry with a reason, so that it is not lost in silence.
    """
    if not folder.exists():
        raise EdgelungError(f"{folder} does not exist; expected a folder of tiles or a tile")
    if not folder.is_dir():
        yield FoundFile(folder.name, str(folder))
        return
    yield from _walk(str(folder), "", frozenset())


def _walk(location: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[FoundFile]:
    try:
        info = os.stat(location)
        with os.scandir(location) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        yield FoundFile(prefix or ".", location, error.strerror or one_line(error))
        return
    here = (info.st_dev, info.st_ino)
    if here in above:  # a symlink back to a folder that we are inside of
        return
    for entry in found:
        if _is_folder(entry):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here})
        else:
            yield FoundFile(prefix + entry.name, entry.path)


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
