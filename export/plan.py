"""The quantization plan: everything that calibration decided, and the graphs written from it."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from edgelung.artifacts.manifest import Calibration
from edgelung.core.precision import Precision
from edgelung.core.typed_json import convert, parse, plain
from edgelung.export.eight_bit import Array
from edgelung.export.graph import build_graph, linear_names
from edgelung.export.student import Student


@dataclass(frozen=True)
class Plan:
    """How the 8-bit variants are written.

    Attributes:
        student: the student after scale migration.
        scales: name → INT8 step of its input (see `graph.build_graph`).
        means: linear name → mean input, of the linears whose bias is corrected; empty if bias
            correction did not reduce the error.
        peak: largest |activation| of the migrated student on the calibration tiles.
        unmigrated_peak: the same, at least, of the original student.
        calibration: the record for the bundle.
    """

    student: Student
    scales: Mapping[str, float]
    means: Mapping[str, Array]
    peak: float
    unmigrated_peak: float
    calibration: Calibration

    def graph(
        self,
        precision: Precision = Precision.INT8,
        temperature: float = 1.0,
        kept_in_float: frozenset[str] = frozenset(),
    ) -> onnx.ModelProto:
        """Write the graph of an 8-bit variant; the parts `kept_in_float` stay in its base type.

        Of INT8 on an FP16 base the scores of attention stay in FP16 too: GPUs have fused attention
        in FP16 and in FP8 (which is faster on a card has not been measured). In FP8 the patch
        embedding stays in FP16: INT8 represents pixels exactly, FP8 only to four bits.
        """
        if precision is Precision.FP8:
            kept_in_float |= {"patch_embed.proj"}
        elif precision.about.base is Precision.FP16:
            kept_in_float |= set(self.scales) - set(linear_names(self.student))
        return build_graph(
            self.student,
            temperature=temperature,
            precision=precision,
            input_scales=self.scales_without(kept_in_float),
            input_means=self.means,
        )

    def scales_without(self, kept_in_float: frozenset[str]) -> dict[str, float]:
        """The scales of the parts that do not stay in the base type."""
        return {k: v for k, v in self.scales.items() if k not in kept_in_float}

    def to_bytes(self, original: Student) -> bytes:
        """Serialise the plan for the cache, without the weights that are those of `original`."""
        changed = {k: v for k, v in self.student.weights.items() if v is not original.weights[k]}
        meta = {
            "scales": dict(self.scales),
            "peak": self.peak,
            "unmigrated_peak": self.unmigrated_peak,
            "calibration": plain(self.calibration),
        }
        arrays = {f"weight:{k}": v for k, v in changed.items()}
        arrays |= {f"mean:{k}": v for k, v in self.means.items()}
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes keywords for flags
        return buffer.getvalue()


def read_plan(data: bytes, original: Student) -> Plan | None:
    """Read what `Plan.to_bytes` wrote; None if it is damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            meta = parse(archive["meta"].tobytes())
            arrays: dict[str, dict[str, Array]] = {"weight": {}, "mean": {}}
            for name in archive.files:
                kind, _, key = name.partition(":")
                if key:
                    arrays[kind][key] = archive[name]
        return Plan(
            student=replace(original, weights=original.weights | arrays["weight"]),
            scales=convert(meta["scales"], dict[str, float]),
            means=arrays["mean"],
            peak=float(meta["peak"]),
            unmigrated_peak=float(meta["unmigrated_peak"]),
            calibration=convert(meta["calibration"], Calibration),
        )
    except Exception:  # zipfile, json and numpy raise their own types for damaged files
        return None
