"""JPEG → uint8 RGB by simplejpeg, and by Pillow what simplejpeg cannot convert.

simplejpeg decodes strictly: every warning of libjpeg-turbo is an error, so half a picture is never
taken for a whole one. `jpeg_scans` finds what libjpeg-turbo does not warn of. Segments that the
pixels do not need (a broken ICC profile, stray bytes) are dropped and the decode is repeated before
a file is called damaged.
"""

import io
import itertools
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import simplejpeg
from PIL import Image

from edgelung.tiles.budget import DECODING, FREE
from edgelung.tiles.colour import exif_orientation, to_rgb, upright
from edgelung.tiles.errors import Status, TileError, damaged
from edgelung.tiles.jpeg_scans import (
    MAX_SEGMENTS,
    check_codes,
    check_complete,
    read_scans,
    sampling,
    scan_headers,
)
from edgelung.tiles.resize import Tile
from edgelung.tiles.table import MAX_PIXELS, Kind, check_size, decide
from edgelung.tiles.tiff_directory import first_directory

MAX_SCANS = 500  # ten are usual; each costs a pass over all pixels
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS  # scans × pixels
MAX_EXIF = 2**20  # bytes
MAX_ODD_BYTES = 16 << 20  # of a file with unusual sampling: its codes are read at 1 MB/s
MARK = b"\xff\xd8\xff"

_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]")  # marker, length, components
_SOF = {  # start of frame → the coding, in the standard's terms
    0xC0: "sequential Huffman",
    0xC1: "sequential Huffman",
    0xC2: "progressive Huffman",
    0xC3: "lossless Huffman",
    0xC5: "hierarchical sequential Huffman",
    0xC6: "hierarchical progressive Huffman",
    0xC7: "hierarchical lossless Huffman",
    0xC9: "sequential arithmetic",
    0xCA: "progressive arithmetic",
    0xCB: "lossless arithmetic",
    0xCD: "hierarchical sequential arithmetic",
    0xCE: "hierarchical progressive arithmetic",
    0xCF: "hierarchical lossless arithmetic",
    0xF7: "JPEG-LS",
}
_COLOURS = {1: "grey", 3: "RGB or YCbCr", 4: "CMYK or YCCK"}
TABLE_MARKERS = frozenset([0xC4, 0xCC, 0xDB, 0xDD])  # Huffman, arithmetic, quantization, DRI
_ALONE = frozenset([0x00, 0x01, *range(0xD0, 0xDA), 0xFF])  # stray, fill, or without a segment
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_APP14 = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # and one byte: the colour transform
_MP_IMAGES = 0xB002  # MP entries of 16 bytes; the low 24 bits of the first word are the type
_MP_THUMBNAIL = 1  # the class of a type: 1 thumbnail, 2 several views, 3 the primary picture
_GAIN_MAPS = (b"hdrgm:", b"HDRGainMap", b"hdr-gain-map", b"urn:iso:std:iso:ts:21496")
_TRANSFORMS = {3: (0, 1), 4: (0, 2)}  # components → Adobe's colour transforms that exist for them


@dataclass(slots=True)
class Header:
    """The segments of a JPEG up to its first scan."""

    coding: str = ""
    bits: int = 0
    width: int = 0
    height: int = 0
    components: int = 0
    frame: bytes = b""  # the body of its segment
    exif: bytes = b""
    multi_picture: bytes = b""
    jfif: bool = False
    adobe: int | None = None  # its colour transform
    segments: list[tuple[int, int, int]] = field(default_factory=list)  # marker, start, end
    scan: int = 0  # where the first SOS stands


@lru_cache(maxsize=64)
def _check_kind(coding: str, components: int, bits: int) -> None:
    """Ask the decision table; raises TileError `unsupported`."""
    colour = _COLOURS.get(components, f"of {components} components")
    decide(Kind("JPEG", coding, colour, bits))


def read_header(data: bytes) -> Header:
    """Walk over the segments as libjpeg does, past stray bytes; raises TileError."""
    header, at = Header(), 2
    try:
        while True:
            if data[at] != 0xFF or data[at + 1] in _ALONE:
                at = _next_marker(data, at)
            marker, end = data[at + 1], at + 2 + (data[at + 2] << 8 | data[at + 3])
            if marker == 0xDA:
                break
            header.segments.append((marker, at, end))
            if len(header.segments) > MAX_SEGMENTS:
                reason = f"a JPEG of more than {MAX_SEGMENTS} segments"
                raise TileError(Status.TOO_LARGE, reason)
            if marker in _SOF:
                _read_frame(header, marker, data[at + 4 : end])
            elif marker >= 0xE0:
                _read_application_data(header, marker, data[at + 4 : end])
            at = end
    except IndexError:
        raise TileError(Status.TRUNCATED, "the JPEG ends within its header") from None
    if not header.coding:
        raise TileError(Status.CORRUPT, "the JPEG has no frame header before its first scan")
    header.scan = at
    return header


