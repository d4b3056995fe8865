"""What the service answers: an image or tensors in, a row or tensors out. Knows no HTTP routes."""

import asyncio
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.prediction_rows import set_cell
from edgelung.artifacts.predictions import JSON_LINES
from edgelung.inference.pipeline import Row
from edgelung.inference.record import LabelRule, Record, make_record
from edgelung.inference.session import LoadedEngines
from edgelung.serving import TILES_SUFFIX
from edgelung.serving.batcher import Batcher, Job, Read, Request
from edgelung.serving.limits import Limits
from edgelung.serving.metrics import ServiceMetrics
from edgelung.serving.protocol import (
    Array,
    InferRequest,
    ModelMetadata,
    TensorMetadata,
    format_infer,
    parse_infer,
)
from edgelung.serving.refusal import Refusal
from edgelung.tiles.reader import Tile
from edgelung.tiles.status import NO_FAILURE, Status

VERSION = "1"
PLATFORM = "edgelung"
# The status of the answer to one image, for the rows that count as failures.
HTTP_STATUS = {Status.TOO_LARGE: 413, Status.FAILED: 500}
NOT_AN_IMAGE = 422


def is_model_name(name: str) -> bool:
    """True if a URL can hold the name as it is."""
    return re.fullmatch(r"\w([\w.-]{0,62}\w)?", name, re.ASCII) is not None


def http_status(status: str) -> int:
    """The HTTP status of one image's row: 200, or an error where a folder run counts a failure."""
    word = Status(status)
    return 200 if word in NO_FAILURE else HTTP_STATUS.get(word, NOT_AN_IMAGE)


class Service:
    """A bundle's model, ready to answer. `close` it at the end.

    Attributes:
        models: by name: NAME of encoded images (`images` → what is in their rows), NAME_tiles of
            tiles (`tiles` → `probs`, `ood`). A model repository for Triton has the same two.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: LoadedEngines,
        rule: LabelRule,
        name: str,
        limits: Limits,
        metrics: ServiceMetrics,
    ) -> None:
        self.bundle, self.name, self.limits, self.metrics = bundle, name, limits, metrics
        self._rule, self._size = rule, bundle.reader.size
        self._has_sets = rule.set_level is not None
        self._has_score = engines.chosen.variant.entry.known is not None
        self.batcher = Batcher(engines, bundle.reader, limits.tiles, metrics)
        metrics.describe(bundle, engines.chosen)
        metrics.watch_queue(lambda: self.batcher.waiting, lambda: self.batcher.tiles)
        self.models = {model.name: model for model in self._describe_models()}

    def close(self) -> None:
        """End the engine threads, once what waits has run."""
        self.batcher.close()

    async def classify(self, data: bytes, path: str) -> tuple[bytes, int]:
        """The row of one encoded image as a line of JSON, and the HTTP status that goes with it."""
        self.batcher.check_room()  # before it is decoded
        (row,) = await self._run([self.batcher.encoded(data)])
        record = self._record(row, path)
        return self._line(record), http_status(record.status)

    async def infer(
        self, model: ModelMetadata, body: bytes, header_length: str | None
    ) -> tuple[bytes, dict[str, str]]:
        """The answer to a request of the Open Inference Protocol: its body and headers.

        Raises:
            Refusal: for a request that cannot be answered.
        """
        request = parse_infer(
            body,
            header_length,
            model,
            json_bytes=self.limits.json_bytes,
            check_tiles=self.batcher.check_room,
        )
        if request.tiles is None:
            arrays = await self._infer_images(request)
        else:
            arrays = await self._infer_tiles(request.tiles)
        return format_infer(request, model, arrays)

    async def _infer_images(self, request: InferRequest) -> dict[str, Array]:
        """What is in the rows, (N, …), as `export.triton_model` gives it."""
        rows = await self._run([self.batcher.encoded(data) for data in request.images])
        classes = self.bundle.classes
        given = [self._record(row, "").prediction(classes) for row in rows]
        none = (math.nan,) * len(classes)
        return {
            "label": _strings(one.label or "" for one in given),
            "status": _strings(one.status for one in given),
            "error": _strings(one.error for one in given),
            "probs": np.array([one.probabilities or none for one in given], np.float32),
            "ood": _scores(one.ood for one in given),
            "stage": np.array([[one.stage or 0] for one in given], np.uint8),
            "set": _strings(map(set_cell, given)),
        }

    async def _infer_tiles(
        self, tiles: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    ) -> dict[str, Array]:
        rows = await self._run([_given(tile) for tile in tiles])
        records = [self._record(replace(row, size=None), "") for row in rows]
        for record in records:
            if record.probabilities is None:
                raise Refusal(http_status(record.status), record.error)
        arrays: dict[str, Array] = {
            "probs": np.array([record.probabilities for record in records], np.float32)
        }
        if self._has_score:
            arrays["ood"] = _scores(record.ood for record in records)
        return arrays

    async def _run(self, reads: Sequence[Read]) -> Sequence[Row[Job]]:
        """Predict tiles together with those of other requests."""
        request = Request(asyncio.get_running_loop(), reads)
        self.batcher.submit(request)
        try:
            return await request.future
        finally:
            request.end()

    def _record(self, row: Row[Job], path: str) -> Record:
        record = make_record(row, path, self._rule)
        self.metrics.rows([record])
        return record

    def _line(self, record: Record) -> bytes:
        """The row as `edgelung infer` writes it into JSON Lines."""
        line = io.BytesIO()
        JSON_LINES.writer(line, self.bundle.classes).write([record.prediction(self.bundle.classes)])
        return line.getvalue()

    def _describe_models(self) -> list[ModelMetadata]:
        size, probs = self._size, TensorMetadata("probs", "FP32", [-1, len(self.bundle.classes)])
        ood = TensorMetadata("ood", "FP32", [-1, 1])
        row = [
            *(TensorMetadata(name, "BYTES", [-1, 1]) for name in ("label", "status", "error")),
            *(probs, ood, TensorMetadata("stage", "UINT8", [-1, 1])),
            *([TensorMetadata("set", "BYTES", [-1, 1])] if self._has_sets else []),
        ]
        images = TensorMetadata("images", "BYTES", [-1, 1])
        tiles = TensorMetadata("tiles", "UINT8", [-1, size, size, 3])
        return [
            _model(self.name, images, row),
            _model(self.name + TILES_SUFFIX, tiles, [probs, ood] if self._has_score else [probs]),
        ]


def _model(name: str, given: TensorMetadata, outputs: list[TensorMetadata]) -> ModelMetadata:
    return ModelMetadata(
        name=name, versions=[VERSION], platform=PLATFORM, inputs=[given], outputs=outputs
    )


def _strings(texts: Iterable[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _scores(values: Iterable[float | None]) -> npt.NDArray[np.float32]:
    """FP32, (N, 1), NaN for none."""
    return np.array([[math.nan if value is None else value] for value in values], np.float32)


def _given(tile: Tile) -> Read:
    height, width, _ = tile.shape
    return lambda: (tile, (width, height))
