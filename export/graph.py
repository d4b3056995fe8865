"""Write the deployed graph: uint8 tiles in, probabilities out, the precision inside the file.

The graph is written operator by operator from the weights rather than traced, because every
runtime has to take it: `LayerNormalization` and `Gelu` stay whole (decomposed, FP16 overflows in
the variance), Q/DQ stands on inputs of linears and on queries and keys only, and every linear has
its timm name (its parts with a number behind), so that calibration and sensitivity can speak of it.

Exact rewrites, all checked against torch in the tests:
- normalisation folds into the patch embedding, over pixels as (p − 128)/64: exact in FP16 and in
  INT8, and the weights grow by about 1.1 instead of shrinking by 58 into FP16's subnormals;
- 1/√d of attention folds into the query weights;
- the patch embedding is a linear over pixels as they lie in memory, not a convolution;
- the mean of the two heads and the temperature fold into one linear;
- only the two class tokens leave the last block, so its queries and MLP run for those alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgelung.export.student import Student

OPSET = 20  # Gelu as an operator; Q/DQ of FP16
IR_VERSION = 9  # what opset 20 came with: old runtimes refuse newer files
EPSILON = 1e-6  # timm's LayerNorm in vision transformers
PIXEL_OFFSET, PIXEL_STEP = 128.0, 64.0
SCORES = "scores"
TOKEN_STRIDE = 4  # of the patches that calibration looks at; neighbours say much the same

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EightBit:
    """A type of one byte: its largest number, and the one that the end of a range is written as."""

    dtype: type[np.generic]
    largest: float
    end_of_range: float


# −128 stays unused, so that a negated weight has a negated integer.
INT8 = EightBit(np.int8, 127, 127)
# E4M3 has the same relative precision over 14 binades: an octave of headroom costs nothing.
FP8 = EightBit(ml_dtypes.float8_e4m3fn, 448, 224)


def build_graph(
    student: Student,
    *,
    temperature: float = 1.0,
    half: bool = False,
    input_scales: Mapping[str, float] | None = None,
    input_means: Mapping[str, Array] | None = None,
    eight_bit: EightBit = INT8,
    observe: bool = False,
    switches: bool = False,
) -> onnx.ModelProto:
    """The graph `tiles` uint8 [N, size, size, 3] → `probs` float32 [N, classes].

    `half`: FP16 weights and activations (the head stays FP32). `input_scales`: name (one of
    `quantizable`) → INT8 step of its input; those get Q/DQ, symmetric, and the linears INT8 weights
    per output channel; or the same in another type of `eight_bit`.
    `input_means`: linear name → mean of its input (D,), of the patch embedding (P·P·3,); its bias
    then takes up what rounding its weights shifts the mean output by.
    `observe`: further outputs, float32, for calibration (see `observed_outputs`).
    `switches`: a second input, `quantized` bool [len(input_scales)]: which of them are quantized,
    in the order of `input_scales`.
    """
    scales, means = input_scales or {}, input_means or {}
    writer = _Writer(student, half, scales, means, eight_bit, observe, switches)
    tokens = writer.embed("tiles")
    for i in range(student.depth):
        tokens = writer.block(f"blocks.{i}", tokens, last=i == student.depth - 1)
    writer.classify(tokens, temperature)
    return writer.model()


def linear_names(student: Student) -> list[str]:
    """The linears that can be quantized, in the order of the graph."""
    return [name for name in quantizable(student) if not name.endswith(SCORES)]


def quantizable(student: Student) -> list[str]:
    """What can be quantized, in the order of the graph: linears, and the scores of attention.

    The scores are the product of queries and keys, which share a step (`export.repair` gives both
    one range). Not the last block's: two class tokens ask there, it would gain nothing.
    """
    names = ["patch_embed.proj"]
    for i in range(student.depth):
        attention = ["q", "kv"] if i == student.depth - 1 else ["qkv", SCORES]
        names += [f"blocks.{i}.attn.{part}" for part in (*attention, "proj")]
        names += [f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.fc2"]
    return names


def observed_outputs(student: Student) -> dict[str, tuple[str, str, str]]:
    """The outputs that `observe` adds for all that is quantizable but the patch embedding, float32.

    Name → some tokens of its input [N, t, D] (class tokens and every fourth patch), and of all its
    tokens the largest magnitude and the mean of each channel, [N, D] each. Scores have queries and
    keys side by side, 2D channels. `peaks` [N, places] besides: the largest magnitude of what the
    linears give, of the residual stream and of the scores. Pixels need no observation.
    """
    names = quantizable(student)[1:]
    return {name: (f"{name}.some", f"{name}.largest", f"{name}.mean") for name in names}


class _Writer:
    def __init__(
        self,
        student: Student,
        half: bool,
        input_scales: Mapping[str, float],
        input_means: Mapping[str, Array],
        eight_bit: EightBit,
        observe: bool,
        switches: bool,
    ) -> None:
        self.student = student
        self.weights = student.weights
        self.dtype = np.float16 if half else np.float32
        self.input_scales = input_scales
        self.input_means = input_means
        self.eight_bit = eight_bit
        self.observe = observe
        self.switches = dict.fromkeys(input_scales) if switches else {}
        self.peaks: list[str] = []
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    # ---- the model --------------------------------------------------------------------------

    def embed(self, tiles: str) -> str:
        """Pixels to tokens with their positions."""
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
        x = self.rounded("patch_embed.proj", x)  # and so is this: bytes are cheaper to move
        x = self.op("Transpose", [self.op("Reshape", [x, rows])], perm=[0, 1, 3, 2, 4])
        x = self.op("Reshape", [x, patches])  # (N, 196, P·P·3)
        x = self.product("patch_embed.proj", "patch_embed.proj", x, kernel, bias)  # (N, 196, D)
        # Two zero tokens in front, then one sum brings class tokens and positions: no op needs N.
        x = self.op("Pad", [x, self.integers("two_in_front", [0, 2, 0, 0, 0, 0])])  # (N, 198, D)
        positions = w["pos_embed"].copy()  # (1, 198, D)
        positions[:, 0] += w["cls_token"][:, 0]
        positions[:, 1] += w["dist_token"][:, 0]
        return self.watch(self.op("Add", [x, self.real("positions", positions)]))

    def block(self, name: str, x: str, last: bool) -> str:
        """One pre-norm transformer block; the last one returns only the two class tokens."""
        y = self.attention(f"{name}.attn", self.layer_norm(f"{name}.norm1", x), last)
        x = self.watch(self.op("Add", [self.class_tokens(x) if last else x, y]))
        y = self.linear(f"{name}.mlp.fc1", self.layer_norm(f"{name}.norm2", x))
        y = self.linear(f"{name}.mlp.fc2", self.op("Gelu", [y]))
        return self.watch(self.op("Add", [x, y]))

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
            self.look(f"{name}.{SCORES}", q, k)
        split_heads = self.integers("split_heads", [0, 0, heads, width // heads])
        q, k, v = (
            self.op("Transpose", [self.op("Reshape", [part, split_heads])], perm=[0, 2, 1, 3])
            for part in (q, k, v)
        )  # (N, heads, T, d)
        q, k = (self.rounded(f"{name}.{SCORES}", part) for part in (q, k))
        k = self.op("Transpose", [k], perm=[0, 1, 3, 2])
        scores = self.watch(self.op("MatMul", [q, k]))  # (N, heads, T, T)
        attention = self.op("Softmax", [scores], axis=-1)
        x = self.op("Transpose", [self.op("MatMul", [attention, v])], perm=[0, 2, 1, 3])
        x = self.op("Reshape", [x, self.integers("join_heads", [0, 0, width])])
        return self.linear(f"{name}.proj", x)

    def classify(self, x: str, temperature: float) -> None:
        """The two class tokens (N, 2, D) → `probs` (N, classes)."""
        w = self.weights
        x = self.op("Reshape", [self.layer_norm("norm", x), self.integers("join_tokens", [0, -1])])
        if self.dtype != np.float32:
            x = self.cast(x, np.float32)
        share = 0.5 / temperature  # the mean of both heads; the temperature of the confidence
        weight = np.concatenate([w["head.weight"], w["head_dist.weight"]], axis=1) * share
        bias = (w["head.bias"] + w["head_dist.bias"]) * share
        parameters = [
            self.constant("head.weight", weight.T.astype(np.float32)),
            self.constant("head.bias", bias.astype(np.float32)),
        ]
        x = self.op("Gemm", [x, *parameters], name="head")
        self.op("Softmax", [x], outputs=["probs"], axis=-1)

    # ---- pieces -----------------------------------------------------------------------------

    def linear(
        self, name: str, x: str, weight: Array | None = None, bias: Array | None = None
    ) -> str:
        """x · Wᵀ + b, with W (out, in) as torch keeps it; quantized where it has an input step."""
        weight = self.weights[f"{name}.weight"] if weight is None else weight
        bias = self.weights[f"{name}.bias"] if bias is None else bias
        return self.linears(name, x, weight, bias, parts=1)[0]

    def linears(self, name: str, x: str, weight: Array, bias: Array, parts: int) -> list[str]:
        """A linear whose output is wanted in equal parts.

        A GPU wants one wide product, split where it lies; a CPU copies what is split, so it gets a
        product for each part, all of them of the same (quantized) input.
        """
        self.look(name, x)
        x = self.rounded(name, x)
        if parts > 1 and self.dtype == np.float16:
            whole = self.product(name, name, x, weight, bias)
            outputs = [f"{whole}.{i}" for i in range(parts)]
            self.op("Split", [whole], outputs=outputs, axis=-1, num_outputs=parts)
            return outputs
        names = [name] if parts == 1 else [f"{name}.{i}" for i in range(parts)]
        split = zip(names, np.split(weight, parts), np.split(bias, parts), strict=True)
        return [self.product(name, part, x, w, b) for part, w, b in split]

    def rounded(self, name: str, x: str) -> str:
        """An input, through Q/DQ where it is quantized."""
        if name not in self.input_scales:
            return x
        kind = self.eight_bit
        scale = self.input_scales[name] * INT8.largest / kind.end_of_range
        step = self.real(f"{name}.input_scale", np.array(scale))
        zero = self.constant("zero", np.array(0, kind.dtype))
        rounded = self.op("QuantizeLinear", [x, step, zero])
        return self.switch(name, self.op("DequantizeLinear", [rounded, step, zero]), x)

    def product(self, name: str, part: str, x: str, weight: Array, bias: Array) -> str:
        """x · Wᵀ + b for `part` of the linear `name`; W (out, in) in INT8 where that is."""
        if name in self.input_scales:
            eight, steps = quantize_weight(weight, self.eight_bit)
            if name in self.input_means:
                shift = eight.astype(np.float32) * steps[:, None] - weight
                bias = bias - shift @ self.input_means[name]
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
        return self.watch(self.op("Add", [x, self.real(f"{part}.bias", bias)]))

    def switch(self, name: str, quantized: str, exact: str) -> str:
        """`quantized`, or `exact` where its switch is off."""
        if name not in self.switches:
            return quantized
        place = self.integers(f"place_{name}", [list(self.switches).index(name)])
        on = self.op("Gather", ["quantized", place], axis=0)  # (1,)
        return self.op("Where", [on, quantized, exact])

    def watch(self, x: str) -> str:
        """Note the largest magnitude of an activation in each tile, (N, 1), if asked for."""
        if self.observe:
            flat = self.op("Flatten", [self.op("Abs", [x])], axis=1)
            self.peaks.append(self.op("ReduceMax", [flat, self.integers("axis", [1])]))
        return x

    def look(self, name: str, *inputs: str) -> None:
        """Give what calibration wants to know of an input (N, T, D) or several, if asked for."""
        if not self.observe:
            return
        x = self.op("Concat", inputs, axis=-1) if len(inputs) > 1 else inputs[0]
        some, largest, mean = observed_outputs(self.student)[name]
        axis = self.integers("axis", [1])
        self.op("ReduceMax", [self.op("Abs", [x]), axis], outputs=[largest], keepdims=0)
        self.op("ReduceMean", [x, axis], outputs=[mean], keepdims=0)
        last = name.startswith(f"blocks.{self.student.depth - 1}.")
        # The last block reads all tokens for keys and values only.
        tokens = 2 if last and not name.endswith(".kv") else self.student.tokens
        kept = self.integers(f"some_{tokens}", [0, 1, *range(2, tokens, TOKEN_STRIDE)])
        self.op("Gather", [x, kept], outputs=[some], axis=1)

    def layer_norm(self, name: str, x: str) -> str:
        scale = self.real(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self.real(f"{name}.bias", self.weights[f"{name}.bias"])
        return self.op("LayerNormalization", [x, scale, bias], axis=-1, epsilon=EPSILON)

    def class_tokens(self, x: str) -> str:
        """The first two tokens: (N, T, D) → (N, 2, D)."""
        bounds = [self.integers(n, [v]) for n, v in (("first", 0), ("second", 2), ("axis", 1))]
        return self.op("Slice", [x, *bounds])

    def cast(self, x: str, dtype: type[np.generic]) -> str:
        return self.op("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    # ---- onnx -------------------------------------------------------------------------------

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str = "",
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        name = name or f"{kind}_{len(self.nodes)}"
        outputs = outputs or [f"{name}.out"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, **attributes))
        return outputs[0]

    def real(self, name: str, value: Array) -> str:
        """A constant in the graph's floating type."""
        return self.constant(name, np.asarray(value).astype(self.dtype))

    def integers(self, name: str, value: list[int]) -> str:
        return self.constant(name, np.array(value, np.int64))

    def constant(self, name: str, value: Array) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def model(self) -> onnx.ModelProto:
        s = self.student
        outputs = [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", len(s.classes)])]
        if self.observe:
            self.op("Concat", self.peaks, outputs=["peaks"], axis=1)
            names = [name for group in observed_outputs(s).values() for name in group]
            for name in ("peaks", *names):
                shape = ["N", None, None] if name.endswith(".some") else ["N", None]
                outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        inputs = [
            helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", s.size, s.size, 3])
        ]
        if self.switches:
            count = [len(self.switches)]
            inputs.append(helper.make_tensor_value_info("quantized", TensorProto.BOOL, count))
        graph = helper.make_graph(
            self.nodes,
            s.architecture,
            inputs,
            outputs,
            initializer=list(self.constants.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgelung",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def quantized_products(graph: onnx.ModelProto) -> int:
    """How many products have weights in INT8: what a runtime should find when it reads the file.

    More than the quantized linears where those are split (`_Writer.linears`).
    """
    return sum(tensor.name.endswith(".weight_scale") for tensor in graph.graph.initializer)


def quantize_weight(weight: Array, kind: EightBit = INT8) -> tuple[Array, Array]:
    """Symmetric, with one step per output: (rounded (out, in) of that kind, steps (out,) float32).

    `weight` is (out, in).
    """
    largest = np.abs(weight).max(axis=1)
    steps = np.where(largest > 0, largest / kind.largest, 1.0).astype(np.float32)
    scaled = np.clip(weight / steps[:, None], -kind.largest, kind.largest)
    if kind is INT8:
        scaled = np.rint(scaled)
    return scaled.astype(kind.dtype), steps
