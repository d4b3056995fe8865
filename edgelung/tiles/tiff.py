"""TIFF, BigTIFF and OME-TIFF → 8-bit RGB."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.tiles.bits import unpack_any, unpack_rows
from edgelung.tiles.budget import DECODING
from edgelung.tiles.colour import (
    Samples,
    check_peak,
    over_white,
    premultiplied_over_white,
    to_8_bits,
    upright,
)
from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.jpeg2000 import jpeg2000_memory
from edgelung.tiles.jpeg_segments import decode_segment
from edgelung.tiles.resize import Tile
from edgelung.tiles.table import PICTURES
from edgelung.tiles.tiff_codecs import (
    decode_picture,
    decoding_memory,
    decompress,
    excess_reason,
)
from edgelung.tiles.tiff_directory import Directory
from edgelung.tiles.tiff_layout import Layout, read_layout
from edgelung.tiles.tiff_pages import find_picture

_ORIENTATION, _COLOR_MAP = 274, 320
_REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))


def decode_tiff(data: bytes, size: int) -> Tile | Image.Image:
    """Decode a TIFF of one picture, alpha over white; raises TileError."""
    picture = find_picture(data)
    layouts = [read_layout(page, size, picture.bits_used) for page in picture.pages]
    first, page = layouts[0], picture.pages[0]
    orientation = page.integer(_ORIENTATION, 1)
    DECODING.reserve(len(data) + _memory(data, layouts, orientation))
    if len(layouts) == 1:
        return upright(_to_rgb(_read_samples(data, first), first, page), orientation)
    for layout, one in zip(layouts, picture.pages, strict=True):
        same = (layout.width, layout.height, layout.kind) == (first.width, first.height, first.kind)
        if not same or layout.samples != 1 or layout.kind.colour != "BlackIsZero":
            raise TileError(Status.SEVERAL_PAGES, "a TIFF whose channels differ in size or kind")
        if one.integer(_ORIENTATION, 1) != orientation:
            raise TileError(Status.SEVERAL_PAGES, "a TIFF whose channels differ in orientation")
    channels: Samples = np.dstack([_read_samples(data, layout) for layout in layouts])
    return upright(_to_8_bits(channels, first), orientation)


def _memory(data: bytes, layouts: list[Layout], orientation: int) -> int:
    """Bytes that decoding needs at most, beside the file: all samples, one segment, conversions.

    Measured at 16 MP, in bytes per pixel: RGB of 8 bits 3 (strips) to 7 (one segment), of 16 bits
    15 to 19, with alpha 12 to 21; JPEG 2000 15 and 19; WebP 7.
    """
    first = layouts[0]
    pixels = first.width * first.height
    sample = 1 if first.kind.bits <= 8 else 2
    samples = sum(layout.samples for layout in layouts)
    whole = pixels * samples * sample
    segment = max(layout.segment_width * layout.segment_height for layout in layouts)
    segment *= 1 if first.separate else first.samples
    longest = max(int(layout.counts.max()) for layout in layouts)
    decoding = decoding_memory(first.kind.compression, segment, sample, longest)
    if first.kind.compression == "JPEG 2000":
        parts = ((at, n) for one in layouts for at, n in zip(one.offsets, one.counts, strict=True))
        decoding += max(jpeg2000_memory(data[at : at + n]) for at, n in parts)
    plain = first.kind.colour == "RGB" and first.kind.alpha == "none" and orientation == 1
    scaled = 9 * whole if first.kind.bits < 8 else 0  # `to_8_bits` indexes a table: 8 bytes each
    converting = scaled + pixels * (3 if plain else 16) + (whole if sample == 2 else 0)
    return whole + max(decoding, converting)


def _to_rgb(samples: Samples, layout: Layout, page: Directory) -> Tile | Image.Image:
    """Samples (H, W, C) in the file's colours → RGB (H, W, 3)."""
    colour, alpha = layout.kind.colour, layout.kind.alpha
    if colour == "palette":
        return _read_palette(page, layout.kind.bits)[samples[..., 0]]
    pixels = _to_8_bits(samples, layout)
    if colour == "WhiteIsZero":
        pixels = 255 - pixels
    if colour == "CMYK":
        return Image.fromarray(pixels, "CMYK").convert("RGB")
    if colour in ("BlackIsZero", "WhiteIsZero"):
        grey = np.repeat(pixels[..., :1], 3, axis=-1)
        pixels = np.concatenate([grey, pixels[..., 1:]], axis=-1) if alpha != "none" else grey
    if alpha == "straight":
        return over_white(np.ascontiguousarray(pixels))
    return premultiplied_over_white(pixels) if alpha == "premultiplied" else pixels


def _to_8_bits(samples: Samples, layout: Layout) -> Tile:
    bits = layout.kind.bits if layout.bits_used is None else layout.bits_used
    if bits < layout.kind.bits and int(samples.max()) >= 2**bits:
        raise TileError(
            Status.UNSUPPORTED, f"samples of more than the {bits} bits that the TIFF states"
        )
    if bits == 16:  # also where the header says 16: Bio-Formats says so of any uint16
        colours = samples[..., :-1] if layout.kind.alpha != "none" else samples
        check_peak(int(colours.max()))
        if layout.kind.colour == "WhiteIsZero":
            check_peak(65535 - int(colours.min()))
        if layout.kind.alpha != "none":
            check_peak(int(samples[..., -1].max()), "alpha")
    return to_8_bits(samples, bits)


