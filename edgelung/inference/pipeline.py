"""Items → decoded tiles → batches → probabilities → rows, overlapped and in order.

There are two ways to overlap decoding and the model:

- The engine runs several batches in parallel (CPU: one single-threaded stream per core). Each
  engine thread decodes the batch that it then predicts. All cores are busy, whatever decoding and
  the model cost, and no split of the cores between the two has to be tuned. One thread more than
  streams decodes while the others predict: threads also wait for each other, for the GIL.
- The engine runs on another device, or takes all cores for one batch. Then separate threads decode
  ahead, and an engine that can resize on its device gets tiles before the resize.

libjpeg-turbo, Pillow and the engines release the GIL. The number of batches in flight is bounded,
so memory does not grow with the number of items.
"""

import itertools
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from edgelung.core.errors import one_line
from edgelung.core.workers import Task, Workers
from edgelung.engines.base import (
    NOTHING,
    Engine,
    Output,
    OutputRow,
    Probabilities,
    Tiles,
    output_rows,
    resizes,
)
from edgelung.inference.reading import Reading, Stamp
from edgelung.kernels.resize import Pixels
from edgelung.tiles.blank import why_blank
from edgelung.tiles.budget import DECODING
from edgelung.tiles.reader import Tile, TileError, resize
from edgelung.tiles.sizes import Size
from edgelung.tiles.status import Status

Item = TypeVar("Item")
# Limits on tiles that wait for the resize on the device; larger ones are resized on the CPU.
MAX_WAITING_PIXELS_PER_TILE = 2 * 2**20
MAX_WAITING_PIXELS = 2**28  # all of them together
CPU_BATCH, GPU_BATCH = 16, 32  # tiles, if the user names no number


@dataclass(frozen=True, slots=True)
class Row(Generic[Item]):
    """The result for one item: a file, or a tile of a slide.

    Attributes:
        item: which one.
        status: 'ok', or a fixed word that says why there is no prediction.
        error: the reason, for people; empty for 'ok'.
        probabilities: float32 (C,); None unless the status is 'ok'.
        reference: the same from full precision; None where it did not run.
        ood: how far it is from the training tiles; None if the model cannot tell.
        stage: 1 if it left the model at the early exit, 2 if not; None if there is none.
        blank: why it shows no tissue (`edgelung.tiles.blank`); '' if it may.
        stamp: of the item before it was read; None if it could not be looked at.
        size: width and height of the image in pixels; None if it was not decoded.
        decode_seconds: reading and decoding it.
        engine_seconds: predicting the batch that it was in.
    """

    item: Item
    status: Status
    error: str = ""
    probabilities: Probabilities | None = None
    reference: Probabilities | None = None
    ood: float | None = None
    stage: int | None = None
    blank: str = ""
    stamp: Stamp | None = None
    size: Size | None = None
    decode_seconds: float = 0.0
    engine_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Decoded:
    """The result of decoding one item, whose tile is in the batch's buffer.

    `pixels`: the tile before the resize, if the engine resizes it; the buffer has no tile then.
    """

    error: TileError | None
    stamp: Stamp | None
    seconds: float
    size: Size | None = None
    blank: str = ""
    pixels: Pixels | None = None


def default_batch_size(engine: Engine) -> int:
    """Tiles per batch if the user names no number.

    On a CPU stream a tile costs the same in batches of 1 to 32. Small batches give the first row
    early and spread the last batches evenly over the cores. A GPU needs larger ones.
    """
    return CPU_BATCH if engine.device == "CPU" else GPU_BATCH


def decode_threads_of(engine: Engine, batch_size: int, threads: int) -> int:
    """Threads that decode ahead: 0 if the engine's own threads decode (see the module's text)."""
    return 0 if engine.device == "CPU" and batch_size > 1 else threads


