"""Files → decoded tiles → batches → probabilities → rows, overlapped and in order.

Where the engine runs several batches side by side (a CPU: one single-threaded stream per core),
each of its threads decodes the batch that it then predicts. As many threads are busy as there are
cores, whatever decoding and the model cost and however many cores there are: there is no split
between them to get wrong. Where the engine works elsewhere, or takes all cores for one batch,
decoding runs ahead on threads of its own, and the resize is left to an engine that can do it on its
device. libjpeg-turbo, Pillow and the engines release the GIL.

Whole batches wait in a bounded window, so memory does not grow with the folder.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgelung.core.errors import one_line
from edgelung.engines.base import Engine, Probabilities, Tiles, resizes
from edgelung.kernels.resize import Pixels
from edgelung.tiles.find import FoundFile
from edgelung.tiles.reader import (
    ReaderSpec,
    TileError,
    looks_like_image,
    read_pixels,
    read_tile,
    resize,
)

Stamp = tuple[int, int]  # bytes, nanoseconds of the last change
# Of a decoded tile that is left to the engine to resize, and of all those that wait at once.
MOST_PIXELS, MOST_WAITING = 2 * 2**20, 2**28


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one file.

    `status` is 'ok' or a fixed word; `probabilities` float32 [classes] and, where full precision
    ran beside it, `reference` of the same shape are set only when it is 'ok'. `stamp` is the file's
    as it was before it was read, None where it could not be had. Seconds: reading and decoding this
    file, and the engine's for the batch that it was in.
    """

    file: FoundFile
    status: str
    error: str = ""
    probabilities: Probabilities | None = None
    reference: Probabilities | None = None
    stamp: Stamp | None = None
    decode_seconds: float = 0.0
    engine_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What became of a file; `pixels` where they are not yet in the batch but to be resized."""

    error: TileError | None
    stamp: Stamp | None
    seconds: float
    pixels: Pixels | None = None


def default_batch_size(engine: Engine) -> int:
    """Tiles per batch where the user names none.

    A CPU stream costs the same per tile from 1 to 32: small batches keep the first row early and
    the last batches even among the cores. A GPU wants more at once.
    """
    return 16 if engine.device == "CPU" else 32


def decoders(engine: Engine, batch_size: int, threads: int) -> int:
    """Threads that decode ahead: none where the engine's own threads decode (see above)."""
    return 0 if engine.device == "CPU" and batch_size > 1 else threads


def predict_batches(
    files: Iterable[FoundFile],
    reader: ReaderSpec,
    engine: Engine,
    *,
    batch_size: int,
    threads: int,
    reference: Engine | None = None,
    reference_every: int = 1,
    first: int = 0,
) -> Generator[list[Row], None, None]:
    """The rows of each `batch_size` files, in the order of `files`.

    `threads`: CPU threads for all of it (see `decoders`). `reference` runs beside the engine on
    every `reference_every`-th batch, counted from `first`.

    A file that cannot be a tile becomes a row with its status; its place in the batch is closed
    up, so that no prediction can land on another file's row.
    """
    window: deque[Future[list[Row]]] = deque()
    ahead = decoders(engine, batch_size, threads)
    # Decoding ahead: one batch decoding, one decoded and waiting, the rest in the engine. Else what
    # waits is rows, not pixels, and a batch of slow files should not hold up the others.
    depth = engine.concurrency + 2 if ahead else 4 * engine.concurrency
    leave = _leave(engine, batch_size * depth)
    decode_pool = ThreadPoolExecutor(ahead, "decode") if ahead else None
    with ThreadPoolExecutor(engine.concurrency, "engine") as engine_pool:
        try:
            for number, chunk in enumerate(_chunks(files, batch_size), first):
                while window and (len(window) >= depth or window[0].done()):
                    yield window.popleft().result()
                beside = reference if number % reference_every == 0 else None
                if decode_pool:
                    buffer = _buffer(chunk, reader)
                    decoded = [
                        decode_pool.submit(_decode_into, buffer, i, file, reader, leave)
                        for i, file in enumerate(chunk)
                    ]
                    work = engine_pool.submit(
                        _predict_decoded, chunk, buffer, decoded, engine, beside
                    )
                else:
                    work = engine_pool.submit(predict_batch, chunk, reader, engine, beside)
                window.append(work)
            while window:
                yield window.popleft().result()
        finally:  # an error or an interrupt: drop what has not begun
            if decode_pool:
                decode_pool.shutdown(wait=False, cancel_futures=True)
            engine_pool.shutdown(wait=False, cancel_futures=True)


