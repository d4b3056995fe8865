"""WebP → 8-bit RGB by Pillow."""

import io

from PIL import Image

from edgelung.tiles.budget import DECODING
from edgelung.tiles.colour import exif_orientation, to_rgb, upright
from edgelung.tiles.errors import Status, TileError, damaged
from edgelung.tiles.resize import Tile
from edgelung.tiles.table import Kind, check_size, decide

BYTES_PER_PIXEL = 25  # of memory. Measured at 16 MP: 18 without, 24 with alpha
MAX_CHUNKS = 32_768  # as of a PNG; a picture has a handful
_KNOWN = (b"VP8X", b"VP8L", b"VP8 ", b"ALPH", b"ANIM", b"ANMF")
_ANIMATION, _ALPHA = 0x02, 0x10  # flags of a VP8X chunk


def decode_webp(data: bytes, size: int) -> Tile | Image.Image:
    """Decode a WebP, alpha over white; raises TileError. Animations are refused."""
    stated = 8 + int.from_bytes(data[4:8], "little")
    if stated > len(data):
        raise TileError(Status.TRUNCATED, f"{len(data)} bytes of a WebP of {stated}")
    chunks = _read_chunks(data[:stated])
    if not chunks:
        raise TileError(Status.TRUNCATED, "the WebP ends within its header")
    extended = chunks.get(b"VP8X", b"")
    if b"ANIM" in chunks or b"ANMF" in chunks or (extended and extended[0] & _ANIMATION):
        raise TileError(Status.SEVERAL_PAGES, "an animated WebP")
    coding = next((name for name in ("VP8L", "VP8 ") if name.encode() in chunks), "")
    if not coding:
        raise TileError(Status.CORRUPT, "the WebP holds no picture")
    has_alpha = b"ALPH" in chunks or bool(extended and extended[0] & _ALPHA)
    decide(Kind("WebP", coding.strip(), "RGB", 8, "straight" if has_alpha else "none"))
    sizes = _sizes(chunks)
    for width, height in sizes:
        check_size(width, height, size)
    pixels = max((width * height for width, height in sizes), default=0)
    DECODING.reserve(len(data) + pixels * BYTES_PER_PIXEL)
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as source:
            source.load()
            return upright(to_rgb(source), exif_orientation(source.info.get("exif", b"")))
    except TileError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise damaged(error) from error


def _read_chunks(data: bytes) -> dict[bytes, bytes]:
    """The first 16 bytes of the first chunk of each type that counts, and of the first of all.

    Raises TileError for more than MAX_CHUNKS.
    """
    chunks: dict[bytes, bytes] = {}
    at, count = 12, 0
    while at + 8 <= len(data):
        if (count := count + 1) > MAX_CHUNKS:
            raise TileError(Status.TOO_LARGE, f"a WebP of more than {MAX_CHUNKS} chunks")
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        kind = data[at : at + 4]
        if not chunks or kind in _KNOWN:
            chunks.setdefault(kind, data[at + 8 : at + 8 + min(length, 16)])
        at += 8 + length + length % 2
    return chunks


def webp_sizes(data: bytes) -> list[tuple[int, int]]:
    """Width and height by each of the headers, before a decoder allocates them.

    Raises TileError for too many chunks.
    """
    return _sizes(_read_chunks(data))


def _sizes(chunks: dict[bytes, bytes]) -> list[tuple[int, int]]:
    sizes = []
    if len(canvas := chunks.get(b"VP8X", b"")) >= 10:
        width = 1 + int.from_bytes(canvas[4:7], "little")
        sizes.append((width, 1 + int.from_bytes(canvas[7:10], "little")))
    if len(lossless := chunks.get(b"VP8L", b"")) >= 5:
        packed = int.from_bytes(lossless[1:5], "little")
        sizes.append((1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)))
    if len(lossy := chunks.get(b"VP8 ", b"")) >= 10:
        width = int.from_bytes(lossy[6:8], "little") & 0x3FFF
        sizes.append((width, int.from_bytes(lossy[8:10], "little") & 0x3FFF))
    return sizes
