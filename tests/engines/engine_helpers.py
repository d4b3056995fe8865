"""What several test modules of the engines share."""

from dataclasses import replace

import numpy as np
from msgspec import structs

from edgelung.artifacts.bundle import Bundle
from edgelung.engines.onnxruntime import OnnxRuntimeEngine


def noise(count: int, size: int = 64, seed: int = 1) -> np.ndarray:
    """Random tiles uint8 (count, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def all_passed(bundle: Bundle) -> Bundle:
    """The bundle as if its gate had had enough tiles to let every variant pass."""
    variants = {}
    for name, variant in bundle.variants.items():
        gate = structs.replace(variant.gate, verdict="pass")
        variants[name] = replace(variant, entry=structs.replace(variant.entry, gate=gate))
    return replace(bundle, variants=variants)


def expected(bundle: Bundle, tiles: np.ndarray, precision: str = "fp32") -> np.ndarray:
    """What ONNX Runtime predicts for the tiles: float32 (N, classes)."""
    return OnnxRuntimeEngine(bundle.variants[precision].graph, 1).infer(tiles).probabilities


def expected_scores(bundle: Bundle, tiles: np.ndarray) -> np.ndarray:
    """The scores that ONNX Runtime computes in full precision: float32 (N,)."""
    scores = OnnxRuntimeEngine(bundle.variants["fp32"].graph, 1).infer(tiles).ood
    assert scores is not None
    return scores
