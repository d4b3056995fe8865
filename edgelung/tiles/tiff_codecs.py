"""Decompression of one strip or tile of a TIFF.

The usual codecs need nothing but the standard library, or simplejpeg; libtiff is not used, because
it prints its errors to stderr and carries on. The rest comes from imagecodecs, which is imported
when a file needs it.
"""

import importlib
import zlib
from collections.abc import Callable
from types import ModuleType

import numpy as np
import numpy.typing as npt

from edgelung.core.errors import one_line
from edgelung.tiles.colour import Samples
from edgelung.tiles.errors import Status, TileError, damaged
from edgelung.tiles.jpeg2000 import jpeg2000_bits, jpeg2000_components, jpeg2000_sizes
from edgelung.tiles.webp import webp_sizes

NAMES = {  # tag 259 → name; those of the decision table and those that only a refusal needs
    1: "none",
    2: "CCITT run-length",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    6: "old-style JPEG",
    7: "JPEG",
    8: "Deflate",
    32766: "NeXT",
    32773: "PackBits",
    32809: "ThunderScan",
    32946: "Deflate",
    33003: "JPEG 2000, Aperio YCbCr",
    33005: "JPEG 2000",
    33007: "lossy JPEG, alternative",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv 24",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL of DNG",
}
MAX_COMPONENTS = 4  # of a JPEG 2000 in a TIFF: colours and alpha
_CLEAR, _END = 256, 257  # codes of LZW


def excess_reason(size: int) -> str:
    """Why a segment of more than `size` bytes is refused."""
    return f"a TIFF segment of more than the {size} bytes that its header's size and bits make"


def decoding_memory(compression: str, samples: int, sample: int, length: int) -> int:
    """Bytes that decoding a segment needs at most: `samples` of so many bytes, from `length`."""
    if compression == "JPEG":  # pixels, coefficients, and the data with the tables in front
        return 2 * length + samples * 5
    if compression in _PICTURES:  # integers of 32 bits; WebP is RGBA
        return samples * (sample + 5)
    if compression == "LZW" and _imagecodecs() is None:
        return samples * 3 * sample + 80 * length  # `unlzw`: a list of codes
    return samples * sample * (1 + sample) + length


def inflate(data: bytes, size: int) -> bytes:
    """Decompress Deflate to at most `size` bytes; raises TileError, also without the checksum."""
    decoder = zlib.decompressobj()
    try:
        decoded = decoder.decompress(data, size)
        if len(decoded) == size and not decoder.eof:
            decoder.decompress(decoder.unconsumed_tail, 1)  # checks the checksum
    except zlib.error as error:
        raise TileError(Status.CORRUPT, one_line(error)) from error
    if len(decoded) < size and not decoder.eof:
        raise TileError(Status.TRUNCATED, "Deflate data that ends before its checksum")
    return decoded


def unpack_bits(data: bytes, size: int) -> bytes:
    """Decompress PackBits to at most `size` bytes."""
    out, at = bytearray(), 0
    while at < len(data) and len(out) < size:
        code = data[at]
        if code < 128:
            out += data[at + 1 : at + 2 + code]
            at += 2 + code
        else:
            if code > 128:
                out += data[at + 1 : at + 2] * (257 - code)
            at += 2 if code > 128 else 1
    return bytes(out[:size])


def unlzw(data: bytes, size: int) -> bytes:
    """Decompress LZW to at most `size` bytes; raises TileError.

    Codes between two clear codes have widths that depend on their number only, so a whole table's
    worth of them is cut out of the bits at once. The string of an entry is that of the code before
    it and one byte more, both already in the output: the table holds offsets.
    """
    stream = np.frombuffer(data + bytes(4), np.uint8).astype(np.uint32)
    joined = stream[:-3] << 24 | stream[1:-2] << 16 | stream[2:-1] << 8 | stream[3:]
    words = joined.astype(np.uint32, copy=False)  # the 32 bits from each byte on
    out, bit, total = bytearray(), 0, 8 * len(data)
    while bit + 9 <= total and len(out) < size:
        codes, stop = _cut_codes(words, bit, total, _LZW_WIDTHS)
        if stop is None and len(codes) == len(_LZW_WIDTHS):  # a full table is kept without a clear
            rest = np.full(total // 12, 12)
            codes, stop = _cut_codes(words, bit, total, np.concatenate([_LZW_WIDTHS, rest]))
        _append_strings(out, codes[:stop].tolist(), size)
        if stop is None or codes[stop] == _END:
            break
        bit += int(_LZW_WIDTHS[: stop + 1].sum()) + 12 * max(0, stop + 1 - len(_LZW_WIDTHS))
    return bytes(out[:size])


def _cut_codes(
    words: npt.NDArray[np.uint32], bit: int, total: int, widths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], int | None]:
    """Codes of these widths from `bit` on, and the number of the first that clears or ends."""
    ends = bit + np.cumsum(widths)
    widths = widths[ends <= total]
    starts = ends[: len(widths)] - widths
    codes = words[starts >> 3] << (starts & 7).astype(np.uint32) >> (32 - widths)
    stops = np.flatnonzero((codes == _CLEAR) | (codes == _END))
    return codes, int(stops[0]) if len(stops) else None


