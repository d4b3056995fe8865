"""Scale migration: what makes activations hard to round goes into weights, which mind less.

SmoothQuant's equivalence (Xiao et al. 2023): dividing a channel by s where it is made and
multiplying the weights that read it by s changes nothing in full precision. It is made by a
LayerNorm (its gain and bias), or by the value rows of the attention, since attention mixes tokens
and not channels. With s = a^α / w^(1−α) of the channel's largest activation a and weight w, a
channel that was scaled up by any factor gets that factor back, whatever α is.

Queries and keys of a channel are multiplied with each other and with nothing else, so they are
given the same range: dividing the one and multiplying the other changes nothing, and the step that
serves both is then as small as it can be.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgelung.export.graph import SCORES, quantize_weight
from edgelung.export.stats import Observed
from edgelung.export.student import Student

STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # α; beside them, no migration at all

Array = npt.NDArray[np.float32]
Migration = dict[str, Array]  # where the channels are made → s (D,)


def places(student: Student) -> dict[str, tuple[list[str], str, str]]:
    """Where channels are made → the linears that read them, whose input it is, their weight.

    The input is named by one linear, the weight by its timm name; the last block reads one
    LayerNorm in two linears (`q`, `kv`) that share a weight.
    """
    found = {}
    for i in range(student.depth):
        block = f"blocks.{i}"
        read = ["q", "kv"] if i == student.depth - 1 else ["qkv"]
        names = [f"{block}.attn.{part}" for part in read]
        found[f"{block}.norm1"] = (names, names[-1], f"{block}.attn.qkv.weight")
        found[f"{block}.norm2"] = (
            [f"{block}.mlp.fc1"],
            f"{block}.mlp.fc1",
            f"{block}.mlp.fc1.weight",
        )
        proj = f"{block}.attn.proj"
        found[f"{block}.attn.v"] = ([proj], proj, f"{proj}.weight")
    return found


def choose_migration(student: Student, observed: Observed) -> tuple[Migration, dict[str, float]]:
    """For each place the s that leaves the least measured error in the output of its linear.

    Tried on sampled tokens with input and weight in INT8. Returns the s and the strength of each
    place that migrates; a place that is better off as it is has neither. With them the s of the
    scores, by which queries are divided and keys multiplied.
    """
    migration: Migration = {}
    strengths: dict[str, float] = {}
    for place, (_, name, weight_name) in places(student).items():
        seen, weight = observed.inputs[name], student.weights[weight_name]
        tokens = seen.tokens  # (n, D)
        least = _output_error(tokens, seen.largest, weight)
        for strength in STRENGTHS:
            s = _scale(seen.largest, np.abs(weight).max(axis=0), strength)
            error = _output_error(tokens / s, seen.largest / s, weight * s)
            if error < least:
                least, migration[place], strengths[place] = error, s, strength
    for name, seen in observed.inputs.items():
        if name.endswith(SCORES):
            queries, keys = np.split(np.maximum(seen.largest, 1e-5), 2)  # (D,)
            migration[name] = np.sqrt(queries / keys)
    return migration, strengths


def migrate(student: Student, migration: Migration) -> Student:
    """The same function in full precision, its channels scaled by `migration`."""
    weights = dict(student.weights)
    for place, s in migration.items():
        block, _, made = place.rpartition(".")
        if made in ("v", SCORES):  # rows of queries, keys, values
            none = np.ones_like(s)
            rows = np.concatenate([none, none, 1 / s] if made == "v" else [1 / s, s, none])
            weights[f"{block}.qkv.weight"] = weights[f"{block}.qkv.weight"] * rows[:, None]
            weights[f"{block}.qkv.bias"] = weights[f"{block}.qkv.bias"] * rows
        else:
            for part in ("weight", "bias"):
                weights[f"{place}.{part}"] = weights[f"{place}.{part}"] / s
        if made != SCORES:
            _, _, consumer = places(student)[place]
            weights[consumer] = weights[consumer] * s
    return replace(student, weights=weights)


def _scale(activation: Array, weight: Array, strength: float) -> Array:
    """s (D,), of a geometric mean of 1, so that no place drifts towards FP16's ends."""
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