def predict_batches(
    items: Iterable[Item],
    reading: Reading[Item],
    engine: Engine,
    *,
    batch_size: int,
    threads: int,
    reference: Engine | None = None,
    reference_every: int = 1,
    first: int = 0,
) -> Generator[list[Row[Item]], None, None]:
    """Predict items in batches. Yields the rows of each batch, in the order of `items`.

    An item that cannot be decoded becomes a row with its status. It is taken out of the batch that
    the engine gets, so that no prediction can land on another item's row.

    Args:
        items: read as they are needed.
        reading: how pixels come from an item.
        engine: predicts.
        batch_size: items per batch.
        threads: CPU threads for decoding, where it does not run on the engine's threads.
        reference: also predicts every `reference_every`-th batch.
        first: the number of the first batch, when counting for `reference_every`.
    """
    window: deque[Task[list[Row[Item]]]] = deque()
    decode_threads = decode_threads_of(engine, batch_size, threads)
    # Decoding ahead: one batch is decoded, one waits, the others are in the engine. Otherwise what
    # waits is rows, not pixels, so a deeper window lets other batches pass one of slow items.
    depth = engine.concurrency + 2 if decode_threads else 4 * engine.concurrency
    pixel_limit = _pixels_left_to_engine(engine, batch_size * depth)
    with ExitStack() as stack:  # after an error or an interrupt, what has not begun is dropped
        engine_workers = stack.enter_context(Workers(_workers(engine, decode_threads)))
        decoders = stack.enter_context(Workers(decode_threads)) if decode_threads else None
        for number, chunk in enumerate(_chunks(items, batch_size), first):
            while window and (len(window) >= depth or window[0].done):
                yield window.popleft().result()
            verifier = reference if number % reference_every == 0 else None
            if decoders:
                buffer = _buffer(chunk, reading)
                decoded = [
                    decoders.submit(_decode_into, buffer, i, item, reading, pixel_limit)
                    for i, item in enumerate(chunk)
                ]
                work = engine_workers.submit(
                    _predict_decoded, chunk, buffer, decoded, engine, verifier
                )
            else:
                work = engine_workers.submit(predict_batch, chunk, reading, engine, verifier)
            window.append(work)
        while window:
            yield window.popleft().result()


def _workers(engine: Engine, decode_threads: int) -> int:
    """Threads that predict: one more than streams where they also decode, on several cores."""
    decodes = not decode_threads and engine.concurrency > 1
    return engine.concurrency + 1 if decodes else engine.concurrency


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _buffer(items: list[Item], reading: Reading[Item]) -> Tiles:
    return np.empty((len(items), reading.size, reading.size, 3), np.uint8)


