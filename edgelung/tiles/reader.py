"""The one way to read a tile: bytes → uint8 RGB [size, size, 3].

Validation, calibration, the gate and inference all call `read_tile`; training adds augmentation on
top of it. What it does is written down in `ReaderSpec`, which travels in the bundle, because a
deployment that decodes or resizes differently from training loses accuracy without a word.
"""

import importlib
import io
import itertools
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from edgelung.core.errors import EdgelungError, one_line

resize_rgb: Callable[..., None] | None
try:
    resize_rgb = importlib.import_module("edgelung.kernels._resize").resize_rgb
except ImportError:  # not built, or a CPU that is too old for it: Pillow gives the same pixels
    resize_rgb = None

Tile = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
MAX_PIXELS = 100_000_000  # 10,000 x 10,000: far above any tile, far below what fills memory
MAX_BYTES = 512 * 2**20
MAX_SCANS = 500  # of a JPEG, where ten are usual: each costs a pass over all pixels
_SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]")  # marker, length, components

_PNG = b"\x89PNG\r\n\x1a\n"

# EXIF orientation → what Pillow calls the way back.
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112

Image.MAX_IMAGE_PIXELS = None  # the limit above replaces Pillow's warning
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20  # Pillow's 1 MiB is less than many a colour profile
# What Pillow warns of (broken EXIF, odd TIFF tags) is either an error, a row's status, or harmless.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


class TileError(Exception):
    """A file that cannot be a tile: a short fixed status word and a reason for people."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class ReaderSpec:
    """How pixels come from a file, in words a second implementation could follow.

    The words are fixed for one `version`; only `size` (pixels) varies.
    """

    size: int = 224
    version: int = 1
    colour: str = "RGB, 8 bit; alpha over white; 16-bit grey by its high byte; no ICC"
    orientation: str = "EXIF"
    jpeg: str = "libjpeg-turbo, scaled by the smallest M/8 that still covers the size"
    resize: str = "Pillow BILINEAR (antialiased triangle filter), whole tile, no crop"

    def to_json(self) -> dict[str, Any]:
        """The spec as it stands in bundle.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ReaderSpec":
        """Read a spec back; raises EdgelungError where this reader would not give those pixels."""
        size = value.get("size")
        if not isinstance(size, int) or not 16 <= size <= 4096:
            raise EdgelungError(f"preprocessing names the tile size {size!r}; expected 16…4096")
        spec = cls(size=size)
        if value != spec.to_json():
            raise EdgelungError(
                f"preprocessing spec {value} is not the one this edgelung implements "
                f"({spec.to_json()}); install the edgelung version that wrote the bundle"
            )
        return spec


def read_tile(path: str | os.PathLike[str], spec: ReaderSpec, out: Tile | None = None) -> Tile:
    """Read one file as uint8 RGB [size, size, 3], into `out` if given; raises TileError."""
    return decode_tile(read_bytes(path), spec, out)


