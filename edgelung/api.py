"""The Python API: what `import edgelung` offers, loaded when it is first used.

    with edgelung.load("bundle") as classifier:
        for prediction in classifier.classify(["a.jpg", array, image]):
            print(prediction.label, prediction.confidence)

    edgelung.infer_folder("tiles/", out="rows.parquet")
    edgelung.open_run("runs/first").predictions

The commands call the same functions of the rooms below. Nothing is printed; progress, notes and
warnings go to the logger `edgelung`.
"""

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.artifacts.opened_run import Run, to_records
from edgelung.artifacts.predictions import Prediction, Predictions, read_predictions
from edgelung.artifacts.summary import Summary
from edgelung.artifacts.trust import choose_trust
from edgelung.core.choice import E, parse_choice
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.core.workers import Task, Workers
from edgelung.engines.base import NOTHING, Probabilities
from edgelung.engines.choose import Chosen, open_engine
from edgelung.engines.names import EngineName
from edgelung.evaluation.concerns import bundle_concerns
from edgelung.inference import session
from edgelung.inference.destination import Destination
from edgelung.inference.pipeline import Row, default_batch_size
from edgelung.inference.record import LabelRule, make_record
from edgelung.inference.source import Source
from edgelung.tiles.blank import why_blank
from edgelung.tiles.images import check_array, tile_from_array, tile_from_image, tile_or_error
from edgelung.tiles.reader import Tile, TileError, read_tile
from edgelung.tiles.status import Status

__all__ = [
    "Classifier",
    "EdgelungError",
    "ImageInput",
    "Prediction",
    "Predictions",
    "Run",
    "Summary",
    "infer_folder",
    "load",
    "open_run",
    "read_predictions",
    "to_records",
]

PathInput = str | os.PathLike[str]
ImageInput = PathInput | npt.NDArray[np.uint8] | Image.Image

logger = logging.getLogger(__name__)


