"""BMP → 8-bit RGB, by our own decoder.

Pillow's versions differ in what they make of run-length encoded BMPs. Reference: Microsoft, Bitmap
Storage (BITMAPINFOHEADER to BITMAPV5HEADER) and the OS/2 BITMAPCOREHEADER.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.tiles.bits import unpack_rows
from edgelung.tiles.budget import DECODING
from edgelung.tiles.colour import over_white, to_8_bits
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.resize import Tile
from edgelung.tiles.table import Kind, check_size, decide

MARK = b"BM"
_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # lengths; 12, 16 and 64 are OS/2's
_COMPRESSIONS = {0: "none", 1: "RLE8", 2: "RLE4", 3: "bit fields", 4: "JPEG", 5: "PNG"}
_COMPRESSIONS |= {6: "bit fields"}
_COMPRESSIONS_OS2 = {0: "none", 1: "RLE8", 2: "RLE4", 3: "Huffman 1D", 4: "RLE24"}
MAX_RLE_BYTES = 4 * 2**20  # runs are decoded one by one


@dataclass(frozen=True, slots=True)
class _Header:
    width: int
    height: int
    top_down: bool
    bits: int  # of a pixel
    compression: str
    palette: Tile  # (entries, 3) RGB
    masks: tuple[int, ...]  # of red, green, blue and, where there is one, alpha
    pixels: int  # offset

    @property
    def kind(self) -> Kind:
        alpha = "straight" if len(self.masks) == 4 and self.masks[3] else "none"
        colour = "palette" if self.bits <= 8 else "RGB"
        return Kind("BMP", self.compression, colour, self.bits, alpha)


def looks_like_bmp(data: bytes) -> bool:
    """Whether the two letters are followed by a header length that exists."""
    return data[:2] == MARK and int.from_bytes(data[14:18], "little") in _HEADERS


def decode_bmp(data: bytes, size: int) -> Tile | Image.Image:
    """Decode a BMP, alpha over white where its header has an alpha mask; raises TileError."""
    header = _read_header(data)
    decide(header.kind)
    check_size(header.width, header.height, size)
    DECODING.reserve(len(data) + header.width * header.height * _bytes_per_pixel(header))
    if header.compression.startswith("RLE"):
        indices = _decode_rle(data, header)
    elif header.bits <= 8:
        indices = unpack_rows(_rows(data, header), header.bits, header.width)
    else:
        pixels = _decode_colours(_rows(data, header), header)
        return _flip(pixels, header)
    if indices.max() >= len(header.palette):
        raise TileError(Status.CORRUPT, "a pixel of the BMP has no entry in the palette")
    return _flip(header.palette[indices], header)


def _bytes_per_pixel(header: _Header) -> int:
    """Of memory, at most. Measured at 16 MP: 7 (8 bits), 8 (RLE8), 6 (24 bits), 22 (masks)."""
    return 10 if header.bits in (1, 2, 4, 8, 24) else 24


def _read_header(data: bytes) -> _Header:
    def number(at: int, length: int, signed: bool = False) -> int:
        return int.from_bytes(data[at : at + length], "little", signed=signed)

    length = number(14, 4)
    if len(data) < 14 + length:
        raise TileError(Status.TRUNCATED, "the BMP ends within its header")
    if length == 12:
        width, height, planes, bits = (number(at, 2) for at in (18, 20, 22, 24))
        code, used, entry = 0, 0, 3
    else:
        width, height = number(18, 4, signed=True), number(22, 4, signed=True)
        planes, bits = number(26, 2), number(28, 2)
        code, used, entry = (number(30, 4), number(46, 4), 4) if length >= 40 else (0, 0, 4)
    if planes != 1:
        raise TileError(Status.CORRUPT, f"the BMP says {planes} planes; the format has 1")
    names = _COMPRESSIONS_OS2 if length == 64 else _COMPRESSIONS
    compression = names.get(code, str(code))
    top_down = height < 0
    if top_down and compression.startswith("RLE"):
        raise TileError(Status.UNSUPPORTED, "a run-length encoded BMP stored from the top down")
    masks, after = _read_masks(data, length, code, bits)
    pixels = number(10, 4)
    # Many writers leave the count at 0 or too large; the pixels' offset bounds it.
    entries = min(used or 2**bits, 256, max(0, pixels - after) // entry) if bits <= 8 else 0
    table = np.frombuffer(data[after : after + entries * entry], np.uint8)
    palette = table[: len(table) // entry * entry].reshape(-1, entry)[:, 2::-1]
    return _Header(width, abs(height), top_down, bits, compression, palette, masks, pixels)


def _read_masks(data: bytes, length: int, code: int, bits: int) -> tuple[tuple[int, ...], int]:
    """The colour masks and where the palette begins."""
    after = 14 + length
    if code not in (3, 6) or length == 64:
        return ((0x7C00, 0x3E0, 0x1F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF)), after
    count = 4 if length >= 56 or code == 6 else 3
    if length == 40:
        after += 4 * count
    words = np.frombuffer(data[54 : 54 + 4 * count].ljust(4 * count, b"\0"), "<u4")
    masks = tuple(int(word) for word in words)
    used = 0
    for mask in masks:
        ones = mask >> _shift(mask)
        if ones & (ones + 1) or mask & used or ones >= 2**16:
            raise TileError(Status.UNSUPPORTED, "a BMP whose colour masks overlap or have gaps")
        used |= mask
    if not all(masks[:3]) or used >= 2**bits:
        raise TileError(Status.UNSUPPORTED, "a BMP without a mask for each of red, green and blue")
    return masks, after


def _shift(mask: int) -> int:
    return (mask & -mask).bit_length() - 1 if mask else 0


def _rows(data: bytes, header: _Header) -> Tile:
    """The bytes of each row, uint8 (H, bytes), in the order of the file."""
    stride = (header.width * header.bits + 31) // 32 * 4
    end = header.pixels + stride * header.height
    padding = stride - (header.width * header.bits + 7) // 8  # of the last row, often left out
    if header.pixels < 26 or len(data) < end - padding:
        raise TileError(Status.TRUNCATED, "the BMP ends before its last row")
    stored = np.frombuffer(data[header.pixels : end].ljust(stride * header.height, b"\0"), np.uint8)
    return stored.reshape(header.height, stride)


def _decode_colours(rows: Tile, header: _Header) -> Tile:
    width, size = header.width, header.bits // 8
    pixels = rows[:, : width * size].reshape(header.height, width, size)
    if header.compression == "none" and size > 2:  # blue, green, red and, of 32 bits, a spare byte
        return pixels[..., 2::-1]
    words = np.ascontiguousarray(pixels).view(f"<u{size}")[..., 0]
    channels = []
    for mask in header.masks:
        if mask:
            shift = _shift(mask)
            values = ((words & mask) >> shift).astype(np.uint16)
            channels.append(to_8_bits(values, (mask >> shift).bit_length()))
    if len(channels) == 3:
        return np.stack(channels, -1)
    return np.asarray(over_white(np.stack(channels, -1)))


def _flip(pixels: Tile, header: _Header) -> Tile:
    return np.ascontiguousarray(pixels if header.top_down else pixels[::-1])


def _decode_rle(data: bytes, header: _Header) -> npt.NDArray[np.uint8]:
    """Palette indices (H, W) of RLE8 or RLE4, the lowest row first; raises TileError."""
    width, height, half = header.width, header.height, header.bits == 4
    if len(data) - header.pixels > MAX_RLE_BYTES:
        raise TileError(
            Status.TOO_LARGE, f"a run-length encoded BMP of more than {MAX_RLE_BYTES} bytes"
        )
    stride = -(-width // 8) * 8 if half else -(-width // 4) * 4  # some writers' runs pad the rows
    out, written = bytearray(stride * height), bytearray(stride * height)
    x = y = 0
    at = header.pixels
    while True:
        if at + 2 > len(data):
            raise TileError(Status.TRUNCATED, "the BMP ends within its runs")
        count, value = data[at], data[at + 1]
        at += 2
        if count == 0 and value == 1:  # the end of the picture
            break
        if count == 0 and value == 0:  # the end of the row
            x, y = 0, y + 1
            continue
        if count == 0 and value == 2:  # move on
            if at + 2 > len(data):
                raise TileError(Status.TRUNCATED, "the BMP ends within its runs")
            x, y, at = x + data[at], y + data[at + 1], at + 2
            continue
        if count:
            run = bytes([value >> 4, value & 15]) * (count // 2 + 1) if half else bytes([value])
            run = run[:count] if half else run * count
        else:
            length = (value + 1) // 2 if half else value
            run = data[at : at + length]
            if len(run) < length:
                raise TileError(Status.TRUNCATED, "the BMP ends within its runs")
            run = bytes(n for b in run for n in (b >> 4, b & 15))[:value] if half else run
            at += length + length % 2
        if y >= height or x + len(run) > stride:
            raise TileError(Status.CORRUPT, "a run of the BMP passes the end of its row")
        start = y * stride + x
        out[start : start + len(run)] = run
        written[start : start + len(run)] = b"\1" * len(run)
        x += len(run)
    if not np.frombuffer(written, np.uint8).reshape(height, stride)[:, :width].all():
        raise TileError(Status.UNSUPPORTED, "a run-length encoded BMP that leaves pixels undefined")
    return np.frombuffer(out, np.uint8).reshape(height, stride)[:, :width]
