"""Small encoders for what Pillow and tifffile do not write. The array given is the oracle.

References: PNG (ISO/IEC 15948), TIFF 6.0, BMP as in the Windows documentation, JPEG (ITU T.81).
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def pack(samples: Array, bits: int, order: str = ">") -> list[bytes]:
    """Rows of samples (H, N) packed, most significant bit first; 16 bits in `order`."""
    if bits == 16:
        return [row.astype(f"{order}u2").tobytes() for row in samples]
    flags = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in flags]


# ---- PNG

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: Array,
    bits: int,
    colour: int,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    filtered: int = 0,
) -> bytes:
    """A PNG of samples (H, W, C). `before`: chunks ahead of the pixels; `filtered`: filter type."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    lines = b""
    passes = [*ADAM7, (1, 0, 2, 1)] if interlaced else [(0, 0, 1, 1)]
    for top, left, down, right in passes:
        part = samples[top::down, left::right]
        if part.size:
            rows = pack(part.reshape(len(part), -1), bits)
            lines += _filtered(rows, filtered, max(1, bits * channels // 8))
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def _filtered(rows: list[bytes], kind: int, step: int) -> bytes:
    """Filter 0 (none), 1 (sub) or 2 (up)."""
    out, above = b"", np.zeros(len(rows[0]), np.uint8)
    for row in rows:
        line = np.frombuffer(row, np.uint8)
        left = np.concatenate([np.zeros(step, np.uint8), line[:-step]])[: len(line)]
        out += bytes([kind]) + (line - (np.uint8(0), left, above)[kind]).tobytes()
        above = line
    return out


# ---- TIFF


def tiff(*pages: dict[str, object], order: str = "<", big: bool = False) -> bytes:
    """A TIFF of `page(…)`s. `subs` of a page are its SubIFDs; pages follow each other."""
    mark = b"II" if order == "<" else b"MM"
    offset = "Q" if big else "I"
    head = mark + struct.pack(
        order + "HHHQ" if big else order + "HI", *((43, 8, 0, 0) if big else (42, 0))
    )
    out = bytearray(head)
    where = 8 if big else 4
    for one in pages:
        start = _directory(out, one, order, big)
        struct.pack_into(order + offset, out, where, start)
        where = len(out) - (8 if big else 4)
    return bytes(out)


def page(
    samples: Array,
    bits: int,
    photometric: int,
    *,
    segments: Sequence[bytes] | None = None,
    rows: int | None = None,
    planar: bool = False,
    order: str = "<",
    compression: int = 1,
    tags: dict[int, object] | None = None,
    subs: Sequence[dict[str, object]] = (),
) -> dict[str, object]:
    """One page of samples (H, W, C), in strips of `rows`. A tag's value: integers, bytes or floats.

    `segments`: what is stored, where that is not `samples`. A tag of None is left out.
    """
    height, width, channels = samples.shape
    rows = rows or height
    encode = {1: bytes, 8: zlib.compress}.get(compression, bytes)
    if segments is None:
        planes = [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]
        segments = [
            encode(
                b"".join(
                    pack(plane[top : top + rows].reshape(-1, width * plane.shape[2]), bits, order)
                )
            )
            for plane in planes
            for top in range(0, height, rows)
        ]
    return {
        "segments": segments,
        "subs": subs,
        "tags": {
            256: [width],
            257: [height],
            258: [bits] * channels,
            259: [compression],
            262: [photometric],
            277: [channels],
            278: [rows],
            284: [2 if planar else 1],
        }
        | (tags or {}),
    }


def _directory(out: bytearray, one: dict, order: str, big: bool) -> int:
    """Append segments, SubIFDs and the directory; returns where it begins."""
    starts = []
    for segment in one["segments"]:
        starts.append(len(out))
        out += segment + b"\0" * (len(segment) % 2)
    tags = {273: starts, 279: [len(s) for s in one["segments"]]}
    if 322 in one["tags"]:
        tags = {324: tags[273], 325: tags[279]}
    if one["subs"]:
        tags[330] = [_directory(out, sub, order, big) for sub in one["subs"]]
    tags |= one["tags"]
    entries = []
    inline = 8 if big else 4
    for tag, value in sorted((tag, value) for tag, value in tags.items() if value is not None):
        if isinstance(value, bytes):
            kind, data, count = (2 if tag in (270, 271, 305) else 7), value, len(value)
        elif isinstance(value[0], float):
            kind, count = 12, len(value)
            data = struct.pack(f"{order}{count}d", *value)
        else:
            kind, count = (
                (3 if max(value) < 65536 and tag not in (273, 324, 330) else 4),
                len(value),
            )
            data = struct.pack(f"{order}{count}{'HI'[kind == 4]}", *value)
        if len(data) > inline:
            place = len(out)
            out += data + b"\0" * (len(data) % 2)
            data = struct.pack(order + ("Q" if big else "I"), place)
        entries.append(
            struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count)
            + data.ljust(inline, b"\0")
        )
    start = len(out)
    out += (
        struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries) + bytes(inline)
    )
    return start


