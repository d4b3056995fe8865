"""Strips and tiles of a TIFF that hold JPEG data → uint8 pixels.

The TIFF says by Photometric whether three components are RGB or YCbCr. The JPEG data must not say
otherwise; an Adobe segment with the TIFF's word is put in front of it, because the data of many
scanners says nothing and libjpeg-turbo then takes RGB for YCbCr.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg

from edgelung.tiles.budget import DECODING, FREE
from edgelung.tiles.errors import Status, TileError, damaged
from edgelung.tiles.jpeg import (
    MARK,
    TABLE_MARKERS,
    Header,
    decode_with_header,
    read_header,
    without_extras,
)
from edgelung.tiles.jpeg_scans import sampling
from edgelung.tiles.resize import Tile

EIGHTHS = 8  # libjpeg-turbo decodes at M/8 of the size; 8 is the full size
# Sampling factors that TurboJPEG has names for: luma's; those of both chromas are 1×1.
_USUAL_SAMPLING = frozenset([(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)])


def decode_segment(tables: bytes, segment: bytes, transform: bool) -> Tile:
    """Decode one strip or tile of a TIFF: uint8 (H, W) or RGB (H, W, 3); raises TileError.

    `tables`: the TIFF's JPEGTables, or empty. `transform`: whether the TIFF says that three
    components are YCbCr and not RGB.
    """
    header = _checked_header(segment, transform)
    whole = _complete(tables, segment, header)
    pixels = np.asarray(decode_with_header(whole, read_header(whole), 0))
    return pixels[..., 0] if header.components == 1 else pixels


def _checked_header(segment: bytes, transform: bool) -> Header:
    """The header, with the TIFF's word on the colours; TileError where its own contradicts it."""
    if not segment.startswith(MARK[:2]):
        raise TileError(Status.CORRUPT, "JPEG data in the TIFF does not begin as a JPEG")
    header = read_header(segment)
    if header.components == 3:
        says_ycc = header.jfif if header.adobe is None else header.adobe == 1
        says_rgb = header.adobe == 0 and not header.jfif
        factors = sampling(header.frame)
        says_ycc |= len(set(factors.values())) > 1  # nobody subsamples green and blue
        says_rgb |= bytes(factors) == b"RGB" and not header.jfif
        if says_rgb if transform else says_ycc:
            names = ("YCbCr", "RGB") if transform else ("RGB", "YCbCr")
            reason = "the TIFF says {} and the JPEG data in it {}".format(*names)
            raise TileError(Status.UNSUPPORTED, reason)
    if header.components not in (1, 3):
        raise TileError(
            Status.UNSUPPORTED, f"JPEG data of {header.components} components in a TIFF"
        )
    header.jfif, header.adobe = False, int(transform)
    return header


def _complete(tables: bytes, segment: bytes, header: Header) -> bytes:
    """The segment as a JPEG of its own: Adobe's mark, the TIFF's tables, its own and its scans."""
    return b"\xff\xd8" + _tables(tables) + without_extras(segment, header)[2:]


def _tables(data: bytes) -> bytes:
    """The quantization and Huffman tables of an abbreviated stream of tables only."""
    if not data:
        return b""
    frame = b"\xff\xc0\0\x08\x08\0\0\0\0\0\xff\xda\0\0"  # `read_header` asks for a frame, a scan
    header = read_header(data.removesuffix(b"\xff\xd9") + frame)
    return b"".join(data[a:b] for marker, a, b in header.segments if marker in TABLE_MARKERS)


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The bytes before the entropy-coded data, which most tiles of a level share.

    Attributes:
        stored: as they stand in the file.
        complete: what replaces them, see `_complete`.
        is_grey: one component.
        is_plain: one sequential scan that simplejpeg decodes, so that no scan can be missing.
    """

    stored: bytes
    complete: bytes
    is_grey: bool
    is_plain: bool


class SegmentDecoder:
    """Decodes the JPEG tiles of one level of a slide; for several threads.

    A header is parsed once and known again by its bytes: reading it takes a fifth of the time of a
    tile of 256 px.

    Attributes:
        width, height: of a tile, pixels.
    """

    def __init__(self, tables: bytes, transform: bool, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._tables, self._transform = tables, transform
        self._prefix: _Prefix | None = None

    def decode(self, segment: bytes, eighths: int = EIGHTHS) -> Tile:
        """Decode a tile at `eighths` / 8 of its size: RGB (H, W, 3), or (H, W) of one component.

        With `eighths` < 8, width and height must be multiples of 8.

        Raises:
            TileError: it is damaged, of another size than the TIFF says, or of other colours.
        """
        prefix = self._prefix
        if prefix is None or not segment.startswith(prefix.stored):
            prefix = self._prefix = self._learn(segment)
        data = prefix.complete + segment[len(prefix.stored) :]
        width, height = self.width * eighths // EIGHTHS, self.height * eighths // EIGHTHS
        needed = 2 * len(data) + 6 * width * height
        if not prefix.is_plain:
            size = 0 if eighths == EIGHTHS else min(width, height)
            with DECODING:
                pixels = np.asarray(decode_with_header(data, read_header(data), size))
        elif needed > FREE:
            with DECODING:
                DECODING.reserve(needed)
                pixels = _decode_plain(data, width, height)
        else:
            pixels = _decode_plain(data, width, height)
        if pixels.shape[:2] != (height, width):  # unusual sampling is decoded at full size only
            raise TileError(Status.UNSUPPORTED, "JPEG data in a TIFF that cannot be scaled")
        return pixels[..., 0] if prefix.is_grey else pixels

    def _learn(self, segment: bytes) -> _Prefix:
        """Read and check the header of a segment; raises TileError."""
        header = _checked_header(segment, self._transform)
        if (header.width, header.height) != (self.width, self.height):
            raise TileError(
                Status.CORRUPT,
                f"JPEG data of {header.width}×{header.height} px in a TIFF tile of "
                f"{self.width}×{self.height} px",
            )
        end = header.scan + 2 + int.from_bytes(segment[header.scan + 2 : header.scan + 4])
        factors = list(sampling(header.frame).values())
        is_usual = header.components == 1 or (
            factors[0] in _USUAL_SAMPLING and factors[1:] == [(1, 1), (1, 1)]
        )
        is_plain = (
            header.coding == "sequential Huffman"
            and header.bits == 8
            and segment[header.scan + 4 : header.scan + 5] == bytes([header.components])
            and is_usual
        )
        stored = segment[:end]
        complete = _complete(self._tables, stored, header)
        return _Prefix(stored, complete, header.components == 1, is_plain)


def _decode_plain(data: bytes, width: int, height: int) -> Tile:
    """Decode one scan at the scale that gives this size; any warning of libjpeg is an error."""
    try:
        pixels: Tile = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=1
        )
    except Exception as error:  # ValueError, and KeyError for a sampling that it does not know
        raise damaged(error) from error
    return pixels