def read_bytes(path: str | os.PathLike[str], first: int = -1) -> bytes:
    """The file's bytes, or its `first`; raises TileError `unreadable`, `empty` or `too-large`."""
    try:
        # O_NONBLOCK: opening a named pipe must not hang the run.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            os.close(handle)
            raise TileError("unreadable", "not a regular file")
        with os.fdopen(handle, "rb") as file:
            if first < 0 and info.st_size > MAX_BYTES:
                raise TileError("too-large", f"{info.st_size} bytes; the limit is {MAX_BYTES}")
            data = file.read(first)
            now = os.fstat(file.fileno())
            if first < 0 and (now.st_size, now.st_mtime_ns) != (info.st_size, info.st_mtime_ns):
                raise TileError("unreadable", "the file was changed while it was read")
    except (OSError, ValueError) as error:  # ValueError: a NUL in a listed name
        reason = getattr(error, "strerror", None) or one_line(error)
        raise TileError("unreadable", reason) from error
    if not data:
        raise TileError("empty", "the file holds no bytes")
    return data


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file whose name says nothing begins as an image does."""
    try:
        return looks_like(read_bytes(path, 16))
    except TileError:
        return False


def looks_like(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG, PNG, TIFF or WebP does (BMP's two letters say little)."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"II*\0", b"MM\0*"))


def read_pixels(path: str | os.PathLike[str], spec: ReaderSpec) -> Tile:
    """As `read_tile`, but before the resize: uint8 RGB [H, W, 3].

    For engines that resize on their device (`edgelung.kernels.resize`, the same pixels).
    """
    return np.asarray(_decode(read_bytes(path), spec))


def decode_tile(data: bytes, spec: ReaderSpec, out: Tile | None = None) -> Tile:
    """Decode and resize encoded bytes as `read_tile` does; raises TileError with a status."""
    return resize(_decode(data, spec), spec.size, out)


def resize(pixels: Tile | Image.Image, size: int, out: Tile | None = None) -> Tile:
    """The one resize: the width first, then the height, each pass rounded to uint8.

    Compiled where the package was built with a C++ compiler (`kernels/resize_cpu.cpp`). `out`: C
    contiguous [size, size, 3] to write to, such as a tile's place in its batch.
    """
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    if resize_rgb is None:
        out[:] = resize_by_pillow(pixels, size)
        return out
    source = np.ascontiguousarray(pixels)
    if source.shape == out.shape:
        out[:] = source
    else:
        height, width, _ = source.shape
        resize_rgb(source, height, width, out, size)
    return out


def resize_by_pillow(pixels: Tile | Image.Image, size: int) -> Tile:
    """The same pixels, slower: what the resize is by definition.

    Two calls, each of which leaves one axis alone: asked for both at once, Pillow 13 begins with
    the height of a tall image where Pillow 12 did not, and many a pixel moves by one.
    """
    if isinstance(pixels, np.ndarray):
        pixels = Image.fromarray(pixels)
    for shape in ((size, pixels.height), (size, size)):
        if pixels.size != shape:
            pixels = pixels.resize(shape, Image.Resampling.BILINEAR)
    return np.asarray(pixels)


def _decode(data: bytes, spec: ReaderSpec) -> Tile | Image.Image:
    decode = _decode_jpeg if data[:3] == b"\xff\xd8\xff" else _decode_other
    return decode(data, spec.size)


def _decode_jpeg(data: bytes, size: int) -> Tile | Image.Image:
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception as error:  # ValueError, but KeyError for a header that it cannot make out
        if b"\xff\xda" not in data:  # no start of scan
            raise TileError("truncated", "the JPEG ends within its header") from error
        raise TileError("corrupt", "the JPEG header cannot be read") from error
    _check_pixels(width, height, size)
    if data.count(b"\xff\xda") > MAX_SCANS and _has_many_scans(data):
        raise TileError("too-large", f"a JPEG of more than {MAX_SCANS} scans")
    four_inks = colour in ("CMYK", "YCCK")
    try:
        # strict: a warning is an error, so half a file is never predicted as if it were whole
        pixels: Tile = simplejpeg.decode_jpeg(
            data,
            "CMYK" if four_inks else "RGB",
            min_height=size,
            min_width=size,
            min_factor=1,
        )
    except Exception as error:
        raise _damaged(error) from error
    # It is whole; but libjpeg-turbo has no CMYK → RGB. Pillow has, and knows of Adobe's inversion.
    if four_inks:
        return _decode_other(data, size)
    if not _may_hold_exif(data):
        return pixels
    try:
        source = Image.open(io.BytesIO(data), formats=["JPEG"])
    except Exception:  # Pillow is stricter about markers; the pixels are whole all the same
        return pixels
    return _upright(Image.fromarray(pixels), source)


def _has_many_scans(data: bytes) -> bool:
    """By their headers: the marker alone can stand by chance in what is no picture."""
    return next(itertools.islice(_SCAN.finditer(data), MAX_SCANS, None), None) is not None


def _may_hold_exif(data: bytes) -> bool:
    """Whether a segment before the first scan is EXIF."""
    place = 2
    while data[place : place + 1] == b"\xff":  # segments: marker, length, content
        marker = data[place + 1 : place + 2]
        if marker == b"\xda":
            return False
        if marker == b"\xe1" and data[place + 4 : place + 10] == b"Exif\0\0":
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return b"Exif\0\0" in data  # something stands between the segments: look everywhere


def _check_png(data: bytes) -> None:
    """Raise TileError where a chunk is not what was written: Pillow checks all but the pixels'."""
    place, view = len(_PNG), memoryview(data)
    while (content := place + 8) <= len(data):  # chunks: length, type, content, CRC
        end = content + int.from_bytes(data[place : place + 4])
        if end + 4 > len(data):
            break
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise TileError("corrupt", "a checksum of the PNG is not that of its bytes")
        if data[place + 4 : content] == b"IEND":
            return
        place = end + 4
    raise TileError("truncated", "the PNG ends before its end mark")


def _decode_other(data: bytes, size: int) -> Image.Image:
    stated = 8 + int.from_bytes(data[4:8], "little") if data[:4] == b"RIFF" else 0
    if stated > len(data):
        raise TileError("truncated", f"{len(data)} bytes of a WebP of {stated}")
    try:
        source = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if looks_like(data):
            raise TileError("corrupt", "the header cannot be read") from None
        raise TileError("unsupported", f"not a {', '.join(FORMATS[:-1])} or WebP image") from None
    except Exception as error:
        raise _damaged(error) from error
    _check_pixels(*source.size, size)
    if data.startswith(_PNG):
        _check_png(data)
    try:
        source.load()
        return _upright(_to_rgb(source), source)
    except TileError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise _damaged(error) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise TileError("unsupported", f"pixels of type {image.mode} have no defined white")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    """Turn `pixels` as the EXIF orientation of `source` says."""
    try:
        turn = _ORIENTATION.get(source.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def _check_pixels(width: int, height: int, size: int) -> None:
    # The resize's first pass holds `size` × the longer side, far more than a narrow image itself.
    if max(width * height, size * max(width, height)) > MAX_PIXELS:
        raise TileError("too-large", f"{width}×{height} pixels; the limit is {MAX_PIXELS}")


def _damaged(error: Exception) -> TileError:
    """`truncated` where the decoder says that data ran out, else `corrupt`."""
    text = one_line(error)
    ran_out = any(word in text.lower() for word in ("premature", "truncated", "no more data"))
    return TileError("truncated" if ran_out else "corrupt", text)
