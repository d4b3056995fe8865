"""The graph in stages: cut at an early exit, or with parts that can be switched off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgelung.core.precision import Precision
from edgelung.evaluation.known import KnownTissue
from edgelung.export.eight_bit import Array
from edgelung.export.graph import ModelWriter
from edgelung.export.graph_writer import float_info, pixels_info, switches_info
from edgelung.export.student import Student


@dataclass(frozen=True)
class ExitHead:
    """What answers at an early exit, from the mean patch token x there: softmax(x · weight + bias).

    Attributes:
        weight: float64 (D, classes), the temperature inside.
        bias: float64 (classes,).
        known: what the tokens of training tiles look like there; its block is that of the exit.
    """

    weight: Array
    bias: Array
    known: KnownTissue


def build_exit_features(
    student: Student,
    blocks: Sequence[int],
    input_scales: Mapping[str, float],
    input_means: Mapping[str, Array],
    precision: Precision = Precision.INT8,
) -> onnx.ModelProto:
    """Build the graph from `tiles` to the mean patch token after each of some blocks.

    The outputs are float32 [N, D], in the order of `blocks`, which is ascending. `input_scales`,
    `input_means`, `precision`: see `graph.build_graph`.
    """
    writer = ModelWriter(student, precision, input_scales, input_means)
    x, outputs = writer.embed("tiles"), []
    for i in range(blocks[-1]):
        x = writer.block(i, x)
        if i + 1 in blocks:
            writer.mean_patch(x, name := f"features.{i + 1}")
            outputs.append(float_info(name, ["N", student.width]))
    return writer.model("features", [pixels_info("tiles", student.size)], outputs)


def build_exit_stages(
    student: Student,
    head: ExitHead,
    temperature: float,
    input_scales: Mapping[str, float],
    input_means: Mapping[str, Array],
    precision: Precision = Precision.INT8,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Build the graph in two: up to the exit of `head`, and from there to the end.

    The first is `tiles` → `probs`, `ood`, `tokens` float32 [N, T, D], the second `tokens` →
    `probs`, `ood`. Both have the outputs of `graph.build_graph`, the first from its `head`. The
    tokens are handed on as they are summed: nothing is rounded. (In FP16 they are widened.)

    `temperature`, `input_scales`, `input_means`, `precision`: see `graph.build_graph`.
    """
    known, block = student.known, head.known.block
    if known is None or known.block < block:
        raise ValueError(f"an exit after block {block} behind the block of the score")
    tokens = float_info("tokens", ["N", student.tokens, student.width])
    answers = [float_info("probs", ["N", len(student.classes)]), float_info("ood", ["N"])]

    first = ModelWriter(student, precision, input_scales, input_means)
    widened = first.dtype != np.float32
    x = _up_to(first, block, "" if widened else "tokens")
    if widened:
        first.op("Cast", [x], outputs=["tokens"], to=onnx.TensorProto.FLOAT)
    write_head(first, x, head)
    pixels = [pixels_info("tiles", student.size)]

    second = ModelWriter(student, precision, input_scales, input_means)
    x = second.cast("tokens", second.dtype) if widened else "tokens"
    for i in range(block, student.depth + 1):
        if i == known.block:
            second.score(second.mean_patch(x, "known.features"), known)
        if i < student.depth:
            x = second.block(i, x)
    second.classify(x, temperature)
    return (
        first.model(f"{student.architecture}, stage 1", pixels, [*answers, tokens]),
        second.model(f"{student.architecture}, stage 2", [tokens], answers),
    )


def write_head(writer: ModelWriter, tokens: str, head: ExitHead) -> None:
    """Tokens (N, T, D) → `probs` (N, classes) and `ood` (N,) of an exit."""
    features = writer.mean_patch(tokens, "features")
    writer.score(features, head.known)
    parameters = {"exit.weight": head.weight, "exit.bias": head.bias}
    constants = [writer.constant(n, v.astype(np.float32)) for n, v in parameters.items()]
    logits = writer.op("Gemm", [features, *constants], name="exit")
    writer.op("Softmax", [logits], outputs=["probs"], axis=-1)


def _up_to(writer: ModelWriter, block: int, output: str = "") -> str:
    """The tokens after `block` blocks (N, T, D), named `output`."""
    x = writer.embed("tiles")
    for i in range(block):
        x = writer.block(i, x, output if i == block - 1 else "")
    return x


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