def _pixels_left_to_engine(engine: Engine, waiting_tiles: int) -> int:
    """Up to how many pixels a tile is left to the engine to resize; 0 if it cannot resize."""
    if not resizes(engine):
        return 0
    return min(MAX_WAITING_PIXELS_PER_TILE, MAX_WAITING_PIXELS // waiting_tiles)


def predict_batch(
    items: list[Item], reading: Reading[Item], engine: Engine, reference: Engine | None = None
) -> list[Row[Item]]:
    """Decode and predict one batch on the calling thread."""
    buffer = _buffer(items, reading)
    pixel_limit = _pixels_left_to_engine(engine, len(items) * engine.concurrency)
    decoded = [_decode_into(buffer, i, item, reading, pixel_limit) for i, item in enumerate(items)]
    return _predict_batch(items, buffer, decoded, engine, reference)


def _predict_decoded(
    items: list[Item],
    buffer: Tiles,
    decoded: list[Task[_Decoded]],
    engine: Engine,
    reference: Engine | None,
) -> list[Row[Item]]:
    return _predict_batch(items, buffer, [d.result() for d in decoded], engine, reference)


def _decode_into(
    buffer: Tiles, index: int, item: Item, reading: Reading[Item], pixel_limit: int
) -> _Decoded:
    """Read the item into `buffer[index]`; a tile of up to `pixel_limit` pixels is not resized."""
    start = time.perf_counter()
    stamp = reading.stamp(item)
    error = size = waiting = None
    blank = ""
    with DECODING:
        try:
            size, blank, waiting = _read_into(buffer[index], item, reading, pixel_limit)
        except TileError as caught:  # which is not kept: its traceback holds the decoder's memory
            error = TileError(caught.status, caught.reason)
        except MemoryError:
            error = TileError(Status.TOO_LARGE, "not enough memory to decode it")
        except Exception as caught:  # an unexpected error of a decoder costs one row, not the run
            error = TileError(Status.CORRUPT, one_line(caught))
    return _Decoded(error, stamp, time.perf_counter() - start, size, blank, waiting)


def _read_into(
    out: Tile, item: Item, reading: Reading[Item], pixel_limit: int
) -> tuple[Size, str, Pixels | None]:
    """The size of the image, why it is blank, and its pixels where they are not resized here."""
    decoded, size = reading.read(item)
    if pixel_limit and _fits(pixels := np.asarray(decoded), reading.size, pixel_limit):
        return size, why_blank(pixels), pixels
    resize(decoded, reading.size, out)
    return size, why_blank(out), None


def _fits(pixels: Pixels, size: int, pixel_limit: int) -> bool:
    """True if the pixels need a resize, and one of at most `pixel_limit` pixels."""
    height, width, _ = pixels.shape
    # Between its two passes the resize holds height × size pixels.
    return (height, width) != (size, size) and height * max(width, size) <= pixel_limit


def _infer(engine: Engine, tiles: Tiles, to_resize: Mapping[int, Pixels]) -> Output:
    """Predict the tiles; those in `to_resize` (by index) are resized first."""
    if to_resize and resizes(engine):
        return engine.infer_pixels([to_resize.get(i, tile) for i, tile in enumerate(tiles)])
    for i, pixels in to_resize.items():
        resize(pixels, tiles.shape[1], tiles[i])
    return engine.infer(tiles)


def _predict_batch(
    items: list[Item],
    buffer: Tiles,
    decoded: list[_Decoded],
    engine: Engine,
    reference: Engine | None,
) -> list[Row[Item]]:
    decoded_indices = [i for i, one in enumerate(decoded) if one.error is None]
    output, reference_probabilities = NOTHING, None
    seconds = 0.0
    if decoded_indices:
        tiles = buffer if len(decoded_indices) == len(items) else buffer[decoded_indices]
        to_resize = {
            k: pixels
            for k, i in enumerate(decoded_indices)
            if (pixels := decoded[i].pixels) is not None
        }
        start = time.perf_counter()
        output = _infer(engine, tiles, to_resize)
        seconds = time.perf_counter() - start
        if reference:
            reference_probabilities = _infer(reference, tiles, to_resize).probabilities
    predicted = iter(output_rows(output))
    verified = iter(() if reference_probabilities is None else reference_probabilities)
    return [
        _failed_row(item, one, one.error)
        if one.error
        else _predicted_row(
            item,
            one,
            engine.name,
            next(predicted),
            next(verified, None),
            seconds,
        )
        for item, one in zip(items, decoded, strict=True)
    ]


def _failed_row(item: Item, one: _Decoded, error: TileError) -> Row[Item]:
    return Row(
        item,
        error.status,
        error.reason,
        stamp=one.stamp,
        size=one.size,
        decode_seconds=one.seconds,
    )


def _predicted_row(
    item: Item,
    one: _Decoded,
    engine: str,
    predicted: OutputRow,
    reference: Probabilities | None,
    seconds: float,
) -> Row[Item]:
    """The row of a decoded item."""
    probabilities, ood, stage = predicted
    finite = np.isfinite(probabilities).all() and (ood is None or np.isfinite(ood))
    whose = None if finite else engine
    if reference is not None and not np.isfinite(reference).all():
        whose = whose or "full precision"
    if whose:
        error = TileError(Status.FAILED, f"{whose} gave no finite probabilities")
        return replace(_failed_row(item, one, error), engine_seconds=seconds)
    return Row(
        item,
        Status.OK,
        probabilities=probabilities,
        reference=reference,
        ood=ood,
        stage=stage,
        blank=one.blank,
        stamp=one.stamp,
        size=one.size,
        decode_seconds=one.seconds,
        engine_seconds=seconds,
    )
