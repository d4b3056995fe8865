"""What the pipeline reads tiles from: files here, the grid of a slide in `edgelung.slides`."""

import os
from typing import Protocol, TypeVar

from PIL import Image

from edgelung.tiles.find import LEADS_OUT, FoundFile
from edgelung.tiles.reader import ReaderSpec, Tile, TileError, looks_like_image, read_decoded
from edgelung.tiles.sizes import Size
from edgelung.tiles.status import Status

Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds
Item = TypeVar("Item", contravariant=True)


class Reading(Protocol[Item]):
    """Gives the pixels of an item, on several threads at once."""

    @property
    def size(self) -> int:
        """Side of the model's input, pixels."""
        ...

    def stamp(self, item: Item) -> Stamp | None:
        """What changes when the item does; None if it cannot be looked at."""
        ...

    def read(self, item: Item) -> tuple[Tile | Image.Image, Size]:
        """The decoded pixels before the resize, and the size of the image they come from.

        Raises TileError with the status of the item's row.
        """
        ...


class FileReading:
    """Tiles are files."""

    def __init__(self, spec: ReaderSpec) -> None:
        self._spec = spec
        self.size = spec.size

    def stamp(self, item: FoundFile) -> Stamp | None:
        """See `stamp_of`."""
        return stamp_of(item)

    def read(self, item: FoundFile) -> tuple[Tile | Image.Image, Size]:
        """Decode the file, unless what is known of it already says that it is no tile."""
        if leftover := item.leftover_of:
            reason = f"is in {leftover}, a folder that the operating system created"
            raise TileError(Status.SKIPPED, reason)
        if item.leads_out:
            raise TileError(Status.SKIPPED, LEADS_OUT)
        if item.reason:
            raise TileError(Status.UNREADABLE, item.reason)
        if not item.is_image and not looks_like_image(item):
            raise TileError(Status.SKIPPED, "no image by its name or first bytes")
        return read_decoded(item, self._spec)


def stamp_of(file: FoundFile) -> Stamp | None:
    """The file's size and time of the last change; None if it cannot be looked at."""
    try:
        info = os.stat(file.location, follow_symlinks=not file.leads_out)
    except (OSError, ValueError):  # ValueError: a NUL in a listed name
        return None
    return info.st_size, info.st_mtime_ns
