"""OME-TIFF: each image of its OME-XML is a slide of its own, with the scale that the XML states.

Only 8-bit RGB is read, its samples interleaved or in planes of their own. Channels, focal planes
and times in pages of their own are refused: an H&E model has no use for them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from edgelung.core.errors import one_line
from edgelung.slides.base import StatedScale
from edgelung.slides.levels import positive, pyramid
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.tiff_directory import Directory
from edgelung.tiles.tiff_layout import Layout
from edgelung.tiles.tiff_pages import MAX_XML, ome_order, parse_xml

MAX_SCENES = 64
_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_MICROMETRES |= {"pm": 1e-6, "Å": 1e-4, "dm": 1e5, "in": 25400.0, "pt": 25400 / 72}
_NOT_TISSUE = re.compile(r"\b(label|macro|thumbnail|overview)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Scene:
    """One image of an OME-TIFF: its name, its levels (largest first) and its stated scale."""

    name: str
    layouts: Sequence[Layout]
    scale: StatedScale


def is_ome(description: str) -> bool:
    """Whether the description of a TIFF's first directory is OME-XML."""
    start = description[:MAX_XML].lstrip("\ufeff \r\n\t")
    return start.startswith("<") and re.search(r"<(\w+:)?OME[\s>]", start) is not None


def read_scenes(chain: Sequence[Directory], description: str) -> list[Scene]:
    """The images of an OME-TIFF but for labels, macro pictures and thumbnails (by their names).

    Raises:
        TileError: `unsupported` or `several-pages` where an image is not one 8-bit RGB picture.
    """
    root = parse_xml(description)
    images = root.findall("{*}Image")
    if not images or root.find("{*}BinaryOnly") is not None:
        raise TileError(Status.UNSUPPORTED, "an OME-TIFF whose description is in another file")
    if len(images) > MAX_SCENES:
        raise TileError(
            Status.TOO_LARGE, f"an OME-TIFF of {len(images)} images; at most {MAX_SCENES}"
        )
    scenes = []
    for number, image in enumerate(images):
        name = image.get("Name", "") or image.get("ID", "") or f"image {number + 1}"
        if _NOT_TISSUE.search(name.replace("_", " ")) and len(images) > 1:
            continue
        try:
            scenes.append(_read_scene(root, image, chain, one_line(name, 80), len(images)))
        except TileError as error:
            if len(images) == 1:
                raise
            reason = f"image {one_line(name, 40)!r}: {error.reason}"
            raise TileError(error.status, reason) from None
    if not scenes:
        raise TileError(Status.UNSUPPORTED, "an OME-TIFF of labels and thumbnails only")
    return scenes


def _read_scene(
    root: Element, image: Element, chain: Sequence[Directory], name: str, images: int
) -> Scene:
    pixels = image.find("{*}Pixels")
    if pixels is None:
        raise TileError(Status.CORRUPT, "an OME-XML image without pixels")
    first = chain[_directory_number(pixels, images, len(chain))]
    _check_one_picture(pixels, first)
    return Scene(name if images > 1 else "", pyramid(first), _stated_scale(root, image, pixels))


def _directory_number(pixels: Element, images: int, pages: int) -> int:
    """Which directory of the chain holds the picture."""
    blocks = pixels.findall("{*}TiffData")
    names = {uuid.get("FileName") for uuid in pixels.iter() if uuid.tag.endswith("}UUID")}
    if len(names) > 1:
        raise TileError(Status.SEVERAL_PAGES, "an OME-TIFF of several files")
    stated = blocks[0].get("IFD") if blocks else None
    if stated is None:
        if images > 1:
            raise TileError(
                Status.UNSUPPORTED, "an OME-XML that does not say which pages its images are"
            )
        stated = "0"
    if not (stated.isascii() and stated.isdecimal() and len(stated) < 10 and int(stated) < pages):
        raise TileError(
            Status.CORRUPT, f"an OME-XML of page {one_line(stated, 20)} in a TIFF of {pages} pages"
        )
    return int(stated)


def _check_one_picture(pixels: Element, page: Directory) -> None:
    """Raise TileError unless the pixels are one plane of 8-bit RGB in one directory."""
    sizes = []
    for axis in "CZT":
        text = pixels.get(f"Size{axis}", "1")
        if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10):
            raise TileError(Status.CORRUPT, "the sizes in the OME-XML are no numbers")
        sizes.append(int(text))
    kind = pixels.get("Type", "uint8")
    if kind != "uint8":
        reason = f"an OME-TIFF of {one_line(kind, 20)} samples; a slide is 8-bit RGB"
        raise TileError(Status.UNSUPPORTED, reason)
    samples = page.integer(277, 1)
    if sizes != [3, 1, 1] or samples != 3:
        raise TileError(
            Status.SEVERAL_PAGES,
            f"an OME-TIFF of {sizes[0]} channels, {sizes[1]} focal planes and {sizes[2]} times, "
            f"{samples} samples a pixel; a slide is one picture of red, green and blue",
        )
    if any(colour not in (-1, place) for place, colour in enumerate(ome_order(pixels))):
        raise TileError(
            Status.UNSUPPORTED, "an OME-TIFF whose samples are not named red, green, blue"
        )


def _stated_scale(root: Element, image: Element, pixels: Element) -> StatedScale:
    x, y = (_micrometres(pixels, axis) for axis in "XY")
    objective = _objective(root, image)
    source = "" if x is None and y is None else "PhysicalSizeX in the OME-XML"
    return StatedScale(x, y, objective, source)


def _micrometres(pixels: Element, axis: str) -> float | None:
    """PhysicalSizeX or …Y in micrometres; None where it or its unit says no length."""
    factor = _MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    value = positive(pixels.get(f"PhysicalSize{axis}", "").strip())
    return None if factor is None or value is None else value * factor


def _objective(root: Element, image: Element) -> float | None:
    """The magnification of the image's objective, if the XML names one."""
    settings = image.find("{*}ObjectiveSettings")
    stated = settings.get("ID") if settings is not None else None
    for objective in root.iter():
        if objective.tag.endswith("}Objective") and stated and objective.get("ID") == stated:
            return positive(objective.get("NominalMagnification", "").strip())
    return None
