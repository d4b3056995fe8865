"""Files → decoded tiles → batches → probabilities → rows, overlapped and in order.

There are two ways to overlap decoding and the model:

- The engine runs several batches in parallel (CPU: one single-threaded stream per core). Each
  engine thread decodes the batch that it then predicts. All cores are busy, whatever decoding and
  the model cost, and no split of the cores between the two has to be tuned.
- The engine runs on another device, or takes all cores for one batch. Then separate threads decode
  ahead, and an engine that can resize on its device gets tiles before the resize.

libjpeg-turbo, Pillow and the engines release the GIL. The number of batches in flight is bounded,
so memory does not grow with the folder.
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

Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds
# Limits on tiles that wait for the resize on the device; larger ones are resized on the CPU.
MAX_WAITING_PIXELS_PER_TILE = 2 * 2**20
MAX_WAITING_PIXELS = 2**28  # all of them together


@dataclass(frozen=True, slots=True)
class Row:
    """The result for one file.

    Attributes:
        file: which file.
        status: 'ok', or a fixed word that says why there is no prediction.
        error: the reason, for people; empty for 'ok'.
        probabilities: float32 (C,); None unless the status is 'ok'.
        reference: the same from full precision; None where it did not run.
        stamp: of the file before it was read; None if it could not be looked at.
        decode_seconds: reading and decoding this file.
        engine_seconds: predicting the batch that the file was in.
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
    """The result of decoding one file, whose tile is in the batch's buffer.

    `pixels`: the tile before the resize, if the engine resizes it; the buffer has no tile then.
    """

    error: TileError | None
    stamp: Stamp | None
    seconds: float
    pixels: Pixels | None = None


def default_batch_size(engine: Engine) -> int:
    """Tiles per batch if the user names no number.

    On a CPU stream a tile costs the same in batches of 1 to 32. Small batches give the first row
    early and spread the last batches evenly over the cores. A GPU needs larger ones.
    """
    return 16 if engine.device == "CPU" else 32


def _decode_threads(engine: Engine, batch_size: int, threads: int) -> int:
    """Threads that decode ahead: 0 if the engine's own threads decode (see the module's text)."""
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
    """Predict files in batches. Yields the rows of each batch, in the order of `files`.

    A file that cannot be decoded becomes a row with its status. It is taken out of the batch that
    the engine gets, so that no prediction can land on another file's row.

    Args:
        files: read as they are needed.
        reader: how pixels come from a file.
        engine: predicts.
        batch_size: files per batch.
        threads: CPU threads for decoding, where it does not run on the engine's threads.
        reference: also predicts every `reference_every`-th batch.
        first: the number of the first batch, when counting for `reference_every`.
    """
    window: deque[Future[list[Row]]] = deque()
    decode_threads = _decode_threads(engine, batch_size, threads)
    # Decoding ahead: one batch is decoded, one waits, the others are in the engine. Otherwise what
    # waits is rows, not pixels, so a deeper window lets other batches pass one of slow files.
    depth = engine.concurrency + 2 if decode_threads else 4 * engine.concurrency
    pixel_limit = _pixels_left_to_engine(engine, batch_size * depth)
    decode_pool = ThreadPoolExecutor(decode_threads, "decode") if decode_threads else None
    with ThreadPoolExecutor(engine.concurrency, "engine") as engine_pool:
        try:
            for number, chunk in enumerate(_chunks(files, batch_size), first):
                while window and (len(window) >= depth or window[0].done()):
                    yield window.popleft().result()
                verifier = reference if number % reference_every == 0 else None
                if decode_pool:
                    buffer = _buffer(chunk, reader)
                    decoded = [
                        decode_pool.submit(_decode_into, buffer, i, file, reader, pixel_limit)
                        for i, file in enumerate(chunk)
                    ]
                    work = engine_pool.submit(
                        _predict_decoded, chunk, buffer, decoded, engine, verifier
                    )
                else:
                    work = engine_pool.submit(predict_batch, chunk, reader, engine, verifier)
                window.append(work)
            while window:
                yield window.popleft().result()
        finally:  # after an error or an interrupt, drop what has not begun
            if decode_pool:
                decode_pool.shutdown(wait=False, cancel_futures=True)
            engine_pool.shutdown(wait=False, cancel_futures=True)