def _next_marker(data: bytes, at: int) -> int:
    """Where the next marker with a segment stands; IndexError where there is none."""
    while data[at] != 0xFF or data[at + 1] in _ALONE:
        if data[at] == 0xFF and data[at + 1] == 0xD9:
            raise TileError(Status.TRUNCATED, "the JPEG ends before its first scan")
        at = data.find(b"\xff", at + 1)
        if at < 0:
            raise IndexError
    return at


def _read_application_data(header: Header, marker: int, content: bytes) -> None:
    if marker == 0xE0 and content.startswith(b"JFIF\0"):
        header.jfif = True
    elif marker == 0xE1 and content.startswith(b"Exif\0\0") and len(header.exif) < MAX_EXIF:
        header.exif += content[6:]  # a long block goes on in the next segment
    elif marker == 0xE2 and content.startswith(b"MPF\0"):
        header.multi_picture = content[4:]
    elif marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
        header.adobe = content[11]


def _read_frame(header: Header, marker: int, frame: bytes) -> None:
    if header.coding or len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise TileError(Status.CORRUPT, "the JPEG frame header cannot be read")
    header.coding, header.bits, header.components = _SOF[marker], frame[0], frame[5]
    header.frame = frame
    header.height = int.from_bytes(frame[1:3])
    header.width = int.from_bytes(frame[3:5])


def decode_jpeg(data: bytes, size: int, header: Header | None = None) -> Tile | Image.Image:
    """Decode a JPEG file, scaled by the smallest M/8 that covers `size`; raises TileError.

    `header`: of `data`, if it has been read.
    """
    header = header or read_header(data)
    _check_frames(data, header)
    pixels = decode_with_header(data, header, size)
    return upright(pixels, exif_orientation(header.exif)) if header.exif else pixels


