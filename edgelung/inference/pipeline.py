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
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from edgelung.core.errors import one_line
from edgelung.core.workers import Task, Workers
from edgelung.engines.base import Engine, Probabilities, Tiles, resizes
from edgelung.kernels.resize import Pixels
from edgelung.tiles.budget import DECODING
from edgelung.tiles.find import LEADS_OUT, FoundFile
from edgelung.tiles.reader import (
    ReaderSpec,
    Tile,
    TileError,
    looks_like_image,
    read_decoded,
    resize,
)
from edgelung.tiles.sizes import Size
from edgelung.tiles.status import Status

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
        size: width and height of the image in pixels; None if it was not decoded.
        decode_seconds: reading and decoding this file.
        engine_seconds: predicting the batch that the file was in.
    """

    file: FoundFile
    status: Status
    error: str = ""
    probabilities: Probabilities | None = None
    reference: Probabilities | None = None
    stamp: Stamp | None = None
    size: Size | None = None
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
    size: Size | None = None
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
    window: deque[Task[list[Row]]] = deque()
    decode_threads = _decode_threads(engine, batch_size, threads)
    # Decoding ahead: one batch is decoded, one waits, the others are in the engine. Otherwise what
    # waits is rows, not pixels, so a deeper window lets other batches pass one of slow files.
    depth = engine.concurrency + 2 if decode_threads else 4 * engine.concurrency
    pixel_limit = _pixels_left_to_engine(engine, batch_size * depth)
    with ExitStack() as stack:  # after an error or an interrupt, what has not begun is dropped
        engine_workers = stack.enter_context(Workers(engine.concurrency))
        decoders = stack.enter_context(Workers(decode_threads)) if decode_threads else None
        for number, chunk in enumerate(_chunks(files, batch_size), first):
            while window and (len(window) >= depth or window[0].done):
                yield window.popleft().result()
            verifier = reference if number % reference_every == 0 else None
            if decoders:
                buffer = _buffer(chunk, reader)
                decoded = [
                    decoders.submit(_decode_into, buffer, i, file, reader, pixel_limit)
                    for i, file in enumerate(chunk)
                ]
                work = engine_workers.submit(
                    _predict_decoded, chunk, buffer, decoded, engine, verifier
                )
            else:
                work = engine_workers.submit(predict_batch, chunk, reader, engine, verifier)
            window.append(work)
        while window:
            yield window.popleft().result()


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
    decoded: list[Task[_Decoded]],
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
    error = size = waiting = None
    with DECODING:
        try:
            size, waiting = _read_into(buffer[index], file, reader, pixel_limit)
        except TileError as caught:  # which is not kept: its traceback holds the decoder's memory
            error = TileError(caught.status, caught.reason)
        except MemoryError:
            error = TileError(Status.TOO_LARGE, "not enough memory to decode it")
        except Exception as caught:  # an unexpected error of a decoder costs one row, not the run
            error = TileError(Status.CORRUPT, one_line(caught))
    return _Decoded(error, stamp, time.perf_counter() - start, size, waiting)


def _read_into(
    out: Tile, file: FoundFile, reader: ReaderSpec, pixel_limit: int
) -> tuple[Size, Pixels | None]:
    """The size of the image, and its pixels where they are not resized to `out` here."""
    if leftover := file.leftover_of:
        reason = f"is in {leftover}, a folder that the operating system created"
        raise TileError(Status.SKIPPED, reason)
    if file.leads_out:
        raise TileError(Status.SKIPPED, LEADS_OUT)
    if file.reason:
        raise TileError(Status.UNREADABLE, file.reason)
    if not file.is_image and not looks_like_image(file.location):
        raise TileError(Status.SKIPPED, "no image by its name or first bytes")
    decoded, size = read_decoded(file.location, reader)
    if pixel_limit and _fits(pixels := np.asarray(decoded), reader.size, pixel_limit):
        return size, pixels
    resize(decoded, reader.size, out)
    return size, None


def _fits(pixels: Pixels, size: int, pixel_limit: int) -> bool:
    """True if the pixels need a resize, and one of at most `pixel_limit` pixels."""
    height, width, _ = pixels.shape
    # Between its two passes the resize holds height × size pixels.
    return (height, width) != (size, size) and height * max(width, size) <= pixel_limit


def stamp_of(file: FoundFile) -> Stamp | None:
    """The file's size and time of the last change; None if it cannot be looked at."""
    try:
        info = os.stat(file.location, follow_symlinks=not file.leads_out)
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
    predicted = iter(() if probabilities is None else probabilities)
    verified = iter(() if reference_probabilities is None else reference_probabilities)
    return [
        _failed_row(file, one, one.error)
        if one.error
        else _predicted_row(file, one, engine.name, next(predicted), next(verified, None), seconds)
        for file, one in zip(files, decoded, strict=True)
    ]


def _failed_row(file: FoundFile, one: _Decoded, error: TileError) -> Row:
    return Row(
        file,
        error.status,
        error.reason,
        stamp=one.stamp,
        size=one.size,
        decode_seconds=one.seconds,
    )


def _predicted_row(
    file: FoundFile,
    one: _Decoded,
    engine: str,
    probabilities: Probabilities,
    reference: Probabilities | None,
    seconds: float,
) -> Row:
    """The row of a decoded file from its probabilities (C,)."""
    whose = None if np.isfinite(probabilities).all() else engine
    if reference is not None and not np.isfinite(reference).all():
        whose = whose or "full precision"
    if whose:
        error = TileError(Status.FAILED, f"{whose} gave no finite probabilities")
        return replace(_failed_row(file, one, error), engine_seconds=seconds)
    return Row(
        file,
        Status.OK,
        probabilities=probabilities,
        reference=reference,
        stamp=one.stamp,
        size=one.size,
        decode_seconds=one.seconds,
        engine_seconds=seconds,
    )