def _chunks(files: Iterable[FoundFile], size: int) -> Iterator[list[FoundFile]]:
    iterator = iter(files)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _buffer(files: list[FoundFile], reader: ReaderSpec) -> Tiles:
    return np.empty((len(files), reader.size, reader.size, 3), np.uint8)


def _leave(engine: Engine, waiting: int) -> int:
    """Pixels up to which a tile is left to the engine to resize, where so many wait."""
    return min(MOST_PIXELS, MOST_WAITING // waiting) if resizes(engine) else 0


def predict_batch(
    files: list[FoundFile], reader: ReaderSpec, engine: Engine, reference: Engine | None = None
) -> list[Row]:
    """The rows of one batch, decoded and predicted by the calling thread."""
    buffer = _buffer(files, reader)
    leave = _leave(engine, len(files) * engine.concurrency)
    decoded = [_decode_into(buffer, i, file, reader, leave) for i, file in enumerate(files)]
    return _predict_batch(files, buffer, decoded, engine, reference)


def _predict_decoded(
    files: list[FoundFile],
    buffer: Tiles,
    decoded: list[Future[_Decoded]],
    engine: Engine,
    reference: Engine | None,
) -> list[Row]:
    return _predict_batch(files, buffer, [d.result() for d in decoded], engine, reference)


def _decode_into(
    buffer: Tiles, index: int, file: FoundFile, reader: ReaderSpec, leave: int
) -> _Decoded:
    """Read the file into its place; up to `leave` pixels that are to be resized stay beside it."""
    start = time.perf_counter()
    stamp = stamp_of(file)
    error = pixels = None
    try:
        if file.reason:
            raise TileError("unreadable", file.reason)
        if not file.is_image and not looks_like_image(file.location):
            raise TileError("skipped", "no image by its name or first bytes")
        if leave:
            pixels = read_pixels(file.location, reader)
            height, width, _ = pixels.shape
            # Between its passes the resize holds `size` × the height.
            if height == width == reader.size or height * max(width, reader.size) > leave:
                resize(pixels, reader.size, buffer[index])
                pixels = None
        else:
            read_tile(file.location, reader, buffer[index])
    except TileError as caught:
        error = caught
    except MemoryError:
        error = TileError("too-large", "not enough memory to decode it")
    except Exception as caught:  # whatever a decoder thinks of next: one file's row, not the run
        error = TileError("corrupt", one_line(caught))
    return _Decoded(error, stamp, time.perf_counter() - start, pixels)


def stamp_of(file: FoundFile) -> Stamp | None:
    """Size and time of the last change; None where the file cannot be looked at."""
    try:
        info = os.stat(file.location)
    except (OSError, ValueError):  # ValueError: a NUL in a listed name
        return None
    return info.st_size, info.st_mtime_ns


def _infer(engine: Engine, tiles: Tiles, to_resize: Mapping[int, Pixels]) -> Probabilities:
    """Probabilities of `tiles`, in some places of which there are still pixels to be resized."""
    if to_resize and resizes(engine):
        return engine.infer_pixels([to_resize.get(i, tile) for i, tile in enumerate(tiles)])
    for i, pixels in to_resize.items():
        resize(pixels, tiles.shape[1], tiles[i])
    return engine.infer(tiles)


def _predict_batch(
    files: list[FoundFile],
    buffer: Tiles,
    decoded: list[_Decoded],
    engine: Engine,
    reference: Engine | None,
) -> list[Row]:
    good = [i for i, one in enumerate(decoded) if one.error is None]
    probabilities = compared = None
    seconds = 0.0
    if good:
        tiles = buffer if len(good) == len(files) else buffer[good]
        to_resize = {
            k: pixels for k, i in enumerate(good) if (pixels := decoded[i].pixels) is not None
        }
        start = time.perf_counter()
        probabilities = _infer(engine, tiles, to_resize)
        seconds = time.perf_counter() - start
        compared = _infer(reference, tiles, to_resize) if reference else None
    place = {i: k for k, i in enumerate(good)}
    rows = []
    for i, (file, one) in enumerate(zip(files, decoded, strict=True)):
        if one.error is not None or probabilities is None:
            error = one.error or TileError("failed", "not predicted")
            rows.append(
                Row(
                    file,
                    error.status,
                    error.reason,
                    stamp=one.stamp,
                    decode_seconds=one.seconds,
                )
            )
            continue
        k = place[i]
        found, beside = probabilities[k], None if compared is None else compared[k]
        status, reason = "ok", ""
        if not np.isfinite(found).all():
            status, reason = "failed", f"{engine.name} gave no finite probabilities"
            found = beside = None
        rows.append(Row(file, status, reason, found, beside, one.stamp, one.seconds, seconds))
    return rows
