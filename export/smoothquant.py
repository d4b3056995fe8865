"""Scale migration: move the range of activations that are hard to round into weights.

SmoothQuant's equivalence (Xiao et al. 2023): dividing a channel by s where it is computed, and
multiplying the weights that read it by s, changes nothing in full precision. The channel is
computed by a LayerNorm (gain and bias), or by the value rows of the attention, since attention
mixes tokens and not channels. With s = a^α / w^(1−α), where a is the largest activation and w the
largest weight of the channel, a channel that was scaled up by any factor gets that factor back,
whatever α is.

Queries and keys of a channel are multiplied only with each other, so they get the same range:
dividing one and multiplying the other changes nothing, and the step that serves both is then as
small as possible.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgelung.export.eight_bit import quantize_weight
from edgelung.export.graph import SCORES
from edgelung.export.stats import CalibrationStats
from edgelung.export.student import Student

STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # values of α; no migration is tried as well

Array = npt.NDArray[np.float32]
Migration = dict[str, Array]  # name of a site → s (D,)


@dataclass(frozen=True)
class MigrationSite:
    """A place where channels are computed, and the linear that reads them.

    Attributes:
        linear: the quantizable linear whose input the channels are.
        weight: the timm name of its weight.
    """

    linear: str
    weight: str


def migration_sites(student: Student) -> dict[str, MigrationSite]:
    """All sites by name: a LayerNorm, or 'blocks.i.attn.v' for the values of an attention.

    In the last block two linears, `q` and `kv`, read one LayerNorm and share a weight; `kv` reads
    all tokens, so its input stands for both.
    """
    sites = {}
    for i in range(student.depth):
        block = f"blocks.{i}"
        first = f"{block}.attn.kv" if i == student.depth - 1 else f"{block}.attn.qkv"
        fc1, proj = f"{block}.mlp.fc1", f"{block}.attn.proj"
        sites[f"{block}.norm1"] = MigrationSite(first, f"{block}.attn.qkv.weight")
        sites[f"{block}.norm2"] = MigrationSite(fc1, f"{fc1}.weight")
        sites[f"{block}.attn.v"] = MigrationSite(proj, f"{proj}.weight")
    return sites


def choose_migration(
    student: Student, stats: CalibrationStats
) -> tuple[Migration, dict[str, float]]:
    """For each site choose the s with the least measured error in the output of its linear.

    The error is measured on sampled tokens with input and weight in INT8.

    Returns:
        The s of each site that migrates, and its strength α; a site that is better left alone is in
        neither. The migration also holds the s of the scores, which divides queries and multiplies
        keys.
    """
    migration: Migration = {}
    strengths: dict[str, float] = {}
    for name, site in migration_sites(student).items():
        entry, weight = stats.inputs[site.linear], student.weights[site.weight]
        tokens = entry.tokens  # (n, D)
        least = _output_error(tokens, entry.largest, weight)
        for strength in STRENGTHS:
            s = _scale(entry.largest, np.abs(weight).max(axis=0), strength)
            error = _output_error(tokens / s, entry.largest / s, weight * s)
            if error < least:
                least, migration[name], strengths[name] = error, s, strength
    for name, entry in stats.inputs.items():
        if name.endswith(SCORES):
            queries, keys = np.split(np.maximum(entry.largest, 1e-5), 2)  # (D,)
            migration[name] = np.sqrt(queries / keys)
    return migration, strengths


def migrate(student: Student, migration: Migration) -> Student:
    """Scale the channels of a student; it computes the same function in full precision."""
    weights = dict(student.weights)
    sites = migration_sites(student)
    for name, s in migration.items():
        parent, _, source = name.rpartition(".")
        if source in ("v", SCORES):  # rows of queries, keys and values
            ones = np.ones_like(s)
            rows = np.concatenate([ones, ones, 1 / s] if source == "v" else [1 / s, s, ones])
            weights[f"{parent}.qkv.weight"] = weights[f"{parent}.qkv.weight"] * rows[:, None]
            weights[f"{parent}.qkv.bias"] = weights[f"{parent}.qkv.bias"] * rows
        else:
            for part in ("weight", "bias"):
                weights[f"{name}.{part}"] = weights[f"{name}.{part}"] / s
        if source != SCORES:
            weights[sites[name].weight] = weights[sites[name].weight] * s
    return replace(student, weights=weights)


def _scale(activation: Array, weight: Array, strength: float) -> Array:
    """s (D,) with a geometric mean of 1, so that no site drifts towards FP16's limits."""
    a, w = np.maximum(activation, 1e-5), np.maximum(weight, 1e-5)
    logarithm = strength * np.log(a) - (1 - strength) * np.log(w)
    s: Array = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return s


def _output_error(tokens: Array, largest: Array, weight: Array) -> float:
    """Mean squared error of tokens · Wᵀ with both in INT8; tokens (n, D), weight (out, D)."""
    step = max(float(largest.max()), 1e-6) / 127
    rounded = np.clip(np.rint(tokens / step), -127, 127) * np.float32(step)
    integers, steps = quantize_weight(weight)
    w = integers.astype(np.float32) * steps[:, None]
    difference = tokens @ weight.T - rounded @ w.T
    return float((difference.astype(np.float64) ** 2).mean())
