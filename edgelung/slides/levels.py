"""Which directories of a TIFF are the levels of one slide, and what its tags say of its scale."""

import math
import re
from collections.abc import Sequence

from edgelung.slides.base import StatedScale
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.table import decide
from edgelung.tiles.tiff_directory import (
    MAX_DIRECTORIES,
    Data,
    Directory,
    directories,
    sub_directories,
)
from edgelung.tiles.tiff_layout import Layout, check_slide_structure, read_layout
from edgelung.tiles.tiff_pages import SLIDE_PIXELS, is_reduced

_SUB_IFDS, _NEW_SUBFILE, _TILE_WIDTH, _DESCRIPTION = 330, 254, 322, 270
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_REDUCED = 1  # of NewSubfileType
_MICROMETRES = {2: 25400.0, 3: 1e4}  # ResolutionUnit → inch and centimetre
_COLOURS = ("RGB", "YCbCr")
_NUMBER = re.compile(r"\d{1,9}(?:[.,]\d{1,30})?(?:[eE][+-]?\d{1,2})?", re.ASCII)


class OrdinaryError(TileError):
    """A TIFF that is an ordinary picture, not a slide."""


class KindError(TileError):
    """The structure is sound, but the pixels are of a kind that is not read directly."""


def read_chain(data: Data) -> list[Directory]:
    """The main directories of a TIFF; raises TileError for damage and for too many."""
    chain = directories(data)
    if len(chain) == MAX_DIRECTORIES and chain[-1].next:
        raise TileError(Status.TOO_LARGE, f"a TIFF of more than {MAX_DIRECTORIES} directories")
    return chain


def find_levels(chain: Sequence[Directory]) -> list[Layout]:
    """The levels of a pyramidal TIFF, largest first.

    Level 0 is the first directory. The others are tiled copies of it in less than its size, in the
    chain or in its SubIFDs. Labels and macro pictures, which have another shape, are left out.

    Raises:
        TileError: the first directory cannot be read; `several-pages` where another one is as
            large, such as a focal plane or a channel.
    """
    first = chain[0]
    full = size_of(first)
    if _TILE_WIDTH not in first and math.prod(full) <= SLIDE_PIXELS:
        raise OrdinaryError(
            Status.UNSUPPORTED,
            f"an ordinary TIFF of {full[0]:,} × {full[1]:,} px that is not tiled",
        )
    for page in chain[1:]:
        if size_of(page) == full and not page.integer(_NEW_SUBFILE, 0) & _REDUCED:
            count = sum(size_of(one) == full for one in chain)
            raise TileError(Status.SEVERAL_PAGES, f"a TIFF of {count} pages of its full size")
        if _TILE_WIDTH in page and math.prod(size_of(page)) > math.prod(full):
            raise TileError(Status.SEVERAL_PAGES, "a TIFF whose first page is not its largest")
    return pyramid(first, chain[1:])


def pyramid(first: Directory, others: Sequence[Directory] = ()) -> list[Layout]:
    """The layouts of a picture and of its reduced copies, largest first; raises TileError.

    `others`: directories, beside the SubIFDs of `first`, that may be reduced copies.
    """
    full = size_of(first)
    base = _read_rgb(first)
    found = {full: base}
    for page in [*others, *sub_directories([first], _SUB_IFDS)]:
        size = size_of(page)
        if _TILE_WIDTH in page and size not in found and is_reduced(size, full):
            found[size] = _read_rgb(page)
    return sorted(found.values(), key=lambda layout: layout.width, reverse=True)


def is_8_bit_rgb(page: Directory) -> bool:
    """Whether a directory holds 8-bit RGB or YCbCr, with or without alpha, in any compression.

    OpenSlide shows other pictures too, but by their high byte or their first channel.
    """
    bits, formats = page.integers(258, (1,)), page.integers(339, (1,))
    return (
        set(bits) == {8}
        and set(formats) == {1}
        and page.integer(277, 1) in (3, 4)
        and page.integer(262, 0) in (2, 6)
    )


def size_of(page: Directory) -> tuple[int, int]:
    """Width and height of a directory's picture; 0 where it has none."""
    return page.integer(256, 0), page.integer(257, 0)


def aperio_scale(description: str) -> StatedScale:
    """What the description of an Aperio slide says: `|AppMag = 20|…|MPP = 0.4990|`."""
    fields = {}
    for part in description.split("|")[1:]:
        name, equals, value = part.partition("=")
        if equals:
            fields[name.strip()] = value.strip()
    mpp, objective = positive(fields.get("MPP", "")), positive(fields.get("AppMag", ""))
    return StatedScale(mpp, mpp, objective, "aperio.MPP" if mpp else "")


def resolution_scale(page: Directory) -> StatedScale:
    """What the resolution tags say in pixels per inch or centimetre, as OpenSlide takes them.

    Many programs write a number there that means nothing, such as 72 pixels per inch.
    """
    unit = _MICROMETRES.get(page.integer(_RESOLUTION_UNIT, 2))
    if unit is None:
        return StatedScale()
    values = [next(iter(page.numbers(tag)), 0.0) for tag in (_X_RESOLUTION, _Y_RESOLUTION)]
    if not all(math.isfinite(value) and value > 0 for value in values):
        return StatedScale()
    return StatedScale(unit / values[0], unit / values[1], None, "the TIFF's resolution tags")


def positive(text: str) -> float | None:
    """A number above 0, with a decimal point or comma; None for anything else."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text.replace(",", "."))
    return value if math.isfinite(value) and value > 0 else None


def _read_rgb(page: Directory) -> Layout:
    """The layout of a level; raises KindError for anything but 8-bit RGB without alpha."""
    check_slide_structure(page)
    layout = read_layout(page, 0, of_slide=True)
    kind = layout.kind
    try:
        decide(kind)
    except TileError as error:
        raise KindError(error.status, error.reason) from None
    if kind.colour not in _COLOURS or layout.samples != 3 or kind.alpha != "none":
        alpha = "" if kind.alpha == "none" else f" and alpha ({kind.alpha})"
        raise KindError(
            Status.UNSUPPORTED,
            f"{kind.colour} of {layout.samples} samples{alpha}; a slide is 8-bit RGB",
        )
    if kind.bits != 8:
        raise KindError(Status.UNSUPPORTED, f"samples of {kind.bits} bits; a slide is 8-bit RGB")
    return layout
