"""PNG → 8-bit RGB by Pillow, after every chunk's checksum was compared."""

import io
import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from edgelung.tiles.budget import DECODING
from edgelung.tiles.colour import check_alpha, check_peak, exif_orientation, to_rgb, upright
from edgelung.tiles.errors import Status, TileError, damaged
from edgelung.tiles.resize import Tile
from edgelung.tiles.table import Kind, check_size, decide

# Of memory. Measured at 16 MP: 10 without, 17 with alpha or a transparent colour.
BYTES_PER_PIXEL = 18
MARK = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey", 6: "RGB"}
_ALPHA = (4, 6)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Interlacing: first row, first column, step of rows and step of columns of each pass.
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)

_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_EXIF_KEY = b"Raw profile type exif"  # as ImageMagick wrote it before there was eXIf
MAX_PROFILE = 2**18  # bytes of an EXIF profile in hexadecimal: the standard's limit is half of that
MAX_CHUNKS = 2**15


@dataclass(slots=True)
class _Chunks:
    """Chunks of interest: type → content; `order` of the types as they come; the IDAT chunks.

    `needed` is the file without texts and colour profiles, which Pillow would decompress.
    """

    content: dict[bytes, bytes] = field(default_factory=dict)
    order: list[bytes] = field(default_factory=list)
    pixels: list[memoryview] = field(default_factory=list)
    needed: list[memoryview] = field(default_factory=list)
    profile: bytes = b""  # a text that holds EXIF


def decode_png(data: bytes, size: int) -> Tile | Image.Image:
    """Decode a PNG; raises TileError. 16 bits by their high byte, alpha over white."""
    width, height, bits, colour = _read_header(data)
    check_size(width, height, size)
    DECODING.reserve(2 * len(data) + width * height * BYTES_PER_PIXEL)
    chunks = _read_chunks(data)
    _check_animation(chunks)
    alpha = "straight" if colour in _ALPHA else "key" if b"tRNS" in chunks.content else "none"
    decide(Kind("PNG", "Deflate", _COLOURS[colour], bits, alpha))
    try:
        with Image.open(io.BytesIO(b"".join(chunks.needed)), formats=["PNG"]) as source:
            source.load()
            _check_rows(source, data, chunks)
            pixels = _to_rgb(source, bits, colour, chunks.content)
            return upright(pixels, exif_orientation(_exif(chunks)))
    except TileError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, …
        raise damaged(error) from error


def stored_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header; raises TileError."""
    width, height, _, _ = _read_header(data)
    return width, height


def _read_header(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits and colour type; raises TileError."""
    if len(data) < 33:
        raise TileError(Status.TRUNCATED, "the PNG ends within its header")
    if data[12:16] == b"CgBI":
        raise TileError(Status.UNSUPPORTED, "an iOS PNG (CgBI); convert it to a standard PNG")
    if data[12:16] != b"IHDR" or data[25] not in _COLOURS or data[26:28] != b"\0\0":
        raise TileError(Status.CORRUPT, "the PNG header cannot be read")
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    return width, height, data[24], data[25]


def _read_chunks(data: bytes) -> _Chunks:
    """Raise TileError where a chunk is not what was written: Pillow does not check the pixels'."""
    chunks = _Chunks()
    place, view = len(MARK), memoryview(data)
    start = 0  # of what Pillow needs and is not in `needed` yet
    while (content := place + 8) <= len(data):  # chunks: length, type, content, CRC
        end = content + int.from_bytes(data[place : place + 4])
        if end + 4 > len(data):
            break
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise TileError(Status.CORRUPT, "a checksum of the PNG is not that of its bytes")
        kind = data[place + 4 : content]
        if kind in _TEXTS and data.startswith(_EXIF_KEY + b"\0", content):
            chunks.profile = _text(kind, data[content + len(_EXIF_KEY) + 1 : end])
        if kind == b"iCCP" or kind in _TEXTS:
            chunks.needed.append(view[start:place])
            start = end + 4
        if kind == b"IEND":
            if b"IDAT" not in chunks.order:
                raise TileError(Status.CORRUPT, "the PNG holds no pixels")
            chunks.needed.append(view[start : end + 4])
            return chunks
        chunks.order.append(kind)
        if len(chunks.order) > MAX_CHUNKS:
            raise TileError(Status.TOO_LARGE, f"a PNG of more than {MAX_CHUNKS} chunks")
        if kind == b"IDAT":
            chunks.pixels.append(view[content:end])
        if kind in (b"PLTE", b"tRNS", b"sBIT", b"acTL", b"eXIf"):
            chunks.content[kind] = data[content:end]
        place = end + 4
    raise TileError(Status.TRUNCATED, "the PNG ends before its end mark")