def decode_with_header(data: bytes, header: Header, size: int) -> Tile | Image.Image:
    """As `decode_jpeg`, without the looks at EXIF and at further pictures; raises TileError."""
    if header.height == 0 and header.width:
        raise TileError(Status.UNSUPPORTED, "a JPEG whose height stands behind its pixels (DNL)")
    _check_kind(header.coding, header.components, header.bits)
    _check_transform(header)
    check_size(header.width, header.height, size)
    pixels = header.width * header.height
    limit = min(MAX_SCANS, MAX_SCANNED_PIXELS // pixels)
    if data.count(b"\xff\xda") > limit and _has_many_scans(data, limit):
        reason = f"a JPEG of more than {limit} scans of {header.width}×{header.height} pixels"
        raise TileError(Status.TOO_LARGE, reason)
    if 24 * pixels + 22 * len(data) > FREE:  # `_memory` is not above that
        DECODING.reserve(_memory(data, header, size))
    try:
        return _decode_strictly(data, header, size)
    except TileError as error:
        needed = without_extras(data, header)
        if needed == data or error.status == Status.UNSUPPORTED:
            raise
        return _decode_strictly(needed, read_header(needed), size)


def _memory(data: bytes, header: Header, size: int) -> float:
    """Bytes that decoding needs at most: the file twice, coefficients, and pixels.

    Measured at 16 MP: 0.1 per pixel of one scan, decoded at 1/8; 3 of several with 4:2:0, 6 with
    4:4:4; 12 of four inks, which Pillow decodes at full size.
    """
    pixels = header.width * header.height
    factors = sampling(header.frame)
    usual = header.components < 3 or list(factors.values())[1:] == [(1, 1), (1, 1)]
    if header.components == 4 or not usual:
        return 22 * len(data) + pixels * (12 + 3 * header.components)
    scale = min(1.0, math.ceil(8 * size / min(header.width, header.height)) / 8) if size else 1.0
    decoded = pixels * scale**2 * (16 if header.exif else 6)  # tried twice, or turned by Pillow
    of_first_scan = data[header.scan + 4 : header.scan + 5]
    if header.coding.startswith("sequential") and of_first_scan == bytes([header.components]):
        return 2 * len(data) + decoded
    largest = math.prod(max(factor[i] for factor in factors.values()) for i in (0, 1))
    coefficients = sum(h * v for h, v in factors.values()) / max(largest, 1)
    return 2 * len(data) + decoded + 2.2 * pixels * coefficients


def _check_transform(header: Header) -> None:
    """Raise TileError for a colour transform that does not exist; JFIF says YCbCr by itself."""
    known = _TRANSFORMS.get(header.components)
    if known is None or header.adobe is None or (header.components == 3 and header.jfif):
        return
    if header.adobe not in known:
        reason = f"a JPEG of {header.components} components with Adobe's transform {header.adobe}"
        raise TileError(Status.UNSUPPORTED, f"{reason}, expected one of {known}")


def _decode_strictly(data: bytes, header: Header, size: int) -> Tile | Image.Image:
    """Decode; any warning of libjpeg-turbo is an error."""
    four_inks = header.components == 4
    if four_inks and header.adobe is None:
        raise TileError(
            Status.UNSUPPORTED, "a CMYK JPEG without Adobe's mark: inverted inks or not"
        )
    try:
        pixels: Tile | None = simplejpeg.decode_jpeg(
            data,
            "CMYK" if four_inks else "RGB",
            min_height=size,
            min_width=size,
            min_factor=1,
        )
    except Exception as error:  # ValueError; KeyError for a sampling that it does not know
        if isinstance(error, KeyError) or "subsampling" in str(error):
            pixels = None
        else:
            raise damaged(error) from error
    _check_scans(data, header)
    if pixels is None:
        return _decode_odd_sampling(data, header)
    # The data is whole, but libjpeg-turbo converts no CMYK. Pillow does, and inverts Adobe's.
    return _decode_by_pillow(data) if four_inks else pixels


def _decode_by_pillow(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as source:
            source.load()
            return to_rgb(source)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise damaged(error) from error


def _decode_odd_sampling(data: bytes, header: Header) -> Image.Image:
    """Decode sampling factors that TurboJPEG has no name for.

    Pillow ignores libjpeg's warnings, so the Huffman codes are read once more here.
    """
    if len(data) > MAX_ODD_BYTES:
        limit = f"{MAX_ODD_BYTES >> 20} MiB"
        raise TileError(
            Status.TOO_LARGE, f"a JPEG of unusual sampling factors of more than {limit}"
        )
    pixels = _decode_by_pillow(data)
    scans = read_scans(data, header.segments, header.scan)
    progressive = header.coding.startswith("progressive")
    check_codes(scans, sampling(header.frame), header.width, header.height, progressive)
    return pixels


def _check_scans(data: bytes, header: Header) -> None:
    """Raise TileError if the JPEG lacks a scan. One scan of all components needs no look."""
    progressive = header.coding.startswith("progressive")
    of_first_scan = data[header.scan + 4 : header.scan + 5]  # empty where the file ends there
    if progressive or of_first_scan < bytes([header.components]):
        components = header.frame[6 : 6 + 3 * header.components : 3]
        check_complete(scan_headers(data, header.scan), components, progressive)


def without_extras(data: bytes, header: Header) -> bytes:
    """The same picture without the segments and stray bytes that decoding does not need."""
    scan = bytearray(data[header.scan :])
    if header.coding.startswith("sequential") and len(scan) > 4:
        end = 2 + int.from_bytes(scan[2:4])
        scan[end - 3 : end] = b"\0\x3f\0"  # of no meaning here, and some encoders leave them out
    adobe = b"" if header.adobe is None else _APP14 + bytes([header.adobe])
    jfif = _JFIF if header.jfif else b""
    kept = TABLE_MARKERS | _SOF.keys()
    needed = b"".join(data[a:b] for marker, a, b in header.segments if marker in kept)
    return b"\xff\xd8" + jfif + adobe + needed + scan


def _has_many_scans(data: bytes, limit: int) -> bool:
    """By their headers: the marker alone can occur by chance in what is no picture."""
    return next(itertools.islice(_SCAN.finditer(data), limit, None), None) is not None


def _check_frames(data: bytes, header: Header) -> None:
    """Raise TileError `several-pages` for an MPO of several views.

    Thumbnails and the gain map of a phone belong to the primary picture, which is the one read.
    """
    if not header.multi_picture:
        return
    try:
        directory = first_directory(header.multi_picture)
        entries = directory.raw(_MP_IMAGES)
    except TileError:
        return  # a broken segment names no further picture
    order: Literal["little", "big"] = "little" if directory.order == "<" else "big"
    types = [int.from_bytes(entries[at : at + 4], order) for at in range(0, len(entries), 16)]
    views = 1 + sum((t & 0xFFFFFF) >> 16 != _MP_THUMBNAIL for t in types[1:])
    if views > 1 and not any(mark in data for mark in _GAIN_MAPS):
        raise TileError(Status.SEVERAL_PAGES, f"a JPEG of {views} pictures (MPO)")
