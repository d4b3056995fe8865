"""The scans of a JPEG: which there are, and whether their Huffman codes fill the picture.

libjpeg takes a scan that is missing for one that adds nothing, and gives no warning. Reference:
ITU T.81, annexes B (markers), F (sequential coding) and G (progressive coding).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgelung.tiles.errors import Status, TileError

MAX_SEGMENTS = 2**14  # before the first scan, and from it on
_SOS, _EOI = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # none of those within entropy-coded data
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
# An entry of a lookup table is step << 5 | bits: how many coefficients a code stands for, and the
# length of the code with the bits that follow it. Two steps are out of the ordinary:
_END_OF_BLOCK, _NO_CODE = 128, 1024
_LONGEST_BLOCK = 64 * 32 // 8 + 16  # bytes

Segment = tuple[int, int, int]  # marker, start, end
Factors = dict[int, tuple[int, int]]
_Lookups = tuple[list[int], list[int]]  # of DC and of AC codes


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan: the fields of its header, and what holds where it begins."""

    components: bytes  # their numbers
    selectors: bytes  # of the Huffman tables, for each component: DC << 4 | AC
    first: int  # coefficients, in zigzag order
    last: int
    high: int  # bit position of the scan before, and of this one
    low: int
    interval: int  # MCUs between restart markers, or 0
    tables: dict[int, bytes]  # class << 4 | number → counts of the 16 lengths, and symbols
    data: bytes  # entropy-coded


def sampling(frame: bytes) -> Factors:
    """Number of a component → horizontal and vertical factor, from the body of a frame header."""
    return {frame[i]: divmod(frame[i + 1], 16) for i in range(6, 6 + 3 * frame[5], 3)}


def scan_headers(data: bytes, at: int) -> tuple[bytes, ...]:
    """The header of each scan from the SOS marker at `at` on, without marker and length."""
    return tuple(
        data[start + 4 : end] for marker, start, end in _segments(data, at) if marker == _SOS
    )


def read_scans(data: bytes, segments: list[Segment], at: int) -> Iterator[Scan]:
    """The scans from the SOS marker at `at` on; `segments`: those before it.

    Raises TileError `corrupt` where a scan header or a Huffman table cannot be read.
    """
    tables: dict[int, bytes] = {}
    interval = 0
    header, begin = b"", 0  # of the scan whose data ends where the next segment starts
    for marker, start, end in (*segments, *_segments(data, at)):
        if header:
            yield _scan(header, interval, tables, data[begin:start])
            header = b""
        if marker == 0xC4:
            tables = tables | _read_tables(data[start + 4 : end])
        elif marker == 0xDD:
            interval = int.from_bytes(data[start + 4 : end])
        elif marker == _SOS:
            header, begin = data[start + 4 : end], end
            _check_header(header)


def _segments(data: bytes, at: int) -> Iterator[Segment]:
    """The segments from the one at `at` on; the last is the EOI marker or the end of the data.

    Raises TileError for more than MAX_SEGMENTS.
    """
    for _ in range(MAX_SEGMENTS):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield data[at + 1], at, end
        found = _MARKER.search(data, end)
        if not found or data[found.start() + 1] == _EOI:
            at = found.start() if found else len(data)
            yield _EOI, at, at
            return
        at = found.start()
    raise TileError(Status.TOO_LARGE, f"a JPEG of more than {MAX_SEGMENTS} segments")


def _check_header(header: bytes) -> None:
    if not header or len(header) != 4 + 2 * header[0]:
        raise TileError(Status.CORRUPT, "a JPEG scan header cannot be read")


def _scan(header: bytes, interval: int, tables: dict[int, bytes], data: bytes) -> Scan:
    first, last, bits = header[-3:]
    return Scan(
        header[1:-3:2], header[2:-3:2], first, last, bits >> 4, bits & 15, interval, tables, data
    )


def _read_tables(body: bytes) -> dict[int, bytes]:
    """The Huffman tables of one DHT segment."""
    tables, at = {}, 0
    while at + 17 <= len(body):
        end = at + 17 + sum(body[at + 1 : at + 17])
        tables[body[at]] = body[at + 1 : end]
        at = end
    if at != len(body):
        raise TileError(Status.CORRUPT, "a JPEG Huffman table cannot be read")
    return tables