# ---- BMP


def bmp(
    samples: Array,
    bits: int,
    *,
    palette: Array | None = None,
    header: int = 40,
    top_down: bool = False,
    compression: int = 0,
    masks: Sequence[int] = (),
    stored: bytes | None = None,
    used: int = 0,
) -> bytes:
    """A BMP of palette indices or whole pixels (H, W), the latter as they are stored.

    `header`: length of the header; `masks`: of red, green, blue and alpha; `stored`: runs.
    """
    height, width = samples.shape
    rows = samples if top_down else samples[::-1]
    if stored is None:
        lines = pack(rows, bits) if bits <= 8 else [_words(row, bits) for row in rows]
        stored = b"".join(line + bytes(-len(line) % 4) for line in lines)
    table = b"" if palette is None else _palette(palette, 3 if header == 12 else 4)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        tall = -height if top_down else height
        size = struct.pack(
            "<IiiHHIIiiII", header, width, tall, 1, bits, compression, 0, 0, 0, used, 0
        )
        extra = struct.pack(f"<{len(masks)}I", *masks)
        info = size[:header] + (extra if header == 40 else extra.ljust(max(0, header - 40), b"\0"))
    place = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", place + len(stored), 0, 0, place) + info + table + stored


def _words(row: Array, bits: int) -> bytes:
    data = row.astype("<u4").view(np.uint8).reshape(-1, 4)
    return data[:, : bits // 8].tobytes()


def _palette(palette: Array, size: int) -> bytes:
    out = np.zeros((len(palette), size), np.uint8)
    out[:, :3] = palette[:, ::-1]
    return out.tobytes()


# ---- JPEG

ZIGZAG = sorted(
    range(64), key=lambda n: (n // 8 + n % 8, n % 8 if (n // 8 + n % 8) % 2 == 0 else n // 8)
)
DC = {n: (n, 4) for n in range(12)}  # size → code and its length
AC = {n: (n, 8) if n < 128 else (n + 128, 9) for n in range(256)}
_u = np.arange(8)
DCT = np.sqrt(2 / 8) * np.cos((2 * _u[None] + 1) * _u[:, None] * np.pi / 16)
DCT[0] /= np.sqrt(2)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(
    planes: Array,
    factors: Sequence[tuple[int, int]],
    *,
    restart: int = 0,
    separate_scans: bool = False,
    ahead: bytes = b"",
    frame: int = 0xC0,
    bits: int = 8,
    tables: bool = True,
) -> bytes:
    """A sequential JPEG of components (H, W, C), with sampling `factors` (horizontal, vertical).

    `ahead`: segments behind SOI; `frame`, `bits`: what the frame header says; `tables`: whether
    the stream holds its tables (`jpeg_tables` are those).
    """
    height, width, channels = planes.shape
    wide, high = max(h for h, _ in factors), max(v for _, v in factors)
    across, down = -(-width // (8 * wide)), -(-height // (8 * high))
    full = np.pad(
        planes, ((0, down * 8 * high - height), (0, across * 8 * wide - width), (0, 0)), "edge"
    )
    blocks = []
    for i, (h, v) in enumerate(factors):
        x, y = wide // h, high // v
        small = (
            full[..., i].reshape(full.shape[0] // y, y, full.shape[1] // x, x).mean((1, 3)) - 128
        )
        cut = small.reshape(small.shape[0] // 8, 8, small.shape[1] // 8, 8).swapaxes(1, 2)
        blocks.append(np.round(DCT @ cut @ DCT.T / 2).astype(int))
    numbers = bytes(range(1, channels + 1))
    sof = struct.pack(">BHHB", bits, height, width, channels)
    sof += b"".join(bytes([n, h << 4 | v, 0]) for n, (h, v) in zip(numbers, factors, strict=True))
    out = b"\xff\xd8" + ahead + (jpeg_tables()[2:-2] if tables else b"") + segment(frame, sof)
    if restart:
        out += segment(0xDD, struct.pack(">H", restart))
    for scan in [[i] for i in range(channels)] if separate_scans else [list(range(channels))]:
        ids = b"".join(bytes([numbers[i], 0]) for i in scan)
        out += segment(0xDA, bytes([len(scan)]) + ids + b"\0\x3f\0")
        if len(scan) == 1:  # in raster order, without the padding of the MCUs
            h, v = factors[scan[0]]
            rows, columns = -(-height * v // (8 * high)), -(-width * h // (8 * wide))
            units = [[(scan[0], y, x)] for y in range(rows) for x in range(columns)]
        else:
            units = [
                [
                    (i, y * factors[i][1] + b, x * factors[i][0] + a)
                    for i in scan
                    for b in range(factors[i][1])
                    for a in range(factors[i][0])
                ]
                for y in range(down)
                for x in range(across)
            ]
        out += _entropy(blocks, units, restart)
    return out + b"\xff\xd9"


def jpeg_tables() -> bytes:
    """An abbreviated stream of the tables that `jpeg` uses: all quantizers are 2."""
    quantizers = segment(0xDB, b"\0" + b"\2" * 64)
    dc = segment(0xC4, b"\0" + bytes([0, 0, 0, 12] + [0] * 12) + bytes(range(12)))
    ac = segment(0xC4, b"\x10" + bytes([0] * 7 + [128, 128] + [0] * 7) + bytes(range(256)))
    return b"\xff\xd8" + quantizers + dc + ac + b"\xff\xd9"


def _entropy(blocks: list[Array], units: list[list[tuple[int, int, int]]], restart: int) -> bytes:
    out, text, last = b"", [], {}
    for number, unit in enumerate(units):
        if restart and number and number % restart == 0:
            out += _stuffed(text) + bytes([0xFF, 0xD0 + (number // restart - 1) % 8])
            text, last = [], {}
        for i, y, x in unit:
            values = blocks[i][y, x].reshape(-1)[ZIGZAG]
            _code(text, DC, 0, int(values[0]) - last.get(i, 0))
            last[i] = int(values[0])
            zeros = 0
            end = int(np.flatnonzero(values)[-1]) if values.any() else 0
            for value in values[1 : end + 1].tolist():
                if value == 0:
                    zeros += 1
                    continue
                while zeros > 15:
                    text.append(f"{AC[0xF0][0]:0{AC[0xF0][1]}b}")
                    zeros -= 16
                _code(text, AC, zeros, value)
                zeros = 0
            if end < 63:
                text.append(f"{AC[0][0]:0{AC[0][1]}b}")
    return out + _stuffed(text)


def _code(text: list[str], table: dict[int, tuple[int, int]], zeros: int, value: int) -> None:
    size = abs(value).bit_length()
    code, length = table[zeros << 4 | size]
    text.append(f"{code:0{length}b}")
    if size:
        text.append(f"{value if value > 0 else value + 2**size - 1:0{size}b}")


def _stuffed(text: list[str]) -> bytes:
    bits = "".join(text)
    bits += "1" * (-len(bits) % 8)
    data = int(bits or "11111111", 2).to_bytes(max(1, len(bits) // 8))
    return data.replace(b"\xff", b"\xff\0")
