"""Which directory of a TIFF is the picture: slides and several pages are refused.

Three pages that the file names red, green and blue (OME-XML, ImageJ) are one picture.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from edgelung.tiles.errors import NOT_A_TILE, Status, TileError
from edgelung.tiles.tiff_directory import MAX_TEXT, Data, Directory, directories, sub_directories

SLIDE_PIXELS = 25_000_000  # a tiled TIFF of more is a slide, even with one level
MAX_XML = 4 * 2**20
MAX_XML_PARTS = 2**17  # elements and attributes, which take far more memory than their text
MAX_LINES = 2**16  # characters of ImageJ's description that are read

_DESCRIPTION, _MAKE, _SOFTWARE, _XMP = 270, 271, 305, 700
_SUB_IFDS, _NEW_SUBFILE, _TILE_WIDTH = 330, 254, 322
_MASK = 4  # of NewSubfileType
_NDPI_FORMAT, _UIC2, _NIH_HEADER = 65420, 33629, 43314
_IJ_COUNTS, _IJ_METADATA = 50838, 50839
_NAMES = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_SHAPE = re.compile(r'\{"shape"\s*:\s*\[([^\]]*)\]')
_RGB = {0xFF0000: 0, 0x00FF00: 1, 0x0000FF: 2}


@dataclass(frozen=True, slots=True)
class Picture:
    """The pages that make up the one picture: one, or three that are red, green and blue."""

    pages: Sequence[Directory]
    bits_used: int | None = None


def find_picture(data: Data) -> Picture:
    """The picture of a TIFF; raises TileError `slide`, `several-pages` or for damage."""
    chain = directories(data)
    others = sub_directories(chain, _SUB_IFDS)
    slide = describe_slide(chain, others)
    if slide:
        raise TileError(Status.SLIDE, slide)
    text = chain[0].text(_DESCRIPTION)
    if "<OME" in text[:MAX_XML] and not others:
        return _ome(chain, text)
    if text.startswith("ImageJ=") and not others:
        return _imagej(chain, text)
    pages = [*chain, *others]
    if len(pages) > 1:
        sizes = ", ".join(f"{w}×{h}" for w, h in map(_size, pages[:4]))
        more = ", …" if len(pages) > 4 else ""
        raise TileError(Status.SEVERAL_PAGES, f"a TIFF of {len(pages)} pages ({sizes}{more} px)")
    _check_hidden_pages(chain[0], text)
    if chain[0].integer(_NEW_SUBFILE, 0) & _MASK:
        raise TileError(Status.UNSUPPORTED, "the only page of the TIFF is a transparency mask")
    return Picture(chain)


def describe_slide(chain: Sequence[Directory], others: Sequence[Directory] = ()) -> str:
    """What slide a TIFF is, how large and what to do; '' if it is none."""
    pages = [*chain, *others]
    largest = max(pages, key=lambda page: math.prod(_size(page)))
    width, height = _size(largest)
    tiled = _TILE_WIDTH in largest
    levels = 1 + sum(is_reduced(_size(page), (width, height)) for page in pages)
    maker = maker_of(chain)
    is_large = width * height > SLIDE_PIXELS
    many = len(pages) > 1
    if not ((maker and many) or (levels > 1 and (tiled or is_large)) or (tiled and is_large)):
        return ""
    what = f"a whole slide ({width:,} × {height:,} px, {levels} level{'s'[: levels > 1]}"
    return f"{what}{', ' + maker if maker else ''}), {NOT_A_TILE}"


def is_reduced(size: tuple[int, int], full: tuple[int, int]) -> bool:
    """Whether `size` is that of a smaller copy: the same shape within two pixels."""
    scale = max(size) / max(full) if max(full) else 1
    same_shape = all(abs(a - b * scale) <= 2 for a, b in zip(size, full, strict=True))
    return scale <= 0.75 and min(size) > 0 and same_shape


def maker_of(chain: Sequence[Directory]) -> str:
    """The scanner's maker, where the first directory names one."""
    first = chain[0]
    text = first.text(_DESCRIPTION)[:MAX_XML]
    software = first.text(_SOFTWARE)
    if text.startswith("Aperio"):
        return "Aperio"
    if _NDPI_FORMAT in first or first.text(_MAKE).startswith("Hamamatsu"):
        return "Hamamatsu"
    if "www.leica-microsystems.com/scn" in text:
        return "Leica"
    if software.startswith("Philips") or "PIM_DP_SCANNED_IMAGES" in text:
        return "Philips"
    if any(b"<iScan" in page.raw(_XMP, MAX_TEXT) for page in chain[:4]):
        return "Ventana"
    return "Trestle" if software.startswith("MedScan") else ""


