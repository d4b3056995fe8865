"""A small distilled DeiT of random weights, drawn in numpy, and pixels for it."""

from collections.abc import Callable

import numpy as np
import pytest

from edgelung.artifacts.manifest import Calibration
from edgelung.export.student import Student


def random_student(size: int = 64, width: int = 96, depth: int = 3, heads: int = 3) -> Student:
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width),
        "dist_token": (1, 1, width),
        "pos_embed": (1, 2 + (size // 16) ** 2, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (3, width),
        "head.bias": (3,),
        "head_dist.weight": (3, width),
        "head_dist.bias": (3,),
    }
    for i in range(depth):
        linears = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (out, into) in linears.items():
            shapes[f"blocks.{i}.{name}.weight"] = (out * width, into * width)
            shapes[f"blocks.{i}.{name}.bias"] = (out * width,)
        for norm in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{norm}.weight"] = shapes[f"blocks.{i}.{norm}.bias"] = (width,)
    weights = {
        name: (
            (1 + 0.2 * rng.normal(size=shape))
            if "norm" in name and name.endswith("weight")
            else rng.normal(size=shape) * (0.08 if len(shape) > 1 else 0.1)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Student("test", ("a", "b", "c"), size, 16, heads, mean, std, weights)


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Student]:
    """Make a student of other sizes: see `random_student`."""
    return random_student


@pytest.fixture(scope="session")
def student() -> Student:
    return random_student()


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """uint8 (20, 64, 64, 3)."""
    return np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)


@pytest.fixture(scope="session")
def calibration_record() -> Calibration:
    """A calibration record, for plans that are made by hand."""
    return Calibration(
        asked="min-max",
        method="min-max",
        tiles=20,
        groups=1,
        scores={},
        scored_tiles=20,
        bias_correction=False,
        migration_strength={},
    )
