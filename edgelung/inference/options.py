"""The options of a run: how it predicts."""

from dataclasses import dataclass

from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName
from edgelung.engines.tensorrt.prebuilt import PrebuiltFolder
from edgelung.inference.shards import Shard


@dataclass(frozen=True)
class Options:
    """How to predict.

    Attributes:
        engine: None takes the fastest on a GPU, else the first CPU engine that works.
        precision: None takes the preferred variant among those that passed their gate.
        batch_size: tiles per batch; None: 16, on a GPU 32. 1 is the latency mode.
        threads: CPU threads; None: all cores that this process may use.
        prebuilt: opened folder of TensorRT-RTX engines, which are programs.
        verify: full precision predicts the same tiles, to compare.
        verify_every: ... on every N-th batch only.
        min_confidence: 0…1; a less confident prediction is left to people. None: none is.
        strict_size: tiles of sizes far from the training tiles get no label.
        keep_unknown: tiles that the model was not made for, or without tissue, keep their label.
        coverage: rows get the set of classes that cannot be excluded, right for this share of
            tiles; one of the bundle's. None: no sets.
        shard: predict only this part of the files.
        gpu: number of the GPU that predicts (see `select_gpu`). None: the first, or the CPU.
    """

    engine: EngineName | None = None
    precision: Precision | None = None
    batch_size: int | None = None
    threads: int | None = None
    prebuilt: PrebuiltFolder | None = None
    verify: bool = False
    verify_every: int = 1
    min_confidence: float | None = None
    strict_size: bool = False
    keep_unknown: bool = False
    coverage: float | None = None
    shard: Shard | None = None
    gpu: int | None = None


DEFAULTS = Options()
