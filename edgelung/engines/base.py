"""The protocol of an engine: uint8 tiles in, an `Output` out. Every runtime implements it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from edgelung.core.files import sha256_bytes
from edgelung.kernels.resize import Pixels

Tiles = npt.NDArray[np.uint8]  # (N, H, W, 3) RGB
Probabilities = npt.NDArray[np.float32]  # (N, classes)
Scores = npt.NDArray[np.float32]  # (N,)
Stages = npt.NDArray[np.uint8]  # (N,), 1 or 2
Floats = npt.NDArray[np.float32]  # any shape, N first
AS_IN_FILE = "as in the file"  # a `float_type`: each tensor in the type that the graph gives it


class EngineUnavailableError(Exception):
    """The runtime is missing here, or would run something other than what was asked for."""


class Output(NamedTuple):
    """What a model says about N tiles.

    Attributes:
        probabilities: float32 (N, classes).
        ood: float32 (N,), how far each tile is from the training tiles; None if the graph does not
            compute it.
        stage: uint8 (N,), 1 for a tile that left at the early exit, 2 for the others; None if the
            model has no early exit.
    """

    probabilities: Probabilities
    ood: Scores | None = None
    stage: Stages | None = None


def output_of(arrays: Sequence[Floats]) -> Output:
    """The output from all outputs of a graph, in the order of the file."""
    return Output(arrays[0], arrays[1] if len(arrays) > 1 else None)


class OutputRow(NamedTuple):
    """What a model says about one tile: probabilities (classes,), score and stage."""

    probabilities: Probabilities
    ood: float | None
    stage: int | None


def output_rows(output: Output) -> Iterator[OutputRow]:
    """The output tile by tile."""
    none = [None] * len(output.probabilities)
    scores = none if output.ood is None else output.ood.tolist()
    stages = none if output.stage is None else output.stage.tolist()
    return map(OutputRow, output.probabilities, scores, stages)


NOTHING = Output(np.empty((0, 0), np.float32))  # of no tile


def join_outputs(parts: Sequence[Output]) -> Output:
    """The outputs of one graph for parts of a batch, as one."""
    if len(parts) == 1:
        return parts[0]
    scores = [part.ood for part in parts if part.ood is not None]
    stages = [part.stage for part in parts if part.stage is not None]
    return Output(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(scores) if scores else None,
        np.concatenate(stages) if stages else None,
    )


class Graph(Protocol):
    """An ONNX file. Engines load the bytes that `read` returns, never a path.

    Attributes:
        name: for messages.
        sha256: SHA-256 in hexadecimal of these bytes.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    def read(self) -> bytes:
        """Return the file's bytes. Raises EdgelungError if they no longer have this hash."""
        ...


@dataclass(frozen=True)
class GraphBytes:
    """A graph that is in memory."""

    data: bytes = field(repr=False)
    name: str = "graph.onnx"

    @cached_property
    def sha256(self) -> str:
        """See `Graph.sha256`."""
        return sha256_bytes(self.data)

    def read(self) -> bytes:
        """See `Graph.read`."""
        return self.data


class Engine(Protocol):
    """A graph loaded in one runtime on one device.

    Attributes:
        name: the engine's name in `--engine`.
        device: the device as the runtime calls it.
        concurrency: how many threads may call `infer` at once. That many batches in flight keep
            the device busy: on a GPU, for example, one is copied while another is computed.
        float_type: the type of floating-point arithmetic, such as 'fp32', or `AS_IN_FILE`.
    """

    name: str
    device: str
    concurrency: int
    float_type: str

    def infer(self, tiles: Tiles) -> Output:
        """Predict tiles uint8 RGB (N, H, W, 3), N ≥ 1."""
        ...

    def close(self) -> None:
        """Release the runtime's resources."""
        ...


class ResizingEngine(Engine, Protocol):
    """An engine that also takes decoded tiles of any size, and resizes them on its device."""

    @property
    def resizes(self) -> bool:
        """True if this device can resize and its result matched the CPU reader in a self-test."""
        ...

    def infer_pixels(self, tiles: Sequence[Pixels]) -> Output:
        """Predict tiles uint8 RGB (H, W, 3) of any sizes; otherwise as `infer`."""
        ...


def resizes(engine: Engine) -> TypeGuard[ResizingEngine]:
    """Return True if the engine can resize decoded tiles, so that the CPU need not."""
    return bool(getattr(engine, "resizes", False))


class StageEngine(Engine, Protocol):
    """An engine that also runs a part of a model, whatever its input and outputs are."""

    def run(self, batch: Tiles | Floats) -> list[Floats]:
        """All outputs, in the order of the file, of the graph's one input (N, …)."""
        ...


class EngineFactory(Protocol):
    """Loads an ONNX file into an engine.

    By default the engine is set up for throughput (tiles per second) with `threads` CPU threads;
    with `latency`, for the shortest time per batch, one batch at a time.

    Raises:
        EngineUnavailableError: if the runtime is missing or cannot run here.
    """

    def __call__(self, graph: Graph, threads: int, *, latency: bool = False) -> Engine: ...
