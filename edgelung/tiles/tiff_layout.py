"""What one TIFF directory says about its pixels: the `Kind` and where the strips or tiles lie."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgelung.tiles.errors import Status, TileError
from edgelung.tiles.table import Kind, check_size, decide
from edgelung.tiles.tiff_codecs import NAMES
from edgelung.tiles.tiff_directory import MAX_SEGMENTS, Directory

_PHOTOMETRICS = {
    0: "WhiteIsZero",
    1: "BlackIsZero",
    2: "RGB",
    3: "palette",
    4: "transparency mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_COLOURS = {"RGB": 3, "CMYK": 4, "YCbCr": 3, "CIE L*a*b*": 3, "ICC L*a*b*": 3, "ITU L*a*b*": 3}
_COLOURS |= {"LogLuv": 3, "linear raw": 3}
_FORMATS = {1: "unsigned integer", 2: "signed integer", 3: "floating point", 4: "undefined"}
_FORMATS |= {5: "complex integer", 6: "complex floating point"}
_ALPHAS = {(): "none", (1,): "premultiplied", (2,): "straight"}
_DNG_VERSION = 50706
_LUMA_601 = (0.299, 0.587, 0.114)
MAX_SLIDE_PIXELS = 2**37  # of one level, 370,000 px a side; the time for an overview grows with it
MAX_SLIDE_SEGMENTS = 2**21  # of one level; tiles of 256 px in a square of 370,000 px
MAX_SLIDE_SEGMENT_PIXELS = 2**24  # of one tile or strip: 48 MiB as RGB


@dataclass(frozen=True, slots=True)
class Layout:
    """One picture of a TIFF. Segments are its strips or tiles."""

    kind: Kind
    width: int
    height: int
    samples: int
    bits_used: int | None  # of 16, where the header says so
    tiled: bool
    across: int  # segments in a row
    segment_width: int
    segment_height: int
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    predictor: int
    fill_order: int
    order: str  # byte order, < or >
    tables: bytes  # JPEGTables

    @property
    def separate(self) -> bool:
        """Whether each colour has planes of its own."""
        return self.kind.planes == "separate"


def read_layout(
    page: Directory, size: int, stated_bits: int | None = None, *, of_slide: bool = False
) -> Layout:
    """Check one directory against the decision table; raises TileError.

    `stated_bits`: bits of a sample that are used, as a description says (OME-XML).
    `of_slide`: the kind is left to the caller. The picture may have any size that its segments can
    fill; segments that are not stored (0 bytes) or lie beyond the end of the file are left to
    whoever reads them.
    """
    for tag, name in ((256, "ImageWidth"), (257, "ImageLength"), (262, "Photometric")):
        if tag not in page:
            raise TileError(Status.CORRUPT, f"the TIFF has no tag {tag} ({name})")
    if _DNG_VERSION in page:
        raise TileError(Status.UNSUPPORTED, "a camera's raw file (DNG)")
    kind, samples = _read_kind(page)
    if not of_slide:
        decide(kind)
    width, height = page.integer(256, 0), page.integer(257, 0)
    if of_slide:
        _check_slide_size(width, height)
    else:
        check_size(width, height, size)
    across, segment = _read_grid(page, width, height)
    planes = samples if kind.planes == "separate" else 1
    down = -(-height // segment[1])
    row_bytes = (segment[0] * (samples if planes == 1 else 1) * kind.bits + 7) // 8
    length = row_bytes * segment[1] if kind.compression == "none" else None
    offsets, counts = _read_segments(page, across * down * planes, length, of_slide)
    layout = Layout(
        kind=kind,
        width=width,
        height=height,
        samples=samples,
        bits_used=_bits_used(page, kind.bits, stated_bits),
        tiled=322 in page or 323 in page,
        across=across,
        segment_width=segment[0],
        segment_height=segment[1],
        offsets=offsets,
        counts=counts,
        predictor=page.integer(317, 1),
        fill_order=page.integer(266, 1),
        order=page.order,
        tables=bytes(page.raw(347)),
    )
    _check_rare_tags(page, layout)
    return layout


def check_slide_structure(page: Directory) -> None:
    """Raise TileError for sizes, or a table of tiles, that no slide has.

    Before a library sees the file: it may allocate what they say.
    """
    width, height = page.integer(256, 0), page.integer(257, 0)
    _check_slide_size(width, height)
    across, segment = _read_grid(page, width, height)
    if segment[0] * segment[1] > MAX_SLIDE_SEGMENT_PIXELS:
        raise TileError(
            Status.TOO_LARGE,
            f"TIFF segments of {segment[0]}×{segment[1]} px; the limit is "
            f"{MAX_SLIDE_SEGMENT_PIXELS} px each",
        )
    samples = page.integer(277, 1) if page.integer(284, 1) == 2 else 1
    _read_segments(page, across * -(-height // segment[1]) * samples, None, of_slide=True)


def _check_slide_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise TileError(Status.CORRUPT, f"its header says {width}×{height} pixels")
    if width * height > MAX_SLIDE_PIXELS:
        reason = f"{width}×{height} pixels; the limit is {MAX_SLIDE_PIXELS}"
        raise TileError(Status.TOO_LARGE, reason)


def _read_kind(page: Directory) -> tuple[Kind, int]:
    samples = page.integer(277, 1)
    bits = page.integers(258, (1,))
    formats = page.integers(339, (1,))
    if len(set(bits)) != 1 or len(set(formats)) != 1:
        raise TileError(
            Status.UNSUPPORTED, "a TIFF whose samples differ in their bits or their type"
        )
    code, photometric = page.integer(259, 1), page.integer(262, 0)
    colour = _PHOTOMETRICS.get(photometric, f"photometric {photometric}")
    extra = samples - _COLOURS.get(colour, 1)
    if extra < 0:
        raise TileError(
            Status.CORRUPT, f"a TIFF of {samples} samples a pixel whose colour is {colour}"
        )
    meanings = page.integers(338, ()) if extra else ()
    alpha = _ALPHAS.get(meanings, "unspecified") if len(meanings) == extra else "unspecified"
    compression = NAMES.get(code)
    compression = f"{code} ({compression})" if compression else str(code)
    kind = Kind(
        "TIFF",
        NAMES[code] if _is_read(code) else compression,
        colour,
        bits[0],
        alpha,
        _FORMATS.get(formats[0], f"format {formats[0]}"),
        "separate" if page.integer(284, 1) == 2 and samples > 1 else "interleaved",
    )
    return kind, samples


def _is_read(code: int) -> bool:
    """Whether some row of the decision table allows the compression."""
    return code in (1, 5, 7, 8, 32773, 32946, 33005, 34712, 34925, 50000, 50001)


def _read_grid(page: Directory, width: int, height: int) -> tuple[int, tuple[int, int]]:
    """Segments in a row, and their width and height."""
    if 322 in page or 323 in page:
        tile = page.integer(322, 0), page.integer(323, 0)
        # Tiles are padded to their full size; one that is far larger than the picture is no tile.
        if min(tile) < 1 or tile[0] > 2 * width + 1024 or tile[1] > 2 * height + 1024:
            raise TileError(Status.CORRUPT, f"TIFF tiles of {tile[0]}×{tile[1]} px")
        return -(-width // tile[0]), tile
    rows = page.integer(278, height) or height  # 0: some writers' word for one strip
    return 1, (width, min(rows, height))


def _read_segments(
    page: Directory, number: int, length: int | None, of_slide: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets and byte counts of the segments; raises TileError unless there are `number`.

    `length`: bytes of an uncompressed segment, for a single one whose byte count is missing.
    """
    most = MAX_SLIDE_SEGMENTS if of_slide else MAX_SEGMENTS
    offsets = page.array(324 if 324 in page else 273, most)
    counts = page.array(325 if 325 in page else 279, most)
    if not len(counts) and len(offsets) == number:
        if number > 1 or length is None:
            raise TileError(
                Status.UNSUPPORTED, "a TIFF without the byte counts of its strips or tiles"
            )
        counts = np.array([length], np.uint64)
    if len(offsets) != number or len(counts) != number:
        raise TileError(
            Status.CORRUPT,
            f"{len(offsets)} offsets and {len(counts)} lengths of {number} TIFF segments",
        )
    if of_slide:
        limit = np.uint64(2**62)
        return np.minimum(offsets, limit).astype(np.int64), np.minimum(counts, limit).astype(
            np.int64
        )
    end = len(page.data)
    if (offsets >= end).any():
        raise TileError(Status.TRUNCATED, "TIFF pixels lie beyond the end of the file")
    if not counts.all():
        raise TileError(Status.UNSUPPORTED, "a TIFF with parts that are not stored (sparse)")
    # A count may be too large by mistake; that data is missing shows when it is decoded.
    starts = offsets.astype(np.int64)
    return starts, np.minimum(counts, end).astype(np.int64).clip(max=end - starts)


