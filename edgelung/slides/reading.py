"""The tiles of a slide's grid, as the pipeline reads them, here or in another process."""

from collections.abc import Callable
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.inference.reading import Stamp
from edgelung.slides.base import Grid, Slide
from edgelung.slides.open import open_slides
from edgelung.tiles.reader import Tile
from edgelung.tiles.sizes import Size


class SlideReading:
    """An item is an index of the grid.

    Pickled, it is a recipe: the other process opens the file of this name itself.
    """

    def __init__(self, slide: Slide, grid: Grid, size: int) -> None:
        self._slide, self._grid = slide, grid
        self._tiles = slide.open_tiles(grid)
        self.size = size

    def stamp(self, item: int) -> Stamp | None:
        """A tile has none: the slide has."""
        return None

    def read(self, item: int) -> tuple[Tile, Size]:
        """The pixels of a tile; raises TileError."""
        pixels = self._tiles.read(item)
        height, width, _ = pixels.shape
        return pixels, (width, height)

    def close(self) -> None:
        """Free what the tiles hold; the slide stays open."""
        self._tiles.close()

    def __reduce__(self) -> tuple[Callable[..., "SlideReading"], tuple[object, ...]]:
        slide = self._slide
        path = slide.path.absolute()
        return reopen, (path, stamp_of_slide(path), _marks(slide), self._grid, self.size)


def stamp_of_slide(path: Path) -> Stamp:
    """Size in bytes and time of the last change. Raises OSError."""
    info = path.stat()
    return info.st_size, info.st_mtime_ns


def reopen(
    path: Path, stamp: Stamp, marks: tuple[object, ...], grid: Grid, size: int
) -> SlideReading:
    """Open a slide that another process has opened, maybe on another machine.

    Raises EdgelungError if the file of this name is not there, is another one, or opens otherwise.
    """
    try:
        own = stamp_of_slide(path)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}") from error
    if own != stamp:
        raise EdgelungError(f"{path} is another file here (another size or time of change)")
    same = [slide for slide in open_slides(path) if _marks(slide) == marks]
    if len(same) != 1:
        raise EdgelungError(f"{path} has {len(same)} scenes like the one to be read; expected one")
    return SlideReading(same[0], grid, size)


def _marks(slide: Slide) -> tuple[object, ...]:
    """What tells a scene from others, and a reader from another."""
    return slide.scene, slide.reader, tuple(slide.levels), tuple(slide.offset)