@lru_cache(maxsize=64)  # an encoder writes the same headers into each of its files
def check_complete(headers: tuple[bytes, ...], components: bytes, progressive: bool) -> None:
    """Raise TileError unless the scans bring every component in full.

    In a progressive JPEG, each of the 64 coefficients must come down to its lowest bit.
    """
    lowest = {component: [-1] * 64 for component in components}  # bit sent; -1: none
    for header in headers:
        _check_header(header)
        scan = _scan(header, 0, {}, b"")
        band = slice(scan.first, scan.last + 1) if progressive else slice(64)
        for component in scan.components:
            sent = lowest.get(component, [])[band]
            fitting = sent.count(scan.high) + (0 if scan.high else sent.count(-1))
            if progressive and fitting < len(sent):
                raise TileError(Status.CORRUPT, "the scans of the JPEG are not in order")
            if sent:
                lowest[component][band] = [scan.low if progressive else 0] * len(sent)
    if any(any(bits) for bits in lowest.values()):
        raise TileError(Status.TRUNCATED, "the JPEG lacks some of its scans")


def check_codes(
    scans: Iterator[Scan], factors: Factors, width: int, height: int, progressive: bool
) -> None:
    """Read every Huffman code of a JPEG of (width, height) px; raises TileError.

    The codes must make as many blocks as the picture has, and use up the data of each scan and of
    each restart interval; restart markers must be all there and in order.
    """
    nonzero: dict[int, list[int]] = {}  # of each component, the coefficients of each block as bits
    for scan in scans:
        if not set(scan.components) <= set(factors):
            raise TileError(Status.CORRUPT, "a JPEG scan of a component that the frame lacks")
        left = _count_units(scan, factors, width, height)
        interval = scan.interval or left
        parts = _restart_intervals(scan.data, -(-left // interval))
        if progressive and scan.first > 0:
            if len(scan.components) != 1:
                raise TileError(Status.CORRUPT, "a JPEG scan header cannot be read")
            table = _lookup(_table(scan, 0x10 | scan.selectors[0] & 15), _plain)
            masks = nonzero.setdefault(scan.components[0], [0] * left)
            for number, part in enumerate(parts):
                start = number * interval
                units = range(start, min(start + interval, left))
                _check_band(_Bits(part), units, masks, table, scan)
        else:
            blocks = _blocks_of_unit(scan, factors, progressive)
            for part in parts:
                _check_blocks(_Bits(part), min(interval, left), blocks)
                left -= interval


def _restart_intervals(data: bytes, expected: int) -> list[bytes]:
    """The entropy-coded data between restart markers; raises TileError if one is out of place."""
    parts = _RESTART.split(data)
    for number, marker in enumerate(parts[1::2]):
        if marker[0] != 0xD0 + number % 8:
            raise TileError(Status.CORRUPT, "the restart markers of the JPEG are not in order")
    intervals = parts[::2]
    if len(intervals) != expected:
        reason = f"{len(intervals) - 1} restart markers in a JPEG scan, expected {expected - 1}"
        status = Status.TRUNCATED if len(intervals) < expected else Status.CORRUPT
        raise TileError(status, reason)
    return intervals


def _count_units(scan: Scan, factors: Factors, width: int, height: int) -> int:
    """Number of MCUs in the scan; a scan of one component has one block in each."""
    wide, high = (max(factor[i] for factor in factors.values()) for i in (0, 1))
    h, v = factors[scan.components[0]] if len(scan.components) == 1 else (1, 1)
    return -(-width * h // (8 * wide)) * -(-height * v // (8 * high))


def _table(scan: Scan, key: int) -> bytes:
    if key not in scan.tables:
        raise TileError(Status.CORRUPT, "a JPEG scan lacks its Huffman table")
    return scan.tables[key]


def _blocks_of_unit(scan: Scan, factors: Factors, progressive: bool) -> list[_Lookups]:
    """The lookup tables of each block of an MCU, in order.

    In a progressive JPEG, these blocks hold a DC coefficient only, or one more bit of it.
    """
    blocks: list[_Lookups] = []
    for component, selector in zip(scan.components, scan.selectors, strict=True):
        h, v = factors[component] if len(scan.components) > 1 else (1, 1)
        pair: _Lookups
        if progressive and scan.high:
            pair = [64 << 5 | 1] * (1 << 16), []
        elif progressive:
            pair = _lookup(_table(scan, selector >> 4), _only_dc), []
        else:
            ac = _lookup(_table(scan, 0x10 | selector & 15), _ac)
            pair = _lookup(_table(scan, selector >> 4), _dc), ac
        blocks += [pair] * (h * v)
    return blocks


def _dc(symbol: int, length: int) -> int:
    return 1 << 5 | length + (symbol & 15)


def _only_dc(symbol: int, length: int) -> int:
    return 64 << 5 | length + (symbol & 15)


def _ac(symbol: int, length: int) -> int:
    run, size = symbol >> 4, symbol & 15
    step = _END_OF_BLOCK if size == 0 and run < 15 else run + 1
    return step << 5 | length + size


def _plain(symbol: int, length: int) -> int:
    return symbol << 5 | length


def _lookup(table: bytes, entry: Callable[[int, int], int]) -> list[int]:
    """Next 16 bits → entry, for a Huffman table."""
    if sum(count << 16 - length for length, count in enumerate(table[:16], 1)) > 1 << 16:
        raise TileError(Status.CORRUPT, "a JPEG Huffman table cannot be read")
    entries: list[int] = []
    symbols = iter(table[16:])
    for length, count in enumerate(table[:16], 1):
        for _ in range(count):
            entries += [entry(next(symbols), length)] * (1 << 16 - length)
    return entries + [_NO_CODE << 5 | 1] * ((1 << 16) - len(entries))


class _Bits:
    """Entropy-coded data between two markers, and how far it has been read."""

    def __init__(self, data: bytes) -> None:
        plain = data.rstrip(b"\xff").replace(b"\xff\0", b"\xff")
        stream = np.frombuffer(plain + bytes(_LONGEST_BLOCK), np.uint8).astype(np.uint32)
        # The 24 bits from each byte on.
        words = stream[:-2] << 16 | stream[1:-1] << 8 | stream[2:]
        self.words = memoryview(words.astype(np.uint32, copy=False).tobytes()).cast("I")
        self.total = 8 * len(plain)

    def check_end(self, at: int) -> None:
        """Raise TileError if a whole byte is left at the bit `at`."""
        if self.total - at >= 8:
            reason = f"{(self.total - at) // 8} bytes of a JPEG scan are behind its last pixel"
            raise TileError(Status.CORRUPT, reason)


def _check_blocks(bits: _Bits, units: int, blocks: list[_Lookups]) -> None:
    """Raise TileError unless the codes of so many MCUs use up the data."""
    words, total, at = bits.words, bits.total, 0
    for _ in range(units):
        for dc, ac in blocks:
            entry = dc[words[at >> 3] >> 8 - (at & 7) & 0xFFFF]
            place = entry >> 5
            at += entry & 31
            while place < 64:
                entry = ac[words[at >> 3] >> 8 - (at & 7) & 0xFFFF]
                place += entry >> 5
                at += entry & 31
            if at > total:
                raise TileError(Status.TRUNCATED, "the JPEG lacks some of its pixels")
            if place != 64 and not _END_OF_BLOCK < place < _END_OF_BLOCK + 64:
                raise TileError(Status.CORRUPT, "a JPEG Huffman code that is in no table")
    bits.check_end(at)


def _check_band(
    bits: _Bits, units: range, nonzero: list[int], table: list[int], scan: Scan
) -> None:
    """As `_check_blocks`, for the AC coefficients of a component in a progressive scan.

    A scan that refines has one bit for each coefficient that is not zero, between its codes.
    `nonzero` is kept up to date.
    """
    words, total, at, run = bits.words, bits.total, 0, 0
    band = (1 << scan.last + 1) - (1 << scan.first)
    for block in units:
        known, place, found = nonzero[block] & band, scan.first, 0
        while run == 0 and place <= scan.last:
            entry = table[words[at >> 3] >> 8 - (at & 7) & 0xFFFF]
            zeros, size = entry >> 9, entry >> 5 & 15
            at += (entry & 31) + size
            if zeros > 15 or (scan.high and size > 1):
                raise TileError(Status.CORRUPT, "a JPEG Huffman code that is in no table")
            if size == 0 and zeros < 15:  # this block and more of them end here
                run = 1 << zeros | words[at >> 3] >> 24 - (at & 7) - zeros & (1 << zeros) - 1
                at += zeros
                break
            while place <= scan.last and (zeros or known >> place & 1):
                if known >> place & 1:
                    at += 1
                else:
                    zeros -= 1
                place += 1
            if size and place > scan.last:
                raise TileError(Status.CORRUPT, "a JPEG coefficient outside its scan")
            found |= (size > 0) << place
            place += 1
        if run:
            at += (known >> place).bit_count()
            run -= 1
        nonzero[block] |= found
        if at > total:
            raise TileError(Status.TRUNCATED, "the JPEG lacks some of its pixels")
    if run:
        raise TileError(Status.CORRUPT, "a JPEG scan says more blocks than the picture has")
    bits.check_end(at)