def _read_palette(page: Directory, bits: int) -> Tile:
    """The colour map, uint8 (2^bits, 3), by the high byte of its 16-bit entries."""
    values = page.integers(_COLOR_MAP)
    if len(values) != 3 * 2**bits:
        raise TileError(Status.CORRUPT, f"a TIFF palette of {len(values)} values for {bits} bits")
    table = np.array(values, np.uint32)
    if 0 < table.max() < 256:
        raise TileError(Status.UNSUPPORTED, "a TIFF palette whose 16-bit entries never pass 8 bits")
    return (table.reshape(3, -1).T >> 8).astype(np.uint8)


def _read_samples(data: bytes, layout: Layout) -> Samples:
    """All samples of one picture, (H, W, C): uint8, or uint16 for more than 8 bits."""
    dtype = np.uint8 if layout.kind.bits <= 8 else np.uint16
    samples = np.empty((layout.height, layout.width, layout.samples), dtype)
    per_plane = len(layout.offsets) // (layout.samples if layout.separate else 1)
    for number, (at, count) in enumerate(zip(layout.offsets, layout.counts, strict=True)):
        plane, place = divmod(number, per_plane)
        row, column = divmod(place, layout.across)
        top, left = row * layout.segment_height, column * layout.segment_width
        rows = min(layout.segment_height, layout.height - top)
        part = read_segment(data[at : at + count], layout, 0 if layout.tiled else rows)
        columns = min(layout.segment_width, layout.width - left)
        to = samples[top : top + rows, left : left + columns]
        part = part[:rows, :columns]
        if layout.separate:
            to[..., plane] = part[..., 0]
        else:
            to[:] = part
    return samples


def read_segment(data: bytes, layout: Layout, rows: int) -> Samples:
    """One strip or tile, (rows, segment width, C); raises TileError if pixels are missing.

    `rows`: of a strip, which may be shorter at the end; 0 for the rows of a tile.
    """
    kind, channels = layout.kind, 1 if layout.separate else layout.samples
    expected = (rows or layout.segment_height, layout.segment_width, channels)
    if kind.compression == "JPEG":
        part = decode_segment(layout.tables, data, kind.colour == "YCbCr")
        return _check_shape(part, expected)
    if kind.compression in PICTURES:
        size = layout.segment_width, layout.segment_height
        part = decode_picture(kind.compression, data, *size, kind.bits)
        if kind.compression == "WebP" and (channels, part.shape[-1]) == (4, 3):
            part = np.dstack([part, np.full_like(part[..., 0], 255)])  # WebP drops an opaque alpha
        return _check_shape(part, expected, kind.bits)
    across = layout.segment_width * channels
    stride = (across * kind.bits + 7) // 8
    length = stride * expected[0]
    if layout.fill_order == 2:
        data = data.translate(_REVERSED)
    whole = stride * layout.segment_height  # a last strip may be stored whole
    decoded = decompress(kind.compression, data, whole + 2)
    if len(decoded) < length:
        raise TileError(Status.TRUNCATED, f"{len(decoded)} bytes of a TIFF segment of {length}")
    _check_excess(kind.compression, len(decoded), length, whole, expected[0])
    stored = np.frombuffer(decoded, np.uint8, length).reshape(expected[0], stride)
    samples = _unpack(stored, layout, across).reshape(expected)
    if layout.predictor == 2:  # each sample is stored as its difference from the one before it
        return np.cumsum(samples, axis=1, dtype=samples.dtype)
    return samples


def _check_excess(compression: str, found: int, length: int, whole: int, rows: int) -> None:
    """Raise TileError where a segment holds so much more than `length` that its layout is another.

    One byte more is padding. The byte count of uncompressed data may include more of it, or what
    follows; samples or bits that the header does not tell of make each of the `rows` longer.
    """
    excess = found - length
    if excess <= 1 or 0 <= found - whole <= 1:
        return
    if compression == "none" and excess % rows and 4 * excess < length:
        return
    if compression == "none" and found < whole:  # the file ends within a strip stored whole
        return
    raise TileError(Status.UNSUPPORTED, excess_reason(length))


def _unpack(stored: npt.NDArray[np.uint8], layout: Layout, count: int) -> Samples:
    bits = layout.kind.bits
    if bits == 16:
        return stored.view(f"{layout.order}u2").astype(np.uint16)
    if bits in (1, 2, 4, 8):
        return unpack_rows(stored, bits, count)
    return unpack_any(stored, bits, count)


def _check_shape(part: Samples, expected: tuple[int, int, int], bits: int = 8) -> Samples:
    part = part[..., None] if part.ndim == 2 else part
    # A last strip may be stored whole.
    if part.shape[0] < expected[0] or part.shape[1:] != expected[1:]:
        raise TileError(
            Status.CORRUPT, f"a TIFF segment of {part.shape}; its header says {expected}"
        )
    if part.dtype != (np.uint8 if bits == 8 else np.uint16):
        raise TileError(Status.UNSUPPORTED, f"a TIFF of {bits} bits with {part.dtype} data inside")
    return part
