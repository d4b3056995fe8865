"""A bundle's model in an engine, for Python programs: `edgelung.load` makes it."""

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import partial
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.predictions import Prediction, Predictions
from edgelung.core.errors import EdgelungError
from edgelung.core.workers import Task, Workers
from edgelung.engines.base import NOTHING, OutputRow, output_rows
from edgelung.engines.choose import Chosen
from edgelung.engines.names import EngineName
from edgelung.evaluation.concerns import bundle_concerns
from edgelung.inference.pipeline import Row, default_batch_size
from edgelung.inference.record import LabelRule, make_record
from edgelung.tiles.blank import why_blank
from edgelung.tiles.images import check_array, tile_from_array, tile_from_image, tile_or_error
from edgelung.tiles.reader import Tile, TileError, decode_file, read_tile
from edgelung.tiles.status import Status

PathInput = str | os.PathLike[str]
ImageInput = PathInput | bytes | npt.NDArray[np.uint8] | Image.Image

logger = logging.getLogger(__name__)


def check_count(what: str, value: int | None) -> None:
    """Raise EdgelungError for a number below 1."""
    if value is not None and value < 1:
        raise EdgelungError(f"{what} is {value}; expected 1 or more")


class Classifier:
    """A bundle's model in an engine. Made by `edgelung.load`.

    Attributes:
        bundle: the opened bundle, with its classes, variants and evidence.
        classes: names of the classes, in the order of `Prediction.probabilities`.
        engine: name of the engine that runs.
        precision: the variant that runs.
        reason: why this engine and variant were chosen.
        concerns: why the model, or the figures about it, should not be trusted; logged as warnings.
    """

    def __init__(self, bundle: Bundle, chosen: Chosen, rule: LabelRule) -> None:
        self.bundle = bundle
        self.classes = bundle.classes
        self.engine = EngineName(chosen.engine.name)
        self.precision = chosen.variant.precision
        self.reason = chosen.reason
        self.concerns = tuple(bundle_concerns(bundle.manifest))
        for concern in self.concerns:
            logger.warning("%s", concern.text)
        self._engine, self._rule = chosen.engine, rule
        self._is_closed = False
        self._running: set[threading.Lock] = set()  # one per batch in the engine, held by it
        self._lock = threading.Lock()

    def classify(
        self, images: Iterable[ImageInput], *, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """Classify images; yields one prediction per image, in their order.

        Images are taken from the iterable as they are needed, a few batches ahead, so it may be
        longer than memory. They are resized to the model's tile size (224 × 224 for most bundles)
        as a whole: an image should be one tile, not a slide.

        Args:
            images: each one is

                - a path (str or os.PathLike) of a JPEG, PNG, TIFF, BMP or WebP file;
                - bytes: the content of such a file;
                - an array, uint8 [H, W, 3]: RGB in 0…255, H rows of W pixels;
                - a PIL image of any mode that files may have; alpha goes over white.
            batch_size: images per batch. None: 16, or fewer if that spreads a list over more cores;
                on a GPU 32.

        Yields:
            Predictions with

            - `status`: 'ok', or the word for why there is no label, as in the rows of `edgelung
              infer`: 'unknown' and 'blank' with a prediction; 'corrupt', 'truncated',
              'unsupported', 'unreadable', 'too-large' … without one. A broken file is such a
              result and never an exception.
            - `label`: the most probable class; None unless the status is 'ok'.
            - `confidence`: the largest probability, 0…1; None without a prediction.
            - `probabilities`: one float per class, in the order of `classes`, with sum 1; None
              without a prediction.
            - `ood`: how far the tile is from the training tiles, about 1 for tiles like those;
              None without a prediction, and for bundles that cannot tell.
            - `prediction_set`: the classes that cannot be excluded; None without `coverage`.
            - `stage`: 1 if the tile left the model at its early exit, 2 if it went through all of
              it; None for models without one.
            - `path`: the path as given; '' for bytes, arrays and PIL images.
            - `error`: the reason for the status, for people; '' for 'ok'.

        Raises:
            EdgelungError: for an array of another shape or type, and after `close`.
            TypeError: for anything that is not an image, and for one image instead of several.

        A large JPEG's path and its decoded array differ a little (probabilities by up to 0.02): the
        reader decodes the file at the smallest scale that covers the tile (libjpeg's M/8). Use
        paths or bytes where results must equal those of `edgelung infer`.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise TypeError(f"found one {type(images).__name__}; expected several images: [image]")
        if isinstance(images, np.ndarray) and images.ndim < 4:
            raise TypeError(
                f"found one array of {images.ndim} dimensions; expected several images: [array], "
                "or an array uint8 [N, H, W, 3]"
            )
        check_count("batch_size", batch_size)
        return self._classify(images, batch_size or self._batch_size(images))

    def classify_all(
        self, images: Iterable[ImageInput], *, batch_size: int | None = None
    ) -> Predictions:
        """As `classify`, but all predictions at once, in memory.

        For pandas: `pandas.DataFrame(classifier.classify_all(images).to_records())`, with the
        columns path, status, label, confidence, p_<class>…, ood, set, stage and error.
        """
        return Predictions(self.classes, tuple(self.classify(images, batch_size=batch_size)))

    def close(self) -> None:
        """Wait for running batches, then release the runtime. Calling it again does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            running = tuple(self._running)
        for batch in running:
            batch.acquire()
        self._engine.close()

    def __enter__(self) -> "Classifier":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Classifier({self.bundle.manifest.name!r}, {self.engine} {self.precision})"

    def _batch_size(self, images: Iterable[ImageInput]) -> int:
        """Images per batch: no core shall be idle while another has several tiles of a list."""
        largest = default_batch_size(self._engine)
        if self._engine.device != "CPU" or not isinstance(images, Sized):
            return largest
        return max(1, min(largest, -(-len(images) // self._engine.concurrency)))

    def _classify(self, images: Iterable[ImageInput], batch_size: int) -> Iterator[Prediction]:
        """Each engine thread decodes a batch and predicts it; a few batches are ahead."""
        waiting: deque[Task[list[Prediction]]] = deque()
        items = map(self._take, images)
        with Workers(self._engine.concurrency) as workers:
            while batch := list(itertools.islice(items, batch_size)):
                if len(waiting) > self._engine.concurrency:
                    yield from waiting.popleft().result()
                waiting.append(workers.submit(self._classify_batch, batch))
            while waiting:
                yield from waiting.popleft().result()

    def _take(self, image: ImageInput) -> PathInput | bytes | Tile | TileError:
        """Take one input in the caller's thread: a program may reuse the buffer for its next.

        Raises EdgelungError or TypeError if it can be no image.
        """
        spec = self.bundle.reader
        if isinstance(image, np.ndarray):
            check_array(image)
            return tile_or_error(lambda: tile_from_array(image, spec))
        if isinstance(image, Image.Image):
            return tile_or_error(lambda: tile_from_image(image, spec))
        if isinstance(image, str | bytes | os.PathLike):
            return image
        raise TypeError(
            f"found {type(image).__name__}; expected a path, bytes of a file, an array uint8 "
            "[H, W, 3] or a PIL image"
        )

    def _classify_batch(
        self, items: Sequence[PathInput | bytes | Tile | TileError]
    ) -> list[Prediction]:
        """Decode the files of a batch and predict it."""
        decoded = [self._decode(item) for item in items]
        tiles = [tile for tile in decoded if not isinstance(tile, TileError)]
        running = threading.Lock()
        running.acquire()
        with self._lock:  # `close` waits for the batches that run
            if self._is_closed:
                raise EdgelungError("the classifier is closed; load it again")
            self._running.add(running)
        try:
            output = self._engine.infer(np.stack(tiles)) if tiles else NOTHING
        finally:
            self._running.discard(running)
            running.release()
        predicted = output_rows(output)
        return [
            Prediction(_path_of(item), tile.status, error=tile.reason)
            if isinstance(tile, TileError)
            else self._prediction(_path_of(item), tile, next(predicted))
            for item, tile in zip(items, decoded, strict=True)
        ]

    def _decode(self, item: PathInput | bytes | Tile | TileError) -> Tile | TileError:
        spec = self.bundle.reader
        if isinstance(item, np.ndarray | TileError):
            return item
        if isinstance(item, bytes):
            return tile_or_error(partial(decode_file, item, spec))
        return tile_or_error(partial(read_tile, item, spec))

    def _prediction(self, path: str, tile: Tile, predicted: OutputRow) -> Prediction:
        probabilities, ood, stage = predicted
        if not (np.isfinite(probabilities).all() and (ood is None or np.isfinite(ood))):
            return Prediction(
                path, Status.FAILED, error=f"{self.engine} gave no finite probabilities"
            )
        row = Row(
            path,
            Status.OK,
            probabilities=probabilities,
            ood=ood,
            stage=stage,
            blank=why_blank(tile),
        )
        return make_record(row, path, self._rule).prediction(self.classes)


def _path_of(item: PathInput | bytes | Tile | TileError) -> str:
    return os.fspath(item) if isinstance(item, str | os.PathLike) else ""