def _bits_used(page: Directory, bits: int, stated: int | None) -> int | None:
    """Bits of a sample that are used where the header says so; None where it says nothing."""
    full = 2**bits - 1
    lowest, highest = set(page.numbers(340)), set(page.numbers(341))
    if stated is not None and not 0 < stated <= bits:
        raise TileError(Status.CORRUPT, f"{stated} significant bits of {bits}")
    if highest - {float(full)}:
        top = max(highest)
        if len(highest) > 1 or not top.is_integer() or not _is_all_ones(int(top)) or top > full:
            raise TileError(Status.UNSUPPORTED, f"samples that end at {top:g} (SMaxSampleValue)")
        stated = int(top).bit_length() if stated is None else stated
    elif highest and stated is None:
        stated = bits
    if lowest - {0.0}:
        raise TileError(Status.UNSUPPORTED, f"samples from {min(lowest):g} (SMinSampleValue)")
    # MaxSampleValue is a statistic in most files: it counts only where it names whole bits.
    statistic = set(page.numbers(281))
    if stated is None and bits == 16 and len(statistic) == 1:
        top = max(statistic)
        if top >= 255 and top.is_integer() and _is_all_ones(int(top)):
            return int(top).bit_length()
    return stated


def _is_all_ones(value: int) -> bool:
    return value > 0 and value & (value + 1) == 0