def load(
    bundle: PathInput | None = None,
    *,
    engine: EngineName | str | None = None,
    precision: Precision | str | None = None,
    threads: int | None = None,
    keep_unknown: bool = False,
    coverage: float | None = None,
    trust: PathInput | None = None,
    allow_unsigned: bool = False,
) -> "Classifier":
    """Open a bundle and load its model, ready to classify tiles.

    Every file of the bundle is checked against its hash, and the engine has to reproduce the
    bundle's golden tiles, before anything is classified. Research use only.

        with edgelung.load("bundles/first") as classifier:
            for prediction in classifier.classify(["a.jpg", "b.png"]):
                print(prediction.path, prediction.label, prediction.confidence)

    Args:
        bundle: folder that `edgelung export` wrote. None: the starter, a model for trying it out.
        engine: 'openvino', 'onnxruntime', 'tensorrt', 'tensorrt-rtx', 'onnxruntime-cuda' or
            'onnxruntime-tensorrt'. None: the fastest on a GPU, else the first that works on the
            CPU. A named engine is what runs, or an error says why it cannot.
        precision: the variant of the bundle: 'fp32', 'fp16', 'int8', 'int8-fp16' or 'fp8'. None:
            the preferred one for the engine of those that passed their gate.
        threads: CPU threads. None: all cores that this process may use.
        keep_unknown: label tiles unlike the training tiles, and tiles without tissue, like others.
            False: they get the status 'unknown' or 'blank' and no label.
        coverage: predictions get the set of the classes that cannot be excluded, such as 0.99.
        trust: a public key (PEM) or a folder of them, one of which has to have signed the bundle.
            None: the keys of edgelung.toml; without any, every bundle is opened.
        allow_unsigned: open it even if it is unsigned or signed by another key.

    Returns:
        A classifier. Close it, or use it in a `with` statement, to release the runtime.

    Raises:
        EdgelungError: if the bundle is damaged or not trusted, or cannot run as asked.
    """
    engine_name = _member(EngineName, "engine", engine)
    precision_name = _member(Precision, "precision", precision)
    _check_count("threads", threads)
    folder = Path(bundle) if bundle is not None else starter_bundle()
    opened = open_bundle(folder, choose_trust(trust, allow_unsigned))
    options = session.Options(keep_unknown=keep_unknown, coverage=coverage)
    session.check_coverage(opened, coverage)
    chosen = open_engine(opened, engine_name, precision_name, threads)
    return Classifier(opened, chosen, session.label_rule(opened, chosen.variant, options))


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
                - an array, uint8 [H, W, 3]: RGB in 0…255, H rows of W pixels;
                - a PIL image of any mode that files may have; alpha goes over white.
            batch_size: images per batch. None: 16, on a GPU 32.

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
            - `path`: the path as given; '' for arrays and PIL images.
            - `error`: the reason for the status, for people; '' for 'ok'.

        Raises:
            EdgelungError: for an array of another shape or type, and after `close`.
            TypeError: for anything that is not an image, and for one image instead of several.

        A large JPEG's path and its decoded array differ a little (probabilities by up to 0.02): the
        reader decodes the file at the smallest scale that covers the tile (libjpeg's M/8). Use
        paths where results must equal those of `edgelung infer`.
        """
        if isinstance(images, str | os.PathLike | Image.Image):
            raise TypeError(f"found one {type(images).__name__}; expected several images: [image]")
        if isinstance(images, np.ndarray) and images.ndim < 4:
            raise TypeError(
                f"found one array of {images.ndim} dimensions; expected several images: [array], "
                "or an array uint8 [N, H, W, 3]"
            )
        _check_count("batch_size", batch_size)
        return self._classify(images, batch_size or default_batch_size(self._engine))

    def classify_all(
        self, images: Iterable[ImageInput], *, batch_size: int | None = None
    ) -> Predictions:
        """As `classify`, but all predictions at once, in memory.

        For pandas: `pandas.DataFrame(classifier.classify_all(images).to_records())`, with the
        columns path, status, label, confidence, p_<class>…, ood, set and error.
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

    def _take(self, image: ImageInput) -> PathInput | Tile | TileError:
        """Take one input in the caller's thread: a program may reuse the buffer for its next.

        Raises EdgelungError or TypeError if it can be no image.
        """
        spec = self.bundle.reader
        if isinstance(image, np.ndarray):
            check_array(image)
            return tile_or_error(lambda: tile_from_array(image, spec))
        if isinstance(image, Image.Image):
            return tile_or_error(lambda: tile_from_image(image, spec))
        if isinstance(image, str | os.PathLike):
            return image
        raise TypeError(
            f"found {type(image).__name__}; expected a path, an array uint8 [H, W, 3] or a PIL "
            "image"
        )

    def _classify_batch(self, items: Sequence[PathInput | Tile | TileError]) -> list[Prediction]:
        """Decode the paths of a batch and predict it. Items are paths, tiles and failures."""
        spec = self.bundle.reader
        decoded = [
            item
            if isinstance(item, np.ndarray | TileError)
            else tile_or_error(partial(read_tile, item, spec))
            for item in items
        ]
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
        scores = [None] * len(tiles) if output.ood is None else output.ood.tolist()
        predicted = zip(output.probabilities, scores, strict=True)
        return [
            Prediction(_path_of(item), tile.status, error=tile.reason)
            if isinstance(tile, TileError)
            else self._prediction(_path_of(item), tile, *next(predicted))
            for item, tile in zip(items, decoded, strict=True)
        ]

    def _prediction(
        self, path: str, tile: Tile, probabilities: Probabilities, ood: float | None
    ) -> Prediction:
        if not (np.isfinite(probabilities).all() and (ood is None or np.isfinite(ood))):
            return Prediction(
                path, Status.FAILED, error=f"{self.engine} gave no finite probabilities"
            )
        row = Row(path, Status.OK, probabilities=probabilities, ood=ood, blank=why_blank(tile))
        return make_record(row, path, self._rule).prediction(self.classes)


def infer_folder(
    folder: PathInput | Sequence[PathInput],
    out: PathInput,
    *,
    model: PathInput | None = None,
    files: PathInput | None = None,
    subset: str | None = None,
    engine: EngineName | str | None = None,
    precision: Precision | str | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    min_confidence: float | None = None,
    strict_size: bool = False,
    keep_unknown: bool = False,
    coverage: float | None = None,
    follow_links: bool = False,
    verify: bool = False,
    resume: bool | None = None,
    trust: PathInput | None = None,
    allow_unsigned: bool = False,
    on_rows: Callable[[int], None] = lambda count: None,
) -> Summary:
    """Predict every tile of a folder, one row per file, as `edgelung infer` does.

    Writes the rows and their summary (`<out>.summary.json`); a stopped run leaves a journal and can
    be continued. Read the rows with `edgelung.read_predictions`. Research use only.

    Args:
        folder: folder of tiles, searched with all folders below; or several.
        out: file for the rows: .csv, .jsonl or .parquet.
        model: bundle that `edgelung export` wrote. None: the starter.
        files: predict only the files of this list: a path per line, or a CSV with a column path.
        subset: with `files`: only rows of this subset, such as 'test'.
        engine, precision, threads: as for `edgelung.load`.
        batch_size: tiles per batch. None: 16, on a GPU 32.
        min_confidence: 0…1; less confident rows get the status 'review' and no label.
        strict_size: tiles of sizes far from the training tiles get 'other-size' and no label.
        keep_unknown, coverage: as for `edgelung.load`.
        follow_links: follow links that lead out of the folder; else each is a row 'skipped'.
        verify: run full precision on every tile as well, and compare.
        resume: True continues a stopped run, False discards its rows, None refuses to do either.
        trust, allow_unsigned: as for `edgelung.load`.
        on_rows: called with the number of rows done since the last call.

    Returns:
        The summary: counts, speed, what ran, metrics if the folders are named after classes, and
        `exit_code`: 3 if some files failed.

    Raises EdgelungError if the folder, the list, the bundle or the output cannot be used.
    """
    _check_count("batch_size", batch_size)
    _check_count("threads", threads)
    folders = map(Path, [folder] if isinstance(folder, str | os.PathLike) else folder)
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise EdgelungError(f"min_confidence is {min_confidence}; expected 0…1")
    options = session.Options(
        engine=_member(EngineName, "engine", engine),
        precision=_member(Precision, "precision", precision),
        batch_size=batch_size,
        threads=threads,
        verify=verify,
        min_confidence=min_confidence,
        strict_size=strict_size,
        keep_unknown=keep_unknown,
        coverage=coverage,
    )
    return session.infer_folder(
        Source(tuple(folders), None if files is None else Path(files), subset, follow_links),
        open_bundle(
            Path(model) if model is not None else starter_bundle(),
            choose_trust(trust, allow_unsigned),
        ),
        Destination.parse(Path(out)),
        options,
        resume=resume,
        on_rows=on_rows,
    )


def open_run(path: PathInput) -> Run:
    """Open a run folder that `edgelung train` wrote, to read what is in it.

        run = edgelung.open_run("runs/first")
        run.metrics.student.test.balanced_accuracy
        pandas.DataFrame(run.predictions.to_records())
        pandas.DataFrame(edgelung.to_records(run.history))

    Args:
        path: the run folder; the run may still be going on.

    Returns:
        An object with `config`, `split`, `history`, `metrics` and `predictions`, each read when it
        is first used.

    Raises:
        EdgelungError: if the folder is not a run; later, if a file in it is missing or damaged.
    """
    return Run(Path(path))


def _member(kind: type[E], what: str, value: str | None) -> E | None:
    """Return the member of an enum by its value; None for None and 'auto'."""
    try:
        return None if value is None else parse_choice(kind, value)
    except ValueError as error:
        raise EdgelungError(f"{what} {error}") from error


def _check_count(what: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise EdgelungError(f"{what} is {value}; expected 1 or more")


def _path_of(item: PathInput | Tile | TileError) -> str:
    return os.fspath(item) if isinstance(item, str | os.PathLike) else ""
