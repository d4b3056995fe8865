"""The one way to read a tile: file → bytes → 8-bit RGB → uint8 [size, size, 3].

Validation, calibration, the gate and inference all call `read_tile`; training adds augmentation on
top of it. `ReaderSpec` says what it does and travels in the bundle, because a deployment that
decodes or resizes differently from training silently loses accuracy.

A file is read as its header says its makers meant it, or refused with the reason: see
`edgelung.tiles.table`.
"""

import os
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

from edgelung.tiles.bmp import decode_bmp, looks_like_bmp
from edgelung.tiles.budget import DECODING
from edgelung.tiles.errors import NOT_A_TILE, Status, TileError
from edgelung.tiles.files import (
    MAX_BYTES,
    check_bytes,
    check_length,
    looks_like,
    looks_like_image,
    read_bytes,
    read_found,
)
from edgelung.tiles.find import FoundFile
from edgelung.tiles.jpeg import MARK as JPEG_MARK
from edgelung.tiles.jpeg import decode_jpeg, read_header
from edgelung.tiles.png import MARK as PNG_MARK
from edgelung.tiles.png import decode_png, stored_size
from edgelung.tiles.resize import Tile, resize, resize_by_pillow, resize_rgb
from edgelung.tiles.sizes import Size
from edgelung.tiles.spec import ReaderSpec
from edgelung.tiles.table import MAX_PIXELS
from edgelung.tiles.tiff_directory import TIFF_MARKS
from edgelung.tiles.webp import decode_webp

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ReaderSpec",
    "Tile",
    "TileError",
    "decode_file",
    "decode_tile",
    "image_size",
    "looks_like",
    "looks_like_image",
    "read_bytes",
    "read_decoded",
    "read_encoded",
    "read_found",
    "read_pixels",
    "read_tile",
    "resize",
    "resize_by_pillow",
    "resize_rgb",
]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")

# Beginnings of what is an image and not read: offset, bytes, name.
_OTHERS = (
    (0, b"GIF8", "a GIF image"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"ftyp", "an HEIF image or a video"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"II\xbc\1", "a JPEG XR image"),
    (0, b"\x8bJNG", "a JNG image"),
    (0, b"\x8aMNG", "an MNG animation"),
    (0, b"BA", "an OS/2 bitmap array"),
    (0, b"ZISRAWFILE", "a Zeiss CZI file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"%PDF-", "a PDF document"),
)
_APPLE_DOUBLE = b"\0\5\x16\7"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MANGLED_PNG = (b"\x89PNG\n", b"\x89PNG\r\r\n")  # transferred as text: line ends were changed
_DICOM_SLIDE = b"1.2.840.10008.5.1.4.1.1.77.1.6"  # SOP class: VL Whole Slide Microscopy Image

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS replaces Pillow's warning
# What Pillow warns of (broken EXIF, odd chunks) is either an error, a row's status, or harmless.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


def read_tile(path: str | os.PathLike[str], spec: ReaderSpec, out: Tile | None = None) -> Tile:
    """Read one file as uint8 RGB [size, size, 3], into `out` if given; raises TileError."""
    with DECODING:
        return resize(_decode(read_bytes(path), spec)[0], spec.size, out)


def read_pixels(path: str | os.PathLike[str], spec: ReaderSpec) -> Tile:
    """As `read_tile`, but before the resize: uint8 RGB [H, W, 3].

    For engines that resize on their device (`edgelung.kernels.resize`, the same pixels).
    """
    with DECODING:
        return np.asarray(_decode(read_bytes(path), spec)[0])


def read_decoded(file: FoundFile, spec: ReaderSpec) -> tuple[Tile | Image.Image, Size]:
    """The decoded pixels before the resize, and the size of the image in the file.

    The two sizes differ where a large JPEG is decoded at a smaller scale. Raises TileError.
    """
    with DECODING:
        return _decode(read_found(file), spec)


def read_encoded(data: bytes, spec: ReaderSpec) -> tuple[Tile | Image.Image, Size]:
    """As `read_decoded`, of a file's bytes that came another way. Raises TileError."""
    with DECODING:
        check_bytes(data)
        check_length(len(data))
        return _decode(data, spec)


def decode_tile(data: bytes, spec: ReaderSpec, out: Tile | None = None) -> Tile:
    """Decode and resize encoded bytes as `read_tile` does; raises TileError with a status."""
    with DECODING:
        return resize(_decode(data, spec)[0], spec.size, out)


def decode_file(data: bytes, spec: ReaderSpec) -> Tile:
    """The tile of a file whose content is in memory, by the rules of `read_tile`.

    A name can say that a file is a slide; here only the content can. Raises TileError.
    """
    with DECODING:
        return resize(read_encoded(data, spec)[0], spec.size)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of an encoded image; raises TileError.

    The size of a JPEG or PNG is read from its header, before any rotation; others are decoded.
    """
    decoder = _decoder(data)
    if decoder is decode_jpeg:
        header = read_header(data)
        return header.width, header.height
    if decoder is decode_png:
        return stored_size(data)
    with DECODING:
        height, width, _ = np.asarray(decoder(data, 1)).shape
    return width, height


def _decode(data: bytes, spec: ReaderSpec) -> tuple[Tile | Image.Image, Size]:
    if data.startswith(JPEG_MARK):
        header = read_header(data)
        return decode_jpeg(data, spec.size, header), (header.width, header.height)
    pixels = _decoder(data)(data, spec.size)
    if isinstance(pixels, Image.Image):
        return pixels, pixels.size
    height, width, _ = pixels.shape
    return pixels, (width, height)


def _decoder(data: bytes) -> Callable[[bytes, int], Tile | Image.Image]:
    """The decoder for the bytes, whatever the file's name; raises TileError for other content."""
    if data.startswith(JPEG_MARK):
        return decode_jpeg
    if data.startswith(PNG_MARK):
        return decode_png
    if data[:4] in TIFF_MARKS:
        from edgelung.tiles.tiff import decode_tiff  # and what reads XML: for TIFF alone

        return decode_tiff
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return decode_webp
    if looks_like_bmp(data):
        return decode_bmp
    if data[128:132] == b"DICM" and _DICOM_SLIDE in data[:4096]:
        raise TileError(Status.SLIDE, f"a whole slide (DICOM), {NOT_A_TILE}")
    if data.startswith(_APPLE_DOUBLE):
        raise TileError(Status.SKIPPED, "macOS metadata (AppleDouble), not an image")
    if data.startswith(_LFS_POINTER):
        raise TileError(Status.UNSUPPORTED, "a Git LFS pointer, not an image; run `git lfs pull`")
    if data.startswith(_MANGLED_PNG):
        reason = "a PNG whose line ends were changed by a transfer as text; copy it again as binary"
        raise TileError(Status.CORRUPT, reason)
    for offset, mark, name in _OTHERS:
        if data.startswith(mark, offset):
            raise TileError(Status.UNSUPPORTED, f"{name}; convert it to PNG or TIFF")
    raise TileError(Status.UNSUPPORTED, "not a JPEG, PNG, TIFF, BMP or WebP image")
