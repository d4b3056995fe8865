"""The scans of a JPEG: which there are, and whether their Huffman codes fill the picture.

libjpeg takes a scan that is missing for one that adds nothing, and gives no warning. Reference:
ITU T.81, annexes B (markers), F (sequential coding) and G (progressive coding).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgelung.tiles.errors import Status, TileError

_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # none of those within entropy-coded data
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
# An entry of a lookup table is step << 5 | bits: how many coefficients a code stands for, and the
# length of the code with the bits that follow it. Two steps are out of the ordinary:
_END_OF_BLOCK, _NO_CODE = 128, 1024
_LONGEST_BLOCK = 64 * 31 // 8 + 4  # bytes

Factors = dict[int, tuple[int, int]]


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


def read_scans(data: bytes, segments: list[tuple[int, int, int]], at: int) -> Iterator[Scan]:
    """The scans from the SOS marker at `at` on; `segments`: those before it (marker, start, end).

    Raises TileError `corrupt` where a scan header or a Huffman table cannot be read.
    """
    tables: dict[int, bytes] = {}
    interval = 0
    pending = list(segments)
    while True:
        for marker, start, end in pending:
            if marker == 0xC4:
                tables = tables | _read_tables(data[start + 4 : end])
            elif marker == 0xDD:
                interval = int.from_bytes(data[start + 4 : end])
        begin = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        header = data[at + 4 : begin]
        if not header or len(header) != 4 + 2 * header[0]:
            raise TileError(Status.CORRUPT, "a JPEG scan header cannot be read")
        found = _MARKER.search(data, begin)
        first, last, bits = header[-3:]
        yield Scan(
            header[1:-3:2],
            header[2:-3:2],
            first,
            last,
            bits >> 4,
            bits & 15,
            interval,
            tables,
            data[begin : found.start() if found else len(data)],
        )
        pending = []
        while found and found[1] not in (b"\xda", b"\xd9"):
            start = found.end() - 2
            end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
            pending.append((data[start + 1], start, end))
            found = _MARKER.search(data, end)
        if not found or found[1] == b"\xd9":
            return
        at = found.end() - 2


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


def check_complete(scans: Iterator[Scan], components: bytes, progressive: bool) -> None:
    """Raise TileError `truncated` unless the scans bring every component in full.

    In a progressive JPEG, each of the 64 coefficients must come down to its lowest bit.
    """
    missing = {component: [True] * 64 for component in components}
    for scan in scans:
        first, last = (scan.first, scan.last) if progressive else (0, 63)
        for component in scan.components:
            if component in missing and last < 64:
                count = last + 1 - first
                missing[component][first : last + 1] = [progressive and scan.low > 0] * count
    if any(any(coefficients) for coefficients in missing.values()):
        raise TileError(Status.TRUNCATED, "the JPEG lacks some of its scans")


def check_codes(scans: Iterator[Scan], factors: Factors, width: int, height: int) -> None:
    """Read every Huffman code of a sequential JPEG of (width, height) px; raises TileError.

    The codes must make as many blocks as the picture has, and use up the data of each scan and of
    each restart interval; restart markers must be all there and in order.
    """
    for scan in scans:
        if not set(scan.components) <= set(factors):
            raise TileError(Status.CORRUPT, "a JPEG scan of a component that the frame lacks")
        blocks = _blocks_of_unit(scan, factors)
        left = _count_units(scan, factors, width, height)
        parts = _RESTART.split(scan.data)
        for number, marker in enumerate(parts[1::2]):
            if marker[0] != 0xD0 + number % 8:
                raise TileError(Status.CORRUPT, "the restart markers of the JPEG are not in order")
        interval = scan.interval or left
        if len(parts[::2]) != -(-left // interval):
            expected = -(-left // interval) - 1
            reason = f"{len(parts) // 2} restart markers in a JPEG scan, expected {expected}"
            status = Status.TRUNCATED if len(parts) // 2 < expected else Status.CORRUPT
            raise TileError(status, reason)
        for part in parts[::2]:
            units = min(interval, left)
            _check_interval(part.replace(b"\xff\0", b"\xff"), units, blocks)
            left -= units


def _count_units(scan: Scan, factors: Factors, width: int, height: int) -> int:
    """Number of MCUs in the scan; a scan of one component has one block in each."""
    wide, high = (max(factor[i] for factor in factors.values()) for i in (0, 1))
    h, v = factors[scan.components[0]] if len(scan.components) == 1 else (1, 1)
    return -(-width * h // (8 * wide)) * -(-height * v // (8 * high))


def _blocks_of_unit(scan: Scan, factors: Factors) -> list[tuple[list[int], list[int]]]:
    """The lookup tables (DC, AC) of each block of an MCU, in order."""
    blocks = []
    for component, selector in zip(scan.components, scan.selectors, strict=True):
        h, v = factors[component] if len(scan.components) > 1 else (1, 1)
        try:
            dc, ac = scan.tables[selector >> 4], scan.tables[0x10 | selector & 15]
        except KeyError:
            raise TileError(Status.CORRUPT, "a JPEG scan lacks its Huffman table") from None
        blocks += [(_lookup(dc, False), _lookup(ac, True))] * (h * v)
    return blocks


def _lookup(table: bytes, ac: bool) -> list[int]:
    """Next 16 bits → entry, for a Huffman table."""
    if sum(count << 16 - length for length, count in enumerate(table[:16], 1)) > 1 << 16:
        raise TileError(Status.CORRUPT, "a JPEG Huffman table cannot be read")
    entries: list[int] = []
    symbols = iter(table[16:])
    for length, count in enumerate(table[:16], 1):
        for _ in range(count):
            symbol = next(symbols)
            run, size = (symbol >> 4, symbol & 15) if ac else (0, symbol & 15)
            step = _END_OF_BLOCK if ac and size == 0 and run < 15 else run + 1
            entries += [step << 5 | length + size] * (1 << 16 - length)
    return entries + [_NO_CODE << 5 | 1] * ((1 << 16) - len(entries))


def _check_interval(data: bytes, units: int, blocks: list[tuple[list[int], list[int]]]) -> None:
    """Raise TileError unless the codes of so many MCUs use up the data, less than a byte apart."""
    stream = np.frombuffer(data + bytes(_LONGEST_BLOCK), np.uint8).astype(np.uint32)
    words = memoryview(stream[:-2] << 16 | stream[1:-1] << 8 | stream[2:])  # 24 bits from each byte
    at, total = 0, 8 * len(data)
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
    if total - at >= 8:
        reason = f"{(total - at) // 8} bytes of a JPEG scan are left behind the last pixel"
        raise TileError(Status.CORRUPT, reason)