def _append_strings(out: bytearray, codes: list[int], size: int) -> None:
    """Append the strings of the codes up to the next clear code."""
    places: list[int] = []  # where the string of each code begins
    for index, code in enumerate(codes):
        here = len(out)
        if code < 256:
            out.append(code)
        else:
            entry = code - 258  # made of the code numbered `entry` and the first byte of the next
            if entry >= index:
                raise TileError(Status.CORRUPT, "LZW data with a code that is not in its table")
            start = places[entry]
            end = (places[entry + 1] if entry + 1 < index else here) + 1
            if end > here:  # the entry being made: its last byte is its first
                out += out[start:here]
                out.append(out[start])
            else:
                out += out[start:end]
        places.append(here)
        if len(out) >= size:
            return


def _lzw_widths() -> npt.NDArray[np.int64]:
    """Bits of each code after a clear code; TIFF changes the width one code early."""
    sizes = np.arange(258, 4098)  # entries of the table once the code is read
    return np.select([sizes < 512, sizes < 1024, sizes < 2048], [9, 10, 11], 12)


_LZW_WIDTHS = _lzw_widths()

_BYTES: dict[str, Callable[[bytes, int], bytes]] = {
    "none": lambda data, size: data,
    "LZW": unlzw,
    "Deflate": inflate,
    "PackBits": unpack_bits,
}
_EXTRA = {"LZW": "lzw", "LZMA": "lzma", "Zstandard": "zstd"}
_PICTURES = {"JPEG 2000": "jpeg2k", "WebP": "webp"}


def decompress(name: str, data: bytes, size: int) -> bytes:
    """Decompress `data` by a byte codec to at most `size` bytes; raises TileError."""
    plain = _BYTES.get(name)
    if plain is not None and (name != "LZW" or _imagecodecs() is None):
        return plain(data, size)
    library = _need_imagecodecs(name)
    decode = getattr(library, f"{_EXTRA[name]}_decode")
    try:
        return bytes(decode(data, out=size))
    except Exception as error:  # every codec raises a type of its own
        if "buffer is too small" in str(error):  # Zstandard
            raise TileError(Status.UNSUPPORTED, excess_reason(size)) from error
        raise damaged(error) from error


def decode_picture(name: str, data: bytes, width: int, height: int, bits: int) -> Samples:
    """Decode a strip or tile that is a JPEG 2000 or a WebP; raises TileError.

    Its own header must say the size that the TIFF says, or less: a decoder allocates what it says.
    The bits of a JPEG 2000 must be those of the TIFF.
    """
    library = _need_imagecodecs(name)
    sizes = webp_sizes(data) if name == "WebP" else jpeg2000_sizes(data)
    if not sizes or any(w > width or h > height for w, h in sizes):
        raise TileError(
            Status.CORRUPT, f"{name} data of {sizes} px in a TIFF segment of {width}×{height}"
        )
    if name == "JPEG 2000" and jpeg2000_components(data) > MAX_COMPONENTS:
        raise TileError(
            Status.CORRUPT, f"JPEG 2000 data of {jpeg2000_components(data)} components in a TIFF"
        )
    if name == "JPEG 2000" and (found := jpeg2000_bits(data)) != {bits}:
        stated = ", ".join(map(str, sorted(found)))
        raise TileError(
            Status.UNSUPPORTED, f"JPEG 2000 data of {stated} bits in a TIFF of {bits} bits"
        )
    try:
        return np.asarray(getattr(library, f"{_PICTURES[name]}_decode")(data))
    except Exception as error:  # every codec raises a type of its own
        raise damaged(error) from error


_library: list[ModuleType | None] = []  # imported once; None where it is not installed


def _imagecodecs() -> ModuleType | None:
    if not _library:
        try:
            _library.append(importlib.import_module("imagecodecs"))
        except ImportError:
            _library.append(None)
    return _library[0]


def _need_imagecodecs(name: str) -> ModuleType:
    library = _imagecodecs()
    if library is None:
        raise TileError(
            Status.UNSUPPORTED,
            f"TIFF compression {name} needs an extra: pip install 'edgelung[tiff]'",
        )
    return library
