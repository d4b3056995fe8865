"""Samples packed into bytes, most significant bit first → one array element a sample."""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def unpack_rows(rows: Bytes, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Unpack `count` samples of 1, 2, 4 or 8 bits from each row: uint8 (H, bytes) → (H, count)."""
    if bits == 8:
        return rows[:, :count]
    mask = 2**bits - 1
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    parts = (rows[:, :, None] >> shifts) & np.uint8(mask)
    return parts.reshape(len(rows), -1)[:, :count]


def unpack_any(rows: Bytes, bits: int, count: int) -> npt.NDArray[np.unsignedinteger]:
    """Unpack `count` samples of any 1…16 bits from each row: uint8 (H, bytes) → (H, count).

    The result is uint8, or uint16 for more than 8 bits.
    """
    out = np.empty((len(rows), count), np.uint8 if bits <= 8 else np.uint16)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
    step = max(1, 2**18 // max(1, rows.shape[1]))  # bounds the memory: each bit becomes a byte
    for start in range(0, len(rows), step):
        flags = np.unpackbits(rows[start : start + step], axis=1)[:, : count * bits]
        out[start : start + step] = flags.reshape(-1, count, bits).astype(np.uint16) @ weights
    return out
