"""Slides made for tests: TIFF written entry by entry, so that any of them can be wrong."""

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from edgelung.tiles.resize import Tile

JPEG, RGB, YCBCR = 7, 2, 6
APERIO = "Aperio Image Library v11.2.1\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=85|{rest}"
_CODES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 13: "I", 16: "Q"}

Entry = tuple[int, Sequence[int] | bytes]  # type and values


@dataclass
class Page:
    """One directory; `entries` override or add tags, None removes one."""

    width: int
    height: int
    segments: Sequence[bytes]
    tile: tuple[int, int] | None = (256, 256)
    photometric: int = RGB
    compression: int = JPEG
    tables: bytes = b""
    description: str = ""
    reduced: bool = False
    entries: dict[int, Entry | None] = field(default_factory=dict)
    move: Callable[[list[int], list[int]], None] = lambda offsets, counts: None
    subpages: "Sequence[Page]" = ()


def write_tiff(path: Path, pages: Sequence[Page], *, big: bool = False, order: str = "<") -> Path:
    """Write the segments of all pages, then their directories."""
    out = bytearray(
        (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    )
    out += struct.pack(order + "HHQ", 8, 0, 0) if big else struct.pack(order + "I", 0)
    link = 8 if big else 4
    for page in pages:
        places = [_write_page(out, sub, big, order)[0] for sub in page.subpages]
        start, after = _write_page(out, page, big, order, places)
        struct.pack_into(order + ("Q" if big else "I"), out, link, start)
        link = after
    path.write_bytes(out)
    return path


def _write_page(
    out: bytearray, page: Page, big: bool, order: str, subs: Sequence[int] = ()
) -> tuple[int, int]:
    """Append a page; returns where its directory begins and where its link to the next stands."""
    offsets, counts = [], []
    for segment in page.segments:
        offsets.append(len(out) if segment else 0)
        counts.append(len(segment))
        out += segment + b"\0" * (len(segment) % 2)
    page.move(offsets, counts)
    wide = 16 if big else 4
    entries: dict[int, Entry | None] = {
        254: (4, [int(page.reduced)]),
        256: (4, [page.width]),
        257: (4, [page.height]),
        258: (3, [8, 8, 8]),
        259: (3, [page.compression]),
        262: (3, [page.photometric]),
        277: (3, [3]),
        284: (3, [1]),
    }
    if page.tile:
        entries |= {322: (4, [page.tile[0]]), 323: (4, [page.tile[1]])}
        entries |= {324: (wide, offsets), 325: (4, counts)}
    else:
        entries |= {273: (wide, offsets), 278: (4, [page.height]), 279: (4, counts)}
    if page.tables:
        entries[347] = (7, page.tables)
    if page.description:
        entries[270] = (2, page.description.encode() + b"\0")
    if page.photometric == YCBCR:
        entries[530] = (3, [2, 2])
    if subs:
        entries[330] = (wide, subs)
    entries |= page.entries
    return _write_directory(out, entries, big, order)


def _write_directory(
    out: bytearray, entries: dict[int, Entry | None], big: bool, order: str
) -> tuple[int, int]:
    inline = 8 if big else 4
    packed = []
    for tag, entry in sorted(entries.items()):
        if entry is None:
            continue
        kind, values = entry
        if isinstance(values, bytes):
            data, count = values, len(values)
        else:
            code = _CODES[kind]
            data = b"".join(struct.pack(order + code[0], value) for value in values)
            count = len(values) // len(code)
        if len(data) > inline:
            at = len(out)
            out += data + b"\0" * (len(data) % 2)
            data = struct.pack(order + ("Q" if big else "I"), at)
        packed.append((tag, kind, count, data.ljust(inline, b"\0")))
    start = len(out)
    out += struct.pack(order + ("Q" if big else "H"), len(packed))
    for tag, kind, count, data in packed:
        out += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + data
    after = len(out)
    out += bytes(inline)
    return start, after


@lru_cache(maxsize=32)
def tissue(width: int, height: int, seed: int = 0) -> Tile:
    """Pixels (height, width, 3) with structure at every scale, in the colours of H&E."""
    rng = np.random.default_rng(seed)
    field = np.zeros((height, width))
    for cells in (4, 16, 64):
        small = rng.random((height // cells + 2, width // cells + 2))
        scaled = Image.fromarray(small.astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        field += np.asarray(scaled)
    field = field / 3 + 0.1 * rng.random((height, width))
    pink, violet = np.array([238, 180, 205]), np.array([90, 40, 130])
    mixed = (pink + (violet - pink) * field.clip(0, 1)[..., None]).astype(np.uint8)
    mixed.setflags(write=False)  # the same array for all tests
    return mixed


def cut(pixels: Tile, size: tuple[int, int] = (256, 256)) -> list[Tile]:
    """Tiles of a picture row by row; those at the edge are filled up by their last pixels."""
    high, wide = pixels.shape[:2]
    down, right = -(-high // size[1]), -(-wide // size[0])
    padded = np.pad(
        pixels, ((0, down * size[1] - high), (0, right * size[0] - wide), (0, 0)), mode="edge"
    )
    return [
        np.ascontiguousarray(padded[y : y + size[1], x : x + size[0]])
        for y in range(0, down * size[1], size[1])
        for x in range(0, right * size[0], size[0])
    ]


def encode(tile: Tile, *, ycc: bool = True, sampling: str = "420", quality: int = 85) -> bytes:
    """A JPEG of its own; as RGB (without a colour transform) where `ycc` is False."""
    if ycc:
        return simplejpeg.encode_jpeg(tile, quality=quality, colorsubsampling=sampling)
    buffer = io.BytesIO()
    planes = [Image.fromarray(np.ascontiguousarray(tile[..., i])) for i in range(3)]
    Image.merge("YCbCr", planes).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def abbreviate(jpeg: bytes) -> tuple[bytes, bytes]:
    """As scanners store it: (JPEGTables, data without tables and without JFIF's mark)."""
    tables, rest, at = b"", b"", 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at + 1] in (0xDB, 0xC4):
            tables += jpeg[at:end]
        elif jpeg[at + 1] != 0xE0:
            rest += jpeg[at:end]
        at = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + jpeg[at:]


def jpeg_page(
    pixels: Tile,
    *,
    ycc: bool = True,
    sampling: str = "420",
    tile: tuple[int, int] = (256, 256),
    reduced: bool = False,
    description: str = "",
) -> Page:
    """A level of JPEG tiles that share their tables, as a scanner writes it."""
    pairs = [abbreviate(encode(part, ycc=ycc, sampling=sampling)) for part in cut(pixels, tile)]
    page = Page(
        pixels.shape[1],
        pixels.shape[0],
        [data for _, data in pairs],
        tile,
        YCBCR if ycc else RGB,
        tables=pairs[0][0],
        description=description,
        reduced=reduced,
    )
    factors = {"420": [2, 2], "422": [2, 1], "444": [1, 1]}[sampling]
    if ycc:
        page.entries[530] = (3, factors)
    return page


def aperio(width: int, height: int, rest: str = "AppMag = 20|MPP = 0.5") -> str:
    """The description of an Aperio slide."""
    return APERIO.format(w=width, h=height, rest=rest)


def halve(pixels: Tile, times: int) -> Tile:
    """The mean of squares of `times` pixels a side."""
    high, wide = pixels.shape[0] // times, pixels.shape[1] // times
    blocks = pixels[: high * times, : wide * times].reshape(high, times, wide, times, 3)
    return blocks.mean((1, 3)).round().astype(np.uint8)


def write_svs(
    path: Path,
    width: int = 1100,
    height: int = 800,
    *,
    ycc: bool = False,
    sampling: str = "444",
    factors: Sequence[int] = (4,),
    tile: tuple[int, int] = (256, 256),
    rest: str = "AppMag = 20|MPP = 0.5",
    big: bool = False,
) -> Path:
    """A slide as Aperio's scanners write it: RGB JPEG by default, no marks of the colours."""
    pixels = tissue(width, height)
    text = aperio(width, height, rest)
    pages = [jpeg_page(pixels, ycc=ycc, sampling=sampling, tile=tile, description=text)]
    for factor in factors:
        small = halve(pixels, factor)
        pages.append(jpeg_page(small, ycc=ycc, sampling=sampling, tile=tile, description=text))
    return write_tiff(path, pages, big=big)
