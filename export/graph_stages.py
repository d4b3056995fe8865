"""The INT8 graph in stages whose 8-bit parts can be switched off, to measure their cost."""

from collections.abc import Mapping

import onnx

from edgelung.core.precision import Precision
from edgelung.export.graph import ModelWriter
from edgelung.export.graph_writer import float_info, pixels_info, switches_info
from edgelung.export.student import Student


def build_switched_stages(
    student: Student, input_scales: Mapping[str, float]
) -> list[onnx.ModelProto]:
    """Build the INT8 graph in stages whose 8-bit parts can be switched off: embedding, blocks.

    The stages run one after the other compute the same as the whole graph. The first takes `tiles`
    and the others `tokens` float32 [N, T, D]; the last returns `probs`, the others `tokens`. Each
    has a second input `quantized`, bool: which of its parts are quantized, in the order of
    `stage_parts`; a stage without parts has no such input.
    """
    parts = stage_parts(student, input_scales)
    stages = []
    for stage, names in enumerate(parts):
        scales = {name: input_scales[name] for name in names}
        writer = ModelWriter(student, Precision.INT8, scales, {}, switched=True)
        if stage == 0:
            inputs, out = [pixels_info("tiles", student.size)], writer.embed("tiles")
        else:
            inputs = [float_info("tokens", ["N", student.tokens, student.width])]
            out = writer.block(stage - 1, "tokens")
        if stage == student.depth:
            writer.classify(out, temperature=1.0)
            outputs = [float_info("probs", ["N", len(student.classes)])]
        else:
            outputs = [float_info(out, ["N", student.tokens, student.width])]
        if names:
            inputs.append(switches_info("quantized", len(names)))
        stages.append(writer.model(f"stage {stage}", inputs, outputs))
    return stages


def stage_parts(student: Student, input_scales: Mapping[str, float]) -> list[list[str]]:
    """The names in `input_scales` by stage: the patch embedding, then each block."""
    prefixes = ["patch_embed.", *(f"blocks.{i}." for i in range(student.depth))]
    return [[name for name in input_scales if name.startswith(p)] for p in prefixes]
