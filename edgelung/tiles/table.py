"""The decision table: which kinds of image files are read. Everything else is refused.

A header parser describes a file as a `Kind`; `decide` looks for a row of `TABLE` that allows it.
`docs/reference/images.md` restates this table in words, and a test compares the two.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from edgelung.tiles.errors import Status, TileError

MAX_PIXELS = 100_000_000  # 10,000 x 10,000: far above any tile, far below what fills memory


class Kind(NamedTuple):
    """What the header of a file says about its samples.

    `alpha` is none, straight, premultiplied, key (one colour is transparent) or unspecified (more
    samples than the colour has, without a meaning). `bits` are those of one sample; of one pixel
    for the RGB colours of a BMP.
    """

    container: str
    compression: str
    colour: str
    bits: int
    alpha: str = "none"
    sample_format: str = "unsigned integer"
    planes: str = "interleaved"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a file is read if each of its fields is among those of the row.

    `decoder` names what decodes the pixels; where it begins with `imagecodecs`, the file needs the
    optional extra `edgelung[tiff]`.
    """

    container: str
    compression: Collection[str]
    colour: Collection[str]
    bits: Collection[int]
    alpha: Collection[str]
    planes: Collection[str]
    decoder: str
    sample_format: Collection[str] = ("unsigned integer",)


TO_16 = tuple(range(1, 17))
INTERLEAVED = ("interleaved",)
ANY_PLANES = ("interleaved", "separate")
NO_ALPHA = ("none",)
BLENDED = ("straight", "premultiplied")
GREY = ("BlackIsZero", "WhiteIsZero")
PLAIN = ("none", "LZW", "Deflate", "PackBits")
EXTRA = ("LZMA", "Zstandard")
PICTURES = ("JPEG 2000", "WebP")
JPEG_CODES = ("sequential Huffman", "progressive Huffman")

TABLE = (
    Row("JPEG", JPEG_CODES, ("grey", "RGB or YCbCr"), (8,), NO_ALPHA, INTERLEAVED, "simplejpeg"),
    Row("JPEG", JPEG_CODES, ("CMYK or YCCK",), (8,), NO_ALPHA, INTERLEAVED, "Pillow"),
    Row("PNG", ("Deflate",), ("grey",), (1, 2, 4, 8, 16), ("none", "key"), INTERLEAVED, "Pillow"),
    Row("PNG", ("Deflate",), ("palette",), (1, 2, 4, 8), ("none", "key"), INTERLEAVED, "Pillow"),
    Row("PNG", ("Deflate",), ("RGB",), (8,), ("none", "key"), INTERLEAVED, "Pillow"),
    Row("PNG", ("Deflate",), ("RGB",), (16,), NO_ALPHA, INTERLEAVED, "Pillow"),
    Row("PNG", ("Deflate",), ("grey", "RGB"), (8, 16), ("straight",), INTERLEAVED, "Pillow"),
    Row("WebP", ("VP8", "VP8L"), ("RGB",), (8,), ("none", "straight"), INTERLEAVED, "Pillow"),
    Row("BMP", ("none",), ("palette",), (1, 2, 4, 8), NO_ALPHA, INTERLEAVED, "edgelung"),
    Row("BMP", ("RLE8",), ("palette",), (8,), NO_ALPHA, INTERLEAVED, "edgelung"),
    Row("BMP", ("RLE4",), ("palette",), (4,), NO_ALPHA, INTERLEAVED, "edgelung"),
    Row("BMP", ("none",), ("RGB",), (16, 24, 32), NO_ALPHA, INTERLEAVED, "edgelung"),
    Row("BMP", ("bit fields",), ("RGB",), (16, 32), ("none", "straight"), INTERLEAVED, "edgelung"),
    Row("TIFF", PLAIN, (*GREY, "RGB"), TO_16, NO_ALPHA, ANY_PLANES, "edgelung"),
    Row("TIFF", PLAIN, ("BlackIsZero", "RGB"), (8, 16), BLENDED, ANY_PLANES, "edgelung"),
    Row("TIFF", PLAIN, ("palette",), (1, 2, 4, 8), NO_ALPHA, ANY_PLANES, "edgelung"),
    Row("TIFF", PLAIN, ("CMYK",), (8, 16), NO_ALPHA, ANY_PLANES, "edgelung"),
    Row("TIFF", ("JPEG",), ("BlackIsZero", "RGB"), (8,), NO_ALPHA, ANY_PLANES, "simplejpeg"),
    Row("TIFF", ("JPEG",), ("YCbCr",), (8,), NO_ALPHA, INTERLEAVED, "simplejpeg"),
    Row("TIFF", EXTRA, (*GREY, "RGB"), TO_16, NO_ALPHA, ANY_PLANES, "imagecodecs"),
    Row("TIFF", EXTRA, ("BlackIsZero", "RGB"), (8, 16), BLENDED, ANY_PLANES, "imagecodecs"),
    Row("TIFF", EXTRA, ("palette",), (1, 2, 4, 8), NO_ALPHA, ANY_PLANES, "imagecodecs"),
    Row("TIFF", EXTRA, ("CMYK",), (8, 16), NO_ALPHA, ANY_PLANES, "imagecodecs"),
    Row("TIFF", PICTURES, ("RGB",), (8,), ("none", "straight"), INTERLEAVED, "imagecodecs"),
    Row("TIFF", PICTURES[:1], ("RGB",), (16,), NO_ALPHA, INTERLEAVED, "imagecodecs"),
    Row("TIFF", PICTURES[:1], ("BlackIsZero",), (8, 16), NO_ALPHA, INTERLEAVED, "imagecodecs"),
)

# In the order in which a reason is looked for: the first field that no row allows is named.
_FIELDS = ("compression", "sample_format", "colour", "planes", "bits", "alpha")
_REASONS = {
    "compression": "{0.container} compression {0.compression}",
    "sample_format": "{0.container} samples of type {0.sample_format}",
    "colour": "{0.container} colour {0.colour}, compression {0.compression}",
    "planes": "{0.container} planes stored {0.planes}, compression {0.compression}",
    "bits": "{0.container} {0.colour} of {0.bits} bits, compression {0.compression}",
    "alpha": "{0.container} {0.colour} of {0.bits} bits, alpha {0.alpha}",
}


@lru_cache(maxsize=256)
def decide(kind: Kind) -> Row:
    """Find the row that allows `kind`; raises TileError `unsupported` with the field that fails."""
    rows = [row for row in TABLE if row.container == kind.container]
    for field in _FIELDS:
        rows = [row for row in rows if getattr(kind, field) in getattr(row, field)]
        if not rows:
            raise TileError(Status.UNSUPPORTED, f"{_REASONS[field].format(kind)} is not read")
    return rows[0]


def check_size(width: int, height: int, size: int) -> None:
    """Raise TileError `too-large` for more pixels than may be decoded; `corrupt` for none."""
    if width < 1 or height < 1:
        raise TileError(Status.CORRUPT, f"its header says {width}×{height} pixels")
    # The first pass of the resize holds `size` × the longer side: more than a narrow image itself.
    if max(width * height, size * max(width, height)) > MAX_PIXELS:
        raise TileError(Status.TOO_LARGE, f"{width}×{height} pixels; the limit is {MAX_PIXELS}")