def _check_rare_tags(page: Directory, layout: Layout) -> None:
    """Raise TileError `unsupported` for what would change the pixels and is not read."""
    kind, tiff = layout.kind, "a TIFF with "
    if layout.predictor not in (1, 2):
        raise TileError(Status.UNSUPPORTED, f"{tiff}predictor {layout.predictor}")
    if layout.predictor == 2 and (
        kind.bits not in (8, 16) or kind.compression not in ("LZW", "Deflate", "LZMA", "Zstandard")
    ):
        reason = f"predictor 2, {kind.bits} bits and compression {kind.compression}"
        raise TileError(Status.UNSUPPORTED, tiff + reason)
    if layout.fill_order == 2 and (kind.bits != 1 or kind.compression != "none"):
        reason = f"FillOrder 2, {kind.bits} bits and compression {kind.compression}"
        raise TileError(Status.UNSUPPORTED, tiff + reason)
    if kind.colour == "CMYK" and (page.integer(332, 1) != 1 or page.integer(334, 4) != 4):
        raise TileError(Status.UNSUPPORTED, f"{tiff}inks other than CMYK")
    dots = page.numbers(336)
    if kind.colour == "CMYK" and (any(dots[::2]) or set(dots[1::2]) - {2.0**kind.bits - 1}):
        raise TileError(Status.UNSUPPORTED, f"{tiff}a DotRange of {dots[0]:g} to {dots[-1]:g}")
    if kind.colour == "YCbCr":
        luma = page.numbers(529) or _LUMA_601
        if any(abs(a - b) > 0.001 for a, b in zip(luma, _LUMA_601, strict=False)):
            raise TileError(
                Status.UNSUPPORTED, f"{tiff}YCbCr coefficients other than those of JPEG"
            )
        if page.numbers(532) not in ((), (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)):
            raise TileError(
                Status.UNSUPPORTED, f"{tiff}a ReferenceBlackWhite other than that of JPEG"
            )