def _size(page: Directory) -> tuple[int, int]:
    return page.integer(256, 0), page.integer(257, 0)


def _check_hidden_pages(page: Directory, text: str) -> None:
    """Raise TileError for a stack of which the one directory describes only the first page."""
    planes = page.count(_UIC2)
    if planes > 1:
        raise TileError(Status.SEVERAL_PAGES, f"a MetaMorph stack of {planes} planes")
    if _NIH_HEADER in page:
        raise TileError(Status.SEVERAL_PAGES, "an NIH Image stack")
    stated = _SHAPE.match(text[:MAX_LINES])
    if not stated:
        return
    shape = [_number(n.strip(), "the shape in the description") for n in stated[1].split(",")]
    width, height = _size(page)
    if math.prod(shape) != width * height * page.integer(277, 1):
        raise TileError(Status.SEVERAL_PAGES, f"a TIFF whose description says the shape {shape}")


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10):
        raise TileError(Status.CORRUPT, f"{what} of a TIFF says {text[:20]!r}, not a number")
    return int(text)


def _several(what: str, numbers: Sequence[int]) -> TileError:
    channels, slices, times = numbers
    return TileError(
        Status.SEVERAL_PAGES,
        f"{what} of {channels} channels, {slices} slices and {times} times that is not "
        "red, green and blue",
    )


def _ome(chain: Sequence[Directory], text: str) -> Picture:
    """An OME-TIFF: one page, or three channels that the XML names red, green and blue."""
    root = parse_xml(text)
    images = root.findall("{*}Image")
    pixels = images[0].find("{*}Pixels") if images else None
    if len(images) > 1:
        raise TileError(Status.SEVERAL_PAGES, f"an OME-TIFF of {len(images)} images")
    if pixels is None:
        raise TileError(Status.UNSUPPORTED, "an OME-TIFF whose description is in another file")
    try:
        sizes = [int(pixels.get(f"Size{axis}", "1")) for axis in "CZT"]
        bits = int(pixels.get("SignificantBits", "0")) or None
    except ValueError:
        raise TileError(Status.CORRUPT, "the sizes in the OME-XML are no numbers") from None
    if len({uuid.get("FileName") for uuid in pixels.iter() if uuid.tag.endswith("}UUID")}) > 1:
        raise TileError(Status.SEVERAL_PAGES, "an OME-TIFF of several files")
    order = ome_order(pixels)
    if len(chain) == 1 and sizes == [chain[0].integer(277, 1), 1, 1]:
        if sizes[0] > 1 and any(colour not in (-1, place) for place, colour in enumerate(order)):
            raise TileError(
                Status.UNSUPPORTED, "an OME-TIFF whose samples are not named red, green, blue"
            )
        return Picture(chain, bits)
    if sizes != [3, 1, 1] or len(chain) != 3 or sorted(order) != [0, 1, 2]:
        raise _several("an OME-TIFF", sizes)
    return Picture([chain[order.index(colour)] for colour in range(3)], bits)


