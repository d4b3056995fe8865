"""What an engine is: uint8 tiles in, probabilities out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from edgelung.kernels.resize import Pixels

Tiles = npt.NDArray[np.uint8]  # (N, H, W, 3) RGB
AS_IN_FILE = "as in the file"  # of floating point: each tensor in its own type
Probabilities = npt.NDArray[np.float32]  # (N, classes)


class EngineUnavailableError(Exception):
    """The runtime is missing here, or would run something other than what was asked for."""


class Engine(Protocol):
    """A graph loaded in one runtime on one device.

    `infer` may be called from `concurrency` threads at once; that many batches in flight keep the
    device busy (copy beside compute on a GPU, for example). `float_type`: what floating point is
    computed in, `AS_IN_FILE` or its name.
    """

    name: str
    device: str
    concurrency: int
    float_type: str

    def infer(self, tiles: Tiles) -> Probabilities:
        """Probabilities float32 (N, classes) of uint8 RGB tiles (N, H, W, 3); any N ≥ 1."""
        ...

    def close(self) -> None:
        """Give back what the runtime holds."""
        ...


class ResizingEngine(Engine, Protocol):
    """An engine that also takes decoded tiles, and resizes them on its device."""

    @property
    def resizes(self) -> bool:
        """Whether it can here, and gave the reader's pixels when it was tried."""
        ...

    def infer_pixels(self, tiles: Sequence[Pixels]) -> Probabilities:
        """As `infer`, of uint8 RGB tiles (H, W, 3) of any sizes."""
        ...


def resizes(engine: Engine) -> TypeGuard[ResizingEngine]:
    """Whether decoded tiles can be left to the engine to resize."""
    return hasattr(type(engine), "resizes") and bool(engine.resizes)  # type: ignore[attr-defined]


class EngineFactory(Protocol):
    """Loads an ONNX file; raises EngineUnavailableError.

    By default for the most tiles a second from `threads` CPU threads, with `latency` for the
    soonest answer to one batch at a time.
    """

    def __call__(self, graph: Path, threads: int, *, latency: bool = False) -> Engine: ...
