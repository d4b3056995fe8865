"""The precisions a model can be exported and run at: one table says what each one is.

Parsed once, at the command line or while a bundle is read; everything else receives a `Precision`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Precision(StrEnum):
    """How the numbers of a graph are stored and multiplied. The values are those in bundle.json."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_FP16 = "int8-fp16"
    FP8 = "fp8"
    INT8_EARLY_EXIT = "int8-early-exit"
    FP16_EARLY_EXIT = "fp16-early-exit"

    @property
    def about(self) -> "PrecisionInfo":
        """The row of `PRECISIONS`."""
        return PRECISIONS[self]


@dataclass(frozen=True)
class PrecisionInfo:
    """What a precision is.

    Attributes:
        base: type of everything that is not quantized.
        weights: type of the linears' weights and inputs.
        meant_for: the device class that gains from it, 'CPU' or 'GPU'.
        golden_tolerance: largest |Δ probability| on a golden tile between two correct engines.
            Runtimes sum in different orders; in INT8 a value at the edge of a step can fall to
            either side. A wrong colour order, normalisation or weight moves some tile by far more.
        least_sm: lowest compute capability (89 is SM 8.9) with arithmetic of this type; 0: any.
        option: the option of `edgelung export` that adds the variant.
        whole: of two graphs with an early exit, the variant of one graph that they are made from.
    """

    base: Precision
    weights: str
    meant_for: str
    golden_tolerance: float
    least_sm: int
    option: str
    whole: Precision | None = None

    @property
    def early_exit(self) -> bool:
        """True for two graphs: a tile that the first one is sure of needs no second."""
        return self.whole is not None


PRECISIONS: Mapping[Precision, PrecisionInfo] = {
    Precision.FP32: PrecisionInfo(Precision.FP32, "fp32", "CPU", 2e-3, 0, ""),
    Precision.FP16: PrecisionInfo(Precision.FP16, "fp16", "GPU", 2e-2, 0, "--fp16"),
    Precision.INT8: PrecisionInfo(Precision.FP32, "int8", "CPU", 1e-1, 0, "--int8"),
    # The same INT8 linears between FP16 tensors.
    Precision.INT8_FP16: PrecisionInfo(Precision.FP16, "int8", "GPU", 1e-1, 0, "--int8"),
    # E4M3 linears between FP16 tensors.
    Precision.FP8: PrecisionInfo(Precision.FP16, "fp8", "GPU", 1e-1, 89, "--fp8"),
    # Two runtimes may differ more than without an exit: a tile at its edge leaves in one of them.
    Precision.INT8_EARLY_EXIT: PrecisionInfo(
        Precision.FP32, "int8", "CPU", 1e-1, 0, "--int8 --early-exit", Precision.INT8
    ),
    Precision.FP16_EARLY_EXIT: PrecisionInfo(
        Precision.FP16, "fp16", "GPU", 1e-1, 0, "--fp16 --early-exit", Precision.FP16
    ),
}
FULL_PRECISION = Precision.FP32