def _chunks(files: Iterable[FoundFile], size: int) -> Iterator[list[FoundFile]]:
    iterator = iter(files)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _buffer(files: list[FoundFile], reader: ReaderSpec) -> Tiles:
    return np.empty((len(files), reader.size, reader.size, 3), np.uint8)


def _pixels_left_to_engine(engine: Engine, waiting_tiles: int) -> int:
    """Up to how many pixels a tile is left to the engine to resize; 0 if it cannot resize."""
    if not resizes(engine):
        return 0
    return min(MAX_WAITING_PIXELS_PER_TILE, MAX_WAITING_PIXELS // waiting_tiles)


def predict_batch(
    files: list[FoundFile], reader: ReaderSpec, engine: Engine, reference: Engine | None = None
) -> list[Row]:
    """Decode and predict one batch on the calling thread."""
    buffer = _buffer(files, reader)
    pixel_limit = _pixels_left_to_engine(engine, len(files) * engine.concurrency)
    decoded = [_decode_into(buffer, i, file, reader, pixel_limit) for i, file in enumerate(files)]
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
    buffer: Tiles, index: int, file: FoundFile, reader: ReaderSpec, pixel_limit: int
) -> _Decoded:
    """Read the file into `buffer[index]`; a tile of up to `pixel_limit` pixels is not resized."""
    start = time.perf_counter()
    stamp = stamp_of(file)
    error = pixels = None
    try:
        if leftover := file.leftover_of:
            reason = f"is in {leftover}, a folder that the operating system created"
            raise TileError("skipped", reason)
        if file.reason:
            raise TileError("unreadable", file.reason)
        if not file.is_image and not looks_like_image(file.location):
            raise TileError("skipped", "no image by its name or first bytes")
        if pixel_limit:
            pixels = read_pixels(file.location, reader)
            height, width, _ = pixels.shape
            # Between its two passes the resize holds height × size pixels.
            if height == width == reader.size or height * max(width, reader.size) > pixel_limit:
                resize(pixels, reader.size, buffer[index])
                pixels = None
        else:
            read_tile(file.location, reader, buffer[index])
    except TileError as caught:
        error = caught
    except MemoryError:
        error = TileError("too-large", "not enough memory to decode it")
    except Exception as caught:  # an unexpected error of a decoder costs one row, not the run
        error = TileError("corrupt", one_line(caught))
    return _Decoded(error, stamp, time.perf_counter() - start, pixels)


def stamp_of(file: FoundFile) -> Stamp | None:
    """The file's size and time of the last change; None if it cannot be looked at."""
    try:
        info = os.stat(file.location)
    except (OSError, ValueError):  # ValueError: a NUL in a listed name
        return None
    return info.st_size, info.st_mtime_ns


def _infer(engine: Engine, tiles: Tiles, to_resize: Mapping[int, Pixels]) -> Probabilities:
    """Probabilities (N, C) of the tiles; those in `to_resize` (by index) are resized first."""
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
    decoded_indices = [i for i, one in enumerate(decoded) if one.error is None]
    probabilities = reference_probabilities = None
    seconds = 0.0
    if decoded_indices:
        tiles = buffer if len(decoded_indices) == len(files) else buffer[decoded_indices]
        to_resize = {
            k: pixels
            for k, i in enumerate(decoded_indices)
            if (pixels := decoded[i].pixels) is not None
        }
        start = time.perf_counter()
        probabilities = _infer(engine, tiles, to_resize)
        seconds = time.perf_counter() - start
        reference_probabilities = _infer(reference, tiles, to_resize) if reference else None
    position = {i: k for k, i in enumerate(decoded_indices)}  # in the batch that the engine got
    rows = []
    for i, (file, one) in enumerate(zip(files, decoded, strict=True)):
        if one.error is not None or probabilities is None:
            error = one.error or TileError("failed", "not predicted")
            row = Row(file, error.status, error.reason, stamp=one.stamp, decode_seconds=one.seconds)
        elif not np.isfinite(probabilities[position[i]]).all():
            reason = f"{engine.name} gave no finite probabilities"
            row = Row(file, "failed", reason, None, None, one.stamp, one.seconds, seconds)
        else:
            k = position[i]
            expected = None if reference_probabilities is None else reference_probabilities[k]
            row = Row(file, "ok", "", probabilities[k], expected, one.stamp, one.seconds, seconds)
        rows.append(row)
    return rows