def _check_rows(source: Image.Image, data: bytes, chunks: _Chunks) -> None:
    """Raise TileError where rows are missing: Pillow leaves them 0 if the data ends cleanly.

    The data is decompressed a second time only if the last row is 0, or the PNG is interlaced.
    """
    interlaced = data[28] == 1
    last = source.crop((0, source.height - 1, source.width, source.height)).tobytes()
    if not interlaced and last.strip(b"\0"):
        return
    expected = 0
    bits = data[24] * _CHANNELS[data[25]]
    for top, left, down, right in _ADAM7 if interlaced else _WHOLE:
        rows, columns = -(-(source.height - top) // down), -(-(source.width - left) // right)
        if rows > 0 and columns > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)  # each row begins with its filter
    decoder, found = zlib.decompressobj(), 0
    for part in chunks.pixels:
        for at in range(0, len(part), 2**12):  # which may grow a thousandfold
            found += len(decoder.decompress(part[at : at + 2**12]))
            if found >= expected:
                return
    raise TileError(Status.TRUNCATED, f"the PNG holds {found} of {expected} bytes of pixels")


def _check_animation(chunks: _Chunks) -> None:
    frames = int.from_bytes(chunks.content.get(b"acTL", b"\0\0\0\1")[:4])
    if frames > 1:
        raise TileError(Status.SEVERAL_PAGES, f"an animated PNG of {frames} frames")
    if b"acTL" in chunks.content and b"fcTL" not in chunks.order[: chunks.order.index(b"IDAT")]:
        raise TileError(
            Status.SEVERAL_PAGES, "an animated PNG whose frame is not its still picture"
        )


def _to_rgb(source: Image.Image, bits: int, colour: int, chunks: dict[bytes, bytes]) -> Image.Image:
    if colour == 3 and _peak(source) >= len(chunks.get(b"PLTE", b"")) // 3:
        raise TileError(Status.CORRUPT, "a pixel of the PNG has no entry in the palette")
    if bits == 16:
        _check_16_bits(source)
    _check_significant_bits(source, bits, colour, chunks.get(b"sBIT", b""))
    key = chunks.get(b"tRNS", b"")
    values = [int.from_bytes(key[at : at + 2]) for at in range(0, len(key), 2)]
    if colour in (0, 2) and values and max(values) >= 2**bits:
        raise TileError(
            Status.UNSUPPORTED, f"a PNG of {bits} bits whose transparent colour (tRNS) has more"
        )
    if colour == 0 and key:
        return _grey_with_key(source, bits, int.from_bytes(key[:2]))
    if source.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(source) >> 8).astype(np.uint8)).convert("RGB")
    return to_rgb(source)


def _grey_with_key(source: Image.Image, bits: int, key: int) -> Image.Image:
    """Grey whose samples equal to `key` are transparent; Pillow compares it with scaled ones."""
    grey = np.asarray(source).astype(np.uint16)
    if bits == 1:
        grey = grey * 255
    scaled = key if bits >= 8 else key * 255 // (2**bits - 1)
    check_alpha(grey != scaled)
    shown = np.where(grey == scaled, 255, grey >> 8 if bits == 16 else grey)
    return Image.fromarray(shown.astype(np.uint8)).convert("RGB")


def _peak(source: Image.Image) -> int:
    """The largest sample of any colour, as Pillow holds it."""
    extrema = source.getextrema()
    pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
    colours = pairs[: len(pairs) - (source.mode in ("LA", "RGBA"))] or pairs
    return max(int(pair[1]) for pair in colours)


def _check_16_bits(source: Image.Image) -> None:
    # Of RGB and of grey with alpha, Pillow holds the high byte only.
    check_peak(_peak(source) if source.mode.startswith("I") else _peak(source) * 256 + 255)
    if source.mode in ("LA", "RGBA"):
        check_peak(_peak(source.getchannel("A")) * 256 + 255, "alpha")


def _check_significant_bits(source: Image.Image, bits: int, colour: int, stated: bytes) -> None:
    """Raise TileError where sBIT names fewer bits and samples may not use the full range.

    The standard asks for samples scaled to all bits; some writers leave them as they were. In 16
    bits the two cannot be told apart for sure.
    """
    if not stated or colour == 3 or bits < 8:
        return
    fewer = max(stated[: 1 if colour in (0, 4) else 3])
    if 0 < fewer < bits and (bits == 16 or _peak(source) < 2**fewer):
        raise TileError(Status.UNSUPPORTED, f"a PNG of {fewer} significant bits in {bits} (sBIT)")


def _text(kind: bytes, body: bytes) -> bytes:
    """The text of a chunk behind its key, at most MAX_PROFILE bytes; empty where it is damaged."""
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed = body[:1] == b"\1"
        body = body[2:].split(b"\0", 2)[-1]  # language, translated key, text
    if not compressed:
        return body[:MAX_PROFILE]
    try:
        return zlib.decompressobj().decompress(body[1:] if kind == b"zTXt" else body, MAX_PROFILE)
    except zlib.error:
        return b""


def _exif(chunks: _Chunks) -> bytes:
    if b"eXIf" in chunks.content:
        return chunks.content[b"eXIf"]
    lines = chunks.profile.split(b"\n", 3)  # an empty one, the name, the length, the profile
    try:
        return bytes.fromhex(lines[3].decode("ascii")) if len(lines) > 3 else b""
    except ValueError:
        return b""