def ome_order(pixels: ElementTree.Element) -> list[int]:
    """0, 1, 2 for red, green, blue of each channel; -1 where the XML does not say, or twice."""
    order = []
    blocks = pixels.findall("{*}TiffData")
    for number, block in enumerate(blocks):
        # The planes in any order but that of the channels are refused.
        ifd, first = block.get("IFD", str(number)), block.get("FirstC", str(number))
        if len(blocks) > 1 and not ifd == first == str(number):
            return [-1]
    for channel in pixels.findall("{*}Channel"):
        named = _NAMES.get(channel.get("Name", "").lower())
        try:
            coloured = _RGB.get(int(channel.get("Color", "0")) >> 8 & 0xFFFFFF)
        except ValueError:
            coloured = None
        known = {colour for colour in (named, coloured) if colour is not None}
        plain = channel.get("SamplesPerPixel", "1") == "1"
        stated = "Color" in channel.attrib and coloured is None  # another colour than the three
        order.append(known.pop() if len(known) == 1 and plain and not stated else -1)
    return order


def parse_xml(text: str) -> ElementTree.Element:
    """Parse without entities, which could expand without end; raises TileError."""
    if len(text) > MAX_XML or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise TileError(Status.UNSUPPORTED, "an OME-XML with entities, or of more than 4 MiB")
    if text.count("<") + text.count("=") > MAX_XML_PARTS:
        raise TileError(Status.TOO_LARGE, f"an OME-XML of more than {MAX_XML_PARTS} parts")
    try:
        return ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, ValueError, RecursionError):
        raise TileError(Status.UNSUPPORTED, "an OME-TIFF whose OME-XML cannot be read") from None


def _imagej(chain: Sequence[Directory], text: str) -> Picture:
    """An ImageJ TIFF: one page, or a composite of red, green and blue pages."""
    pairs = (line.split("=", 1) for line in text[:MAX_LINES].splitlines() if "=" in line)
    lines = {key.strip(): value.strip() for key, value in pairs}

    def number(key: str) -> int:
        value = lines.get(key, "1")
        count = _number(value, f"ImageJ's {key}") if value.isdecimal() else 1
        if not count:
            raise TileError(Status.CORRUPT, f"an ImageJ TIFF of 0 {key}")
        return count

    sizes = [number("channels"), number("slices"), number("frames")]
    images = max(number("images"), math.prod(sizes), len(chain))
    if "c0" in lines and chain[0].integer(258, 1) == 16:
        raise TileError(Status.UNSUPPORTED, "ImageJ samples with a calibration of their own")
    if images == 1:
        return Picture(chain)
    is_plain = all(page.integer(258, 1) == 8 and page.integer(277, 1) == 1 for page in chain)
    if (
        sizes != [3, 1, 1]
        or len(chain) != 3
        or not is_plain
        or lines.get("mode") != "composite"
        or not _is_rgb_composite(chain[0])
    ):
        raise _several("an ImageJ stack", [sizes[0], max(sizes[1], images // sizes[0]), sizes[2]])
    return Picture(chain)


def _is_rgb_composite(page: Directory) -> bool:
    """Whether ImageJ's lookup tables and display ranges are red, green, blue and 0…255.

    Without tables ImageJ shows the first three channels of a composite in these colours.
    """
    if _IJ_METADATA not in page:
        return True
    counts, block = page.integers(_IJ_COUNTS), bytes(page.raw(_IJ_METADATA))
    order: Literal["little", "big"] = "little" if block[:4] == b"JIJI" else "big"
    kinds: list[bytes] = []
    for at in range(4, min(counts[0], len(block)), 8):
        name = block[at : at + 4] if order == "big" else block[at : at + 4][::-1]
        left = len(counts) - len(kinds)
        kinds += [name] * min(int.from_bytes(block[at + 4 : at + 8], order), left)
    values: dict[bytes, list[bytes]] = {}
    start = counts[0]
    for name, count in zip(kinds, counts[1:], strict=False):
        values.setdefault(name, []).append(block[start : start + count])
        start += count
    if b"rang" in values:
        return False  # a display range changes what ImageJ shows
    ramp, zero = bytes(range(256)), bytes(256)
    tables = [ramp + zero + zero, zero + ramp + zero, zero + zero + ramp]
    return values.get(b"luts", tables) == tables
