"""What the header of a JPEG 2000 codestream says, before a decoder allocates for it.

Reference: ITU T.800, annex A (codestream syntax).
"""

_SIZ = b"\xff\x4f\xff\x51"  # the beginning of a codestream
_COD, _COC, _SOT = 0x52, 0x53, 0x90
_MAX_SEGMENTS = 2**14  # of the main header; a picture has a handful
_TILE_BYTES = 10_000  # of OpenJPEG's structures for one tile
_BLOCK_BYTES = 300  # and for one code block or precinct, with the levels above it


def jpeg2000_sizes(data: bytes) -> list[tuple[int, int]]:
    """Width and height from the SIZ marker of the codestream, with or without the boxes of JP2."""
    at = data.find(_SIZ, 0, 4096)
    if at < 0 or len(data) < at + 42:
        return []
    right, lower, left, top = (int.from_bytes(data[n : n + 4]) for n in range(at + 8, at + 24, 4))
    return [(right - left, lower - top)]


def jpeg2000_bits(data: bytes) -> set[int]:
    """Bits of the components from the SIZ marker (Ssiz; the highest bit of it means signed)."""
    at = data.find(_SIZ, 0, 4096)
    components = _components(data, at)
    return {1 + (ssiz & 127) for ssiz in data[at + 42 : at + 42 + 3 * components : 3]}


def jpeg2000_memory(data: bytes) -> int:
    """Bytes of the structures that describe tiles, precincts and code blocks, at most.

    Small parts make them larger than the pixels: precincts may be of one pixel.
    """
    sizes = jpeg2000_sizes(data)
    if not sizes:
        return 0
    at = data.find(_SIZ, 0, 4096)
    width, height = sizes[0]
    across, down = (max(int.from_bytes(data[n : n + 4]), 1) for n in (at + 24, at + 28))
    tiles = -(-width // across) * -(-height // down)
    blocks = -(-width * height // _smallest_block(data, at))
    components = _components(data, at)
    return tiles * _TILE_BYTES * components + blocks * _BLOCK_BYTES * components


def jpeg2000_components(data: bytes) -> int:
    """Number of components from the SIZ marker."""
    return _components(data, data.find(_SIZ, 0, 4096))


def _components(data: bytes, at: int) -> int:
    return int.from_bytes(data[at + 40 : at + 42])


def _smallest_block(data: bytes, at: int) -> int:
    """Pixels of the smallest code block or precinct that the main header allows.

    1 for a header of too many segments: the estimate is then more than any budget.
    """
    smallest, at = 4096, at + 2  # past SOC
    for _ in range(_MAX_SEGMENTS):
        if at + 4 > len(data) or data[at + 1] == _SOT:
            return smallest
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] in (_COD, _COC):
            start = at + (9 if data[at + 1] == _COD else 6)  # at the decomposition levels
            own = data[at + 4] & 1 if data[at + 1] == _COD else data[start - 1] & 1
            if start + 5 > len(data):
                return smallest
            block = 1 << (data[start + 1] & 15) + 2 + (data[start + 2] & 15) + 2
            precincts = data[start + 5 : end] if own else b""
            areas = [1 << (size & 15) + (size >> 4) for size in precincts]
            smallest = min([smallest, block, *areas])
        at = end
    return 1
