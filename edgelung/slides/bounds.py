"""The part of a file's canvas that holds a slide, and the levels within it.

Scanners leave most of a large canvas empty. OpenSlide states the part that was scanned as
`openslide.bounds-*`, and several parts of one file as `openslide.region[i].*`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelung.core.errors import EdgelungError, one_line
from edgelung.slides.base import Level

MAX_REGIONS = 64
_PARTS = ("x", "y", "width", "height")


@dataclass(frozen=True)
class Rectangle:
    """A part of level 0, pixels."""

    x: int
    y: int
    width: int
    height: int

    def is_within(self, size: tuple[int, int]) -> bool:
        """True if it holds pixels, and none outside of a canvas of (width, height)."""
        inside = self.x + self.width <= size[0] and self.y + self.height <= size[1]
        return inside and min(self.x, self.y) >= 0 and min(self.width, self.height) >= 1

    def overlaps(self, other: "Rectangle") -> bool:
        """True if the two have a pixel in common."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def find_bounds(path: Path, properties: Mapping[str, str], size: tuple[int, int]) -> Rectangle:
    """The bounds that OpenSlide states, or the whole canvas of `size`.

    Raises:
        EdgelungError: for bounds outside of the canvas, and for a canvas without pixels.
    """
    whole = Rectangle(0, 0, *size)
    if not whole.is_within(size):
        raise EdgelungError(
            f"{path} is a slide of {size[0]} × {size[1]} px; expected at least one pixel"
        )
    texts = [properties.get(f"openslide.bounds-{part}") for part in _PARTS]
    if all(text is None for text in texts):
        return whole
    bounds = _rectangle(texts)
    if bounds is None or not bounds.is_within(size):
        pairs = zip(_PARTS, texts, strict=True)
        found = ", ".join(f"{part} {one_line(text or 'missing', 20)}" for part, text in pairs)
        raise EdgelungError(
            f"{path} states bounds outside of its {size[0]} × {size[1]} px ({found}); it is "
            "damaged, or a program changed it: export it from the scanner again"
        )
    return bounds


def find_regions(properties: Mapping[str, str], size: tuple[int, int]) -> list[Rectangle]:
    """The parts that were scanned by themselves; empty where the file is one slide.

    Parts that overlap, or lie outside of the canvas, are no slides of their own.
    """
    regions: list[Rectangle] = []
    for number in range(MAX_REGIONS + 1):
        texts = [properties.get(f"openslide.region[{number}].{part}") for part in _PARTS]
        if all(text is None for text in texts):
            break
        region = _rectangle(texts)
        if region is None or not region.is_within(size):
            return []
        if any(region.overlaps(other) for other in regions):
            return []
        regions.append(region)
    return regions if 1 < len(regions) <= MAX_REGIONS else []


def levels_within(
    part: Rectangle, sizes: Sequence[tuple[int, int]], factors: Sequence[float]
) -> list[Level]:
    """The levels of a part of the canvas.

    `sizes`, `factors`: of the levels of the canvas. A last row or column of which the part covers
    less than a pixel is left out, and so are levels in which the part has no pixel.
    """
    levels = []
    for (width, height), factor in zip(sizes, factors, strict=True):
        wide = min(int(part.width / factor), width - int(part.x / factor))
        high = min(int(part.height / factor), height - int(part.y / factor))
        if min(wide, high) >= 1:
            levels.append(Level(wide, high, factor))
    return levels


def _rectangle(texts: Sequence[str | None]) -> Rectangle | None:
    """From the texts of its parts; None where one is missing or no whole number."""
    try:
        return Rectangle(*(int(text or "") for text in texts))
    except ValueError:
        return None
