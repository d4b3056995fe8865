"""Files → decoded tiles → batches → probabilities → rows, overlapped and in order.

Decoding runs on threads (libjpeg-turbo, Pillow and the engines release the GIL) straight into the
buffer of a batch; whole batches wait for the engine in a bounded window, so memory does not grow
with the folder.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgelung.engines.base import Engine, Probabilities, Tiles
from edgelung.errors import one_line
from edgelung.tiles.find import FoundFile
from edgelung.tiles.reader import ReaderSpec, TileError, looks_like_image, read_tile


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one file.

    `status` is 'ok' or a fixed word; `probabilities` float32 [classes] and, where full precision
    ran beside it, `reference` of the same shape are set only when it is 'ok'.
    """

    file: FoundFile
    status: str
    error: str = ""
    probabilities: Probabilities | None = None
    reference: Probabilities | None = None


def predict(
    files: Iterable[FoundFile],
    reader: ReaderSpec,
    engine: Engine,
    *,
    batch_size: int,
    decoders: int,
    reference: Engine | None = None,
    reference_every: int = 1,
) -> Iterator[Row]:
    """One row per file, in the order of `files`.

    `reference` runs beside the engine on every `reference_every`-th batch.

    A file that cannot be a tile becomes a row with its status; its place in the batch is closed
    up, so that no prediction can land on another file's row.
    """
    window: deque[Future[list[Row]]] = deque()
    depth = engine.concurrency + 2  # one decoding, one decoded and waiting, the rest in the engine
    with (
        ThreadPoolExecutor(decoders, "decode") as decode_pool,
        ThreadPoolExecutor(engine.concurrency, "engine") as engine_pool,
    ):
        try:
            for number, chunk in enumerate(_chunks(files, batch_size)):
                if len(window) >= depth:
                    yield from window.popleft().result()
                buffer = np.empty((len(chunk), reader.size, reader.size, 3), np.uint8)
                decoded = [
                    decode_pool.submit(_decode_into, buffer, i, file, reader)
                    for i, file in enumerate(chunk)
                ]
                beside = reference if number % reference_every == 0 else None
                window.append(
                    engine_pool.submit(_predict_batch, chunk, buffer, decoded, engine, beside)
                )
            while window:
                yield from window.popleft().result()
        finally:  # an error or an interrupt: drop what has not begun
            decode_pool.shutdown(wait=False, cancel_futures=True)
            engine_pool.shutdown(wait=False, cancel_futures=True)


def _chunks(files: Iterable[FoundFile], size: int) -> Iterator[list[FoundFile]]:
    iterator = iter(files)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _decode_into(
    buffer: Tiles, index: int, file: FoundFile, reader: ReaderSpec
) -> TileError | None:
    try:
        if file.reason:
            raise TileError("unreadable", file.reason)
        if not file.is_image and not looks_like_image(file.location):
            raise TileError("skipped", "no image by its name or first bytes")
        buffer[index] = read_tile(file.location, reader)
    except TileError as error:
        return error
    except MemoryError:
        return TileError("too-large", "not enough memory to decode it")
    except Exception as error:  # whatever a decoder thinks of next: one file's row, not the run
        return TileError("corrupt", one_line(error))
    return None


def _predict_batch(
    files: list[FoundFile],
    buffer: Tiles,
    decoded: list[Future[TileError | None]],
    engine: Engine,
    reference: Engine | None,
) -> list[Row]:
    errors = [future.result() for future in decoded]
    good = [i for i, error in enumerate(errors) if error is None]
    rows = [
        Row(file, error.status, error.reason) if error else Row(file, "ok")
        for file, error in zip(files, errors, strict=True)
    ]
    if good:
        tiles = buffer if len(good) == len(files) else buffer[good]
        probabilities = engine.infer(tiles)
        compared = reference.infer(tiles) if reference else None
        for k, i in enumerate(good):
            if not np.isfinite(probabilities[k]).all():
                rows[i] = Row(files[i], "failed", f"{engine.name} gave no finite probabilities")
                continue
            rows[i] = Row(
                files[i], "ok", "", probabilities[k], compared[k] if compared is not None else None
            )
    return rows
