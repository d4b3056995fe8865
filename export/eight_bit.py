"""The two 8-bit number types of quantized linears, and the rounding of weights to them."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgelung.core.precision import Precision

Array = npt.NDArray[Any]  # float32, float64 or one of the 8-bit types


@dataclass(frozen=True)
class EightBitType:
    """A number type of one byte.

    Attributes:
        dtype: numpy's type.
        largest: the largest number that weights are scaled to.
        end_of_range: the number that the end of an activation's range is scaled to.
    """

    dtype: type[np.generic]
    largest: float
    end_of_range: float


# −128 is not used, so that a negated weight is a negated integer.
INT8 = EightBitType(np.int8, 127, 127)
# E4M3 has the same relative precision over 14 binades: an octave of headroom costs nothing.
FP8 = EightBitType(ml_dtypes.float8_e4m3fn, 448, 224)


def eight_bit_type(precision: Precision) -> EightBitType:
    """The type of the quantized linears of a variant at this precision."""
    return FP8 if precision.about.weights == "fp8" else INT8


def quantize_weight(weight: Array, kind: EightBitType = INT8) -> tuple[Array, Array]:
    """Round a weight symmetrically, with one step per output channel.

    Args:
        weight: (out, in).
        kind: the type to round to.

    Returns:
        The rounded weight (out, in) of `kind.dtype` and the steps float32 (out,).
    """
    largest = np.abs(weight).max(axis=1)
    steps = np.where(largest > 0, largest / kind.largest, 1.0).astype(np.float32)
    scaled = np.clip(weight / steps[:, None], -kind.largest, kind.largest)
    if kind is INT8:
        scaled = np.rint(scaled)
    return scaled.astype(kind.dtype), steps
