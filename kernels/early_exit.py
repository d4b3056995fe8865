"""Plan the launches that pick the tiles that continue behind an early exit (early_exit.cu).

It does not use CUDA: the device (`edgelung.engines.device_exit`) and the host twin run the same
plan.
"""

import numpy as np
import numpy.typing as npt

from edgelung.kernels.resize import MAX_GRID, HostTwin, Launch

KERNELS = ("exit_positions", "exit_gather")
THREADS = 256  # of a block
WORD = 4  # bytes that a thread copies at a time
MAX_COUNT = MAX_GRID  # tiles are the second dimension of a grid

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]  # (N,), place among the tiles that continue; -1: it leaves


def launches(
    *,
    probs: int,
    scores: int,
    tokens: int,
    positions: int,
    out: int,
    count: int,
    classes: int,
    row_bytes: int,
    confidence: float,
    known_up_to: float,
) -> list[Launch]:
    """List kernel, grid, block and arguments of each launch, in order.

    Args:
        probs, scores, tokens: addresses of float32 (N, classes), (N,) and of the N rows of tokens.
        positions: address for int32 (N,), see `Positions`.
        out: address for the rows that continue, in their order.
        count: N.
        classes: number of classes.
        row_bytes: bytes of the tokens of one tile.
        confidence, known_up_to: see `ExitRule`.

    Raises:
        ValueError: if there are no tiles or too many, or a row is not a whole number of words.
    """
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"{count} tiles; a batch holds 1 to {MAX_COUNT}")
    if row_bytes % WORD:
        raise ValueError(f"a row of {row_bytes} bytes; expected a multiple of {WORD}")
    words, block = row_bytes // WORD, (THREADS, 1, 1)
    positions_of = (
        *(np.uint64(probs), np.uint64(scores), np.int32(count), np.int32(classes)),
        *(np.float32(confidence), np.float32(known_up_to), np.uint64(positions)),
    )
    rows = (np.uint64(tokens), np.uint64(positions), np.int32(words), np.uint64(out))
    return [
        ("exit_positions", (_ceil(count, THREADS), 1, 1), block, positions_of),
        ("exit_gather", (_ceil(words, THREADS), count, 1), block, rows),
    ]


def continue_on_host(
    twin: HostTwin,
    probabilities: Floats,
    scores: Floats,
    tokens: Floats,
    confidence: float,
    known_up_to: float,
) -> tuple[Positions, Floats]:
    """Run the host twin, to test without a GPU; returns positions (N,) and the rows that continue.

    Args: float32 (N, classes), (N,) and (N, …), C-contiguous; the thresholds of `ExitRule`.
    """
    positions = np.empty(len(scores), np.int32)
    out = np.full_like(tokens, np.nan)
    for launch in launches(
        probs=probabilities.ctypes.data,
        scores=scores.ctypes.data,
        tokens=tokens.ctypes.data,
        positions=positions.ctypes.data,
        out=out.ctypes.data,
        count=len(scores),
        classes=probabilities.shape[1],
        row_bytes=tokens[0].nbytes,
        confidence=confidence,
        known_up_to=known_up_to,
    ):
        twin.launch(launch)
    return positions, out[: positions.max() + 1]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
