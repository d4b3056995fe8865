"""Write the deployed graph: uint8 tiles in, probabilities out, the precision inside the file.

The graph is written operator by operator from the weights rather than traced, because every
runtime has to accept it:

- `LayerNormalization` and `Gelu` stay single operators (decomposed, FP16's variance overflows);
- Q/DQ pairs stand only on the inputs of linears and on queries and keys; in FP8 also on the two
  factors behind the softmax;
- every linear has its timm name (its parts with a number behind it), so that calibration and
  sensitivity can refer to it.

Exact rewrites, all checked against torch in the tests:

- Normalisation folds into the patch embedding, over pixels as (p − 128)/64. These are exact in FP16
  and INT8, and the weights grow by about 1.1 instead of shrinking by 58 into FP16's subnormals.
- 1/√d of attention folds into the query weights.
- The patch embedding is a linear over pixels as they lie in memory, not a convolution.
- The mean of the two heads and the temperature fold into one linear.
- Only the two class tokens leave the last block, so its queries and its MLP run for those alone.

The score `ood` (`edgelung.evaluation.known`) is computed in FP32 in every precision: its distances
are |y|² − 2 y·c + |c|² of whitened features y and class centres c, two products in all.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from edgelung.core.precision import Precision
from edgelung.evaluation.known import KnownTissue
from edgelung.export.eight_bit import FP8, INT8, Array, eight_bit_type, quantize_weight
from edgelung.export.graph_writer import GraphWriter, float_info, pixels_info
from edgelung.export.student import Student

EPSILON = 1e-6  # timm's LayerNorm in vision transformers
PIXEL_OFFSET, PIXEL_STEP = 128.0, 64.0
SCORES = "scores"
VALUES_HEADROOM = 8  # values of attention may be larger than their weighted means by this factor
TOKEN_STRIDE = 4  # calibration samples every fourth patch; neighbouring patches are much alike


def build_graph(
    student: Student,
    *,
    temperature: float = 1.0,
    precision: Precision = Precision.FP32,
    input_scales: Mapping[str, float] | None = None,
    input_means: Mapping[str, Array] | None = None,
    statistics: bool = False,
    features: int | None = None,
) -> onnx.ModelProto:
    """Build the graph `tiles` uint8 [N, size, size, 3] → `probs` float32 [N, classes].

    A student that knows its training tiles (`Student.known`) gives `ood` float32 [N] as well.

    Args:
        student: the trained model.
        temperature: divides the logits.
        precision: its base is the type of weights and activations (the head is always FP32), its
            weights the 8-bit type of the inputs named in `input_scales`.
        input_scales: name (one of `quantizable`) → INT8 step of its input. These inputs get Q/DQ,
            symmetric, and the linears 8-bit weights with a step per output channel.
        input_means: linear name → mean of its input (D,), of the patch embedding (P·P·3,). The
            linear's bias then compensates the mean error that rounding its weights causes.
        statistics: add the outputs that calibration reads (see `statistics_outputs`).
        features: add the output `features` float32 [N, D], the mean patch token after this block.

    Raises:
        ValueError: if there are `input_scales` and the precision has no 8-bit type.
    """
    if input_scales and precision.about.weights == precision.about.base:
        raise ValueError(f"{precision} has no 8-bit type for the inputs in input_scales")
    writer = ModelWriter(student, precision, input_scales or {}, input_means or {}, statistics)
    outputs = [float_info("probs", ["N", len(student.classes)])]
    tokens = writer.embed("tiles")
    for i in range(student.depth):
        tokens = writer.block(i, tokens)
        if features == i + 1:
            writer.mean_patch(tokens, "features")
            outputs.append(float_info("features", ["N", student.width]))
        if student.known and student.known.block == i + 1:
            writer.score(writer.mean_patch(tokens, "known.features"), student.known)
            outputs.append(float_info("ood", ["N"]))
    writer.classify(tokens, temperature)
    if statistics:
        outputs += writer.collected_statistics()
    return writer.model(student.architecture, [pixels_info("tiles", student.size)], outputs)


def linear_names(student: Student) -> list[str]:
    """The linears that can be quantized, in the order of the graph."""
    return [name for name in quantizable(student) if not name.endswith(SCORES)]


def quantizable(student: Student) -> list[str]:
    """What can be quantized, in the order of the graph: linears and the scores of attention.

    The scores are the product of queries and keys, which share a step (`export.smoothquant` gives
    both the same range). The last block's scores are left out: only two class tokens query there,
    so quantizing them would gain nothing.
    """
    names = ["patch_embed.proj"]
    for i in range(student.depth):
        attention = ["q", "kv"] if i == student.depth - 1 else ["qkv", SCORES]
        names += [f"blocks.{i}.attn.{part}" for part in (*attention, "proj")]
        names += [f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.fc2"]
    return names


def statistics_outputs(student: Student) -> dict[str, tuple[str, str, str]]:
    """The outputs that `statistics` adds for every quantizable part but the patch embedding.

    Returns:
        Name → three float32 outputs: sampled tokens of its input [N, t, D] (the class tokens and
        every fourth patch), and over all tokens the largest magnitude and the mean of each channel,
        [N, D] each. Scores have queries and keys side by side, 2D channels. There is one further
        output, `peaks` [N, places]: the largest magnitude of the outputs of the linears, of the
        residual stream and of the scores. Pixels need no statistics.
    """
    names = quantizable(student)[1:]
    return {name: (f"{name}.some", f"{name}.largest", f"{name}.mean") for name in names}


def quantized_products(graph: onnx.ModelProto) -> int:
    """Count the products with 8-bit weights, which a runtime should find when it reads the file.

    There are more of them than quantized linears where those are split (`ModelWriter.linears`).
    """
    return sum(tensor.name.endswith(".weight_scale") for tensor in graph.graph.initializer)


class ModelWriter(GraphWriter):
    """Writes the parts of the student; N is the batch, T the tokens, D the width."""

    def __init__(
        self,
        student: Student,
        precision: Precision,
        input_scales: Mapping[str, float],
        input_means: Mapping[str, Array],
        statistics: bool = False,
        switched: bool = False,
    ) -> None:
        super().__init__(np.float16 if precision.about.base is Precision.FP16 else np.float32)
        self.student = student
        self.weights = student.weights
        self.input_scales = input_scales
        self.input_means = input_means
        self.eight_bit = eight_bit_type(precision)
        self.statistics = statistics
        self.switches = list(input_scales) if switched else []
        self.peaks: list[str] = []

    def embed(self, tiles: str) -> str:
        """Pixels to tokens with their positions: uint8 (N, size, size, 3) → (N, T, D)."""
        s, w = self.student, self.weights
        std = np.array(s.std).reshape(1, 3, 1, 1)
        centre = PIXEL_OFFSET / 255 - np.array(s.mean).reshape(1, 3, 1, 1)
        kernel = w["patch_embed.proj.weight"].astype(np.float64) / std  # (D, 3, P, P)
        bias = w["patch_embed.proj.bias"] + (kernel * centre).sum(axis=(1, 2, 3))
        kernel = kernel.transpose(0, 2, 3, 1).reshape(s.width, -1) * (PIXEL_STEP / 255)

        side = s.size // s.patch
        rows = self.integers("rows_of_patches", [0, side, s.patch, side, s.patch * 3])
        patches = self.integers("patches", [0, side * side, s.patch * s.patch * 3])
        x = self.cast(tiles, self.dtype)  # before the transpose: TensorRT transposes no uint8
        x = self.op("Sub", [x, self.real("pixel_offset", np.array(PIXEL_OFFSET))])
        x = self.op("Mul", [x, self.real("pixel_scale", np.array(1 / PIXEL_STEP))])
        # Also before the transpose: bytes are cheaper to move.
        x = self.quantize_input("patch_embed.proj", x)
        x = self.op("Transpose", [self.op("Reshape", [x, rows])], perm=[0, 1, 3, 2, 4])
        x = self.op("Reshape", [x, patches])  # (N, T − 2, P·P·3)
        x = self.product("patch_embed.proj", "patch_embed.proj", x, kernel, bias)  # (N, T − 2, D)
        # Two zero tokens in front, then one sum adds class tokens and positions: no op needs N.
        x = self.op("Pad", [x, self.integers("two_in_front", [0, 2, 0, 0, 0, 0])])  # (N, T, D)
        positions = w["pos_embed"].copy()  # (1, T, D)
        positions[:, 0] += w["cls_token"][:, 0]
        positions[:, 1] += w["dist_token"][:, 0]
        return self.record_peak(self.op("Add", [x, self.real("positions", positions)]))

    def block(self, index: int, x: str, output: str = "") -> str:
        """One pre-norm transformer block; the last one returns only the two class tokens.

        `output`: the name of what it returns; '' for any.
        """
        name, last = f"blocks.{index}", index == self.student.depth - 1
        y = self.attention(f"{name}.attn", self.layer_norm(f"{name}.norm1", x), last)
        x = self.record_peak(self.op("Add", [self.class_tokens(x) if last else x, y]))
        y = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", x))
        y = self.linear(f"{name}.mlp.fc2", self.op("Gelu", [y]))
        return self.record_peak(self.op("Add", [x, y], outputs=[output] if output else ()))

    def attention(self, name: str, x: str, last: bool) -> str:
        """Multi-head self-attention (N, T, D) → (N, T, D), or (N, 2, D) in the last block."""
        width, heads = self.student.width, self.student.heads
        weight = self.weights[f"{name}.qkv.weight"].copy()  # (3D, D)
        bias = self.weights[f"{name}.qkv.bias"].copy()
        scale = (width // heads) ** -0.5
        weight[:width] *= scale
        bias[:width] *= scale
        if last:
            q = self.linear(f"{name}.q", self.class_tokens(x), weight[:width], bias[:width])
            k, v = self.linears(f"{name}.kv", x, weight[width:], bias[width:], parts=2)
        else:
            q, k, v = self.linears(f"{name}.qkv", x, weight, bias, parts=3)
            self.record_input(f"{name}.{SCORES}", q, k)
        split_heads = self.integers("split_heads", [0, 0, heads, width // heads])
        q, k, v = (
            self.op("Transpose", [self.op("Reshape", [part, split_heads])], perm=[0, 2, 1, 3])
            for part in (q, k, v)
        )  # (N, heads, T, d)
        q, k = (self.quantize_input(f"{name}.{SCORES}", part) for part in (q, k))
        k = self.op("Transpose", [k], perm=[0, 1, 3, 2])
        scores = self.record_peak(self.op("MatMul", [q, k]))  # (N, heads, T, T)
        attention = self.op("Softmax", [scores], axis=-1)
        attention, v = self.quantize_fp8_values(name, attention, v)
        x = self.op("Transpose", [self.op("MatMul", [attention, v])], perm=[0, 2, 1, 3])
        x = self.op("Reshape", [x, self.integers("join_heads", [0, 0, width])])
        return self.linear(f"{name}.proj", x)

    def mean_patch(self, x: str, name: str) -> str:
        """The mean of the patch tokens in FP32: (N, T, D) → (N, D). Not for the last block."""
        bounds = {"second": 2, "behind": self.student.tokens, "axis": 1}
        x = self.op("Slice", [x, *(self.integers(n, [v]) for n, v in bounds.items())])
        if self.dtype != np.float32:
            x = self.cast(x, np.float32)
        return self.op("ReduceMean", [x, self.integers("axis", [1])], outputs=[name], keepdims=0)

    def score(self, features: str, known: KnownTissue) -> None:
        """Features (N, D) → `ood` (N,), the distance to the nearest class centre."""
        classes, width = known.centres.shape
        parameters = {
            "whitening": known.whitening,
            "whitening.bias": -known.mean @ known.whitening,
            "centres": -2 * known.centres.T,
            "centres.bias": (known.centres**2).sum(axis=1),
            "ones": np.ones((width, classes)),
            "ones.bias": np.zeros(classes),
        }
        constants = {
            name: self.constant(f"known.{name}", value.astype(np.float32))
            for name, value in parameters.items()
        }

        def gemm(x: str, name: str) -> str:
            return self.op("Gemm", [x, constants[name], constants[f"{name}.bias"]])

        white = gemm(features, "whitening")  # (N, D)
        lengths = gemm(self.op("Mul", [white, white]), "ones")  # (N, C), all columns alike
        distances = self.op("Add", [lengths, gemm(white, "centres")])
        self.op("ReduceMin", [distances, self.integers("axis", [1])], outputs=["ood"], keepdims=0)

    def classify(self, x: str, temperature: float) -> None:
        """The two class tokens (N, 2, D) → `probs` (N, classes)."""
        w = self.weights
        x = self.op("Reshape", [self.layer_norm("norm", x), self.integers("join_tokens", [0, -1])])
        if self.dtype != np.float32:
            x = self.cast(x, np.float32)
        share = 0.5 / temperature  # 0.5: the mean of both heads
        weight = np.concatenate([w["head.weight"], w["head_dist.weight"]], axis=1) * share
        bias = (w["head.bias"] + w["head_dist.bias"]) * share
        parameters = [
            self.constant("head.weight", weight.T.astype(np.float32)),
            self.constant("head.bias", bias.astype(np.float32)),
        ]
        x = self.op("Gemm", [x, *parameters], name="head")
        self.op("Softmax", [x], outputs=["probs"], axis=-1)

    def linear(
        self, name: str, x: str, weight: Array | None = None, bias: Array | None = None
    ) -> str:
        """x · Wᵀ + b, with W (out, in) as torch stores it; quantized if it has an input step."""
        weight = self.weights[f"{name}.weight"] if weight is None else weight
        bias = self.weights[f"{name}.bias"] if bias is None else bias
        return self.linears(name, x, weight, bias, parts=1)[0]

    def linears(self, name: str, x: str, weight: Array, bias: Array, parts: int) -> list[str]:
        """A linear whose output is split into equal parts.

        A GPU is fastest with one wide product that is split in place. A CPU would copy the parts,
        so it gets one product per part, all with the same (quantized) input.
        """
        self.record_input(name, x)
        x = self.quantize_input(name, x)
        if parts > 1 and self.dtype == np.float16:
            whole = self.product(name, name, x, weight, bias)
            outputs = [f"{whole}.{i}" for i in range(parts)]
            self.op("Split", [whole], outputs=outputs, axis=-1, num_outputs=parts)
            return outputs
        names = [name] if parts == 1 else [f"{name}.{i}" for i in range(parts)]
        split = zip(names, np.split(weight, parts), np.split(bias, parts), strict=True)
        return [self.product(name, part, x, w, b) for part, w, b in split]

    def quantize_fp8_values(self, name: str, attention: str, v: str) -> tuple[str, str]:
        """Pass what is multiplied behind the softmax through Q/DQ, if the scores are in FP8.

        TensorRT fuses attention in FP8 only if both of its products are. Probabilities end at 1,
        which becomes the largest FP8 number. The values have no statistics of their own: their
        weighted means do, as the input of `proj`, and FP8 has enough range to allow more.
        """
        scores, proj = f"{name}.{SCORES}", f"{name}.proj"
        if self.eight_bit is not FP8 or not {scores, proj} <= set(self.input_scales):
            return attention, v
        attention = self.quantize(f"{name}.softmax", 1 / FP8.largest, attention)
        threshold = VALUES_HEADROOM * INT8.largest * self.input_scales[proj]
        return attention, self.quantize(f"{name}.values", threshold / FP8.largest, v)

    def quantize_input(self, name: str, x: str) -> str:
        """Pass an input through Q/DQ if it is quantized."""
        if name not in self.input_scales:
            return x
        scale = self.input_scales[name] * INT8.largest / self.eight_bit.end_of_range
        return self.switch(name, self.quantize(f"{name}.input", scale, x), x)

    def quantize(self, name: str, scale: float, x: str) -> str:
        """Pass a tensor through Q/DQ at this step."""
        step = self.real(f"{name}_scale", np.array(scale))
        zero = self.constant("zero", np.array(0, self.eight_bit.dtype))
        rounded = self.op("QuantizeLinear", [x, step, zero])
        return self.op("DequantizeLinear", [rounded, step, zero])

    def product(self, name: str, part: str, x: str, weight: Array, bias: Array) -> str:
        """x · Wᵀ + b for `part` of the linear `name`; W (out, in) in 8 bits if it is quantized."""
        if name in self.input_scales:
            eight, steps = quantize_weight(weight, self.eight_bit)
            if name in self.input_means:
                error = eight.astype(np.float32) * steps[:, None] - weight
                bias = bias - error @ self.input_means[name]
            w = self.op(
                "DequantizeLinear",
                [
                    self.constant(f"{part}.weight", eight.T),
                    self.real(f"{part}.weight_scale", steps),
                    self.constant(f"{part}.weight_zero", np.zeros(steps.shape, eight.dtype)),
                ],
                axis=1,
            )
            if name in self.switches:
                w = self.switch(name, w, self.real(f"{part}.exact", weight.T))
        else:
            w = self.real(f"{part}.weight", weight.T)
        x = self.op("MatMul", [x, w], name=part)
        return self.record_peak(self.op("Add", [x, self.real(f"{part}.bias", bias)]))

    def switch(self, name: str, quantized: str, exact: str) -> str:
        """`quantized`, or `exact` if the part's switch is off."""
        if name not in self.switches:
            return quantized
        index = self.integers(f"switch_{name}", [self.switches.index(name)])
        on = self.op("Gather", ["quantized", index], axis=0)  # (1,)
        return self.op("Where", [on, quantized, exact])

    def layer_norm(self, name: str, x: str) -> str:
        """LayerNorm over the channels."""
        scale = self.real(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self.real(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.op("LayerNormalization", [x, scale, bias], axis=-1, epsilon=EPSILON)

    def class_tokens(self, x: str) -> str:
        """The first two tokens: (N, T, D) → (N, 2, D)."""
        bounds = [self.integers(n, [v]) for n, v in (("first", 0), ("second", 2), ("axis", 1))]
        return self.op("Slice", [x, *bounds])

    def record_peak(self, x: str) -> str:
        """Record the largest magnitude of an activation per tile, (N, 1), for calibration."""
        if self.statistics:
            flat = self.op("Flatten", [self.op("Abs", [x])], axis=1)
            self.peaks.append(self.op("ReduceMax", [flat, self.integers("axis", [1])]))
        return x

    def record_input(self, name: str, *inputs: str) -> None:
        """Add the outputs of `statistics_outputs` for an input (N, T, D), or several."""
        if not self.statistics:
            return
        x = self.op("Concat", inputs, axis=-1) if len(inputs) > 1 else inputs[0]
        some, largest, mean = statistics_outputs(self.student)[name]
        axis = self.integers("axis", [1])
        self.op("ReduceMax", [self.op("Abs", [x]), axis], outputs=[largest], keepdims=0)
        self.op("ReduceMean", [x, axis], outputs=[mean], keepdims=0)
        last = name.startswith(f"blocks.{self.student.depth - 1}.")
        # The last block reads all tokens for keys and values only.
        tokens = 2 if last and not name.endswith(".kv") else self.student.tokens
        kept = self.integers(f"some_{tokens}", [0, 1, *range(2, tokens, TOKEN_STRIDE)])
        self.op("Gather", [x, kept], outputs=[some], axis=1)

    def collected_statistics(self) -> list[onnx.ValueInfoProto]:
        """Join the recorded peaks; returns the description of all statistics outputs."""
        self.op("Concat", self.peaks, outputs=["peaks"], axis=1)
        names = [name for group in statistics_outputs(self.student).values() for name in group]
        return [
            float_info(name, ["N", None, None] if name.endswith(".some") else ["N", None])
            for name in ("peaks", *names)
        ]
