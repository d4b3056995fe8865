"""The operators that a graph may use, and the shape that each gives.

A tensor is either constant or has one row per tile. The rules keep the batch in front and refuse
what would mix tiles, so that a prediction depends on its own tile alone. Since every shape is known
without the batch, the memory and the products that a tile costs are known before a runtime starts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgelung.artifacts.onnx_wire import Attribute, GraphError, Node

MAX_ELEMENTS = 1 << 23  # of an activation of one tile; DeiT-B at 384 px needs 4 million
MAX_PRODUCTS = 1 << 40  # multiplications of one tile; DeiT-B at 384 px needs 2**36
BATCH_FIRST = "expected a batch that stays the first dimension"

FLOAT, UINT8, INT8, INT64, FLOAT16, FLOAT8 = 1, 2, 3, 7, 10, 17  # ONNX's element types
ELEMENT_BYTES = {FLOAT: 4, INT8: 1, INT64: 8, FLOAT16: 2, FLOAT8: 1}  # of constants

Attributes = Mapping[str, int | float | tuple[int, ...]]
_INT, _FLOAT, _INTS = 2, 1, 7  # types of attributes


class Tensor(NamedTuple):
    """What is known of a tensor.

    Attributes:
        shape: the dimensions behind the batch, or all of a constant.
        batched: True if there is a batch in front of them.
        values: of a short int64 constant, else None.
    """

    shape: tuple[int, ...]
    batched: bool = True
    values: tuple[int, ...] | None = None


Rule = Callable[[Sequence[Tensor], Attributes], Sequence[Tensor]]


@dataclass(frozen=True)
class Operator:
    """An operator: the number of its inputs, the types of its attributes (all required), its rule.

    `optional`: attributes that may be missing.
    """

    inputs: int
    rule: Rule
    attributes: Mapping[str, int] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()


def apply(node: Node, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a node. Raises GraphError if the node is not as edgelung writes it."""
    operator = OPERATORS.get(node.kind)
    if operator is None:
        raise GraphError(f"operator {node.kind!r}; expected one of {', '.join(OPERATORS)}")
    if len(inputs) != operator.inputs:
        raise GraphError(f"{len(inputs)} inputs; expected {operator.inputs}")
    given = _attributes(node.attributes, operator)
    outputs = operator.rule(inputs, given)
    if len(outputs) != len(node.outputs):
        raise GraphError(f"{len(node.outputs)} outputs; expected {len(outputs)}")
    for output in outputs:
        if min(output.shape, default=1) < 1:
            raise GraphError(f"an empty output {output.shape}")
        if math.prod(output.shape) > MAX_ELEMENTS:
            raise GraphError(
                f"an output of {math.prod(output.shape):,} numbers per tile; expected at most "
                f"{MAX_ELEMENTS:,}"
            )
    return outputs


def products(node: Node, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """The multiplications of a matrix product per tile; 0 for other operators."""
    if node.kind not in ("MatMul", "Gemm"):
        return 0
    return math.prod(outputs[0].shape) * inputs[0].shape[-1]


def _attributes(attributes: Sequence[Attribute], operator: Operator) -> Attributes:
    found = {attribute.name: attribute.type for attribute in attributes}
    required = operator.attributes.keys() - operator.optional
    if (
        len(found) != len(attributes)
        or not required <= found.keys()
        or any(operator.attributes.get(name) != kind for name, kind in found.items())
    ):
        raise GraphError(
            f"the attributes {', '.join(found) or 'none'}; expected "
            f"{', '.join(operator.attributes) or 'none'}"
        )
    return {attribute.name: attribute.value for attribute in attributes}


def _batched(tensor: Tensor) -> tuple[int, ...]:
    """The shape of an activation; refuses a constant."""
    if not tensor.batched:
        raise GraphError("a constant input; expected an activation")
    return tensor.shape


def _constant(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.batched or tensor.shape != shape:
        raise GraphError(f"a parameter of shape {tensor.shape}; expected a constant of {shape}")


def _integers(tensor: Tensor) -> tuple[int, ...]:
    if tensor.values is None:
        raise GraphError("a shape that is computed; expected a short int64 constant")
    return tensor.values


def _same(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    return [Tensor(_batched(inputs[0]))]


def _cast(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    if attributes["to"] not in (FLOAT, FLOAT16):
        raise GraphError(f"a cast to type {attributes['to']}; expected {FLOAT} or {FLOAT16}")
    return _same(inputs, attributes)


def _last_axis(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    if attributes["axis"] != -1 or not _batched(inputs[0]):
        raise GraphError(f"axis {attributes['axis']}; expected -1")
    return _same(inputs, attributes)


def _layer_norm(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    outputs = _last_axis(inputs, attributes)
    for parameter in inputs[1:]:
        _constant(parameter, outputs[0].shape[-1:])
    return outputs


def _quantize(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    for parameter in inputs[1:]:
        _constant(parameter, ())
    return _same(inputs, attributes)


def _dequantize(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    """Activations have one step; constant weights (in, out) have one per output channel."""
    x = inputs[0]
    per_channel = "axis" in attributes
    if per_channel and (attributes["axis"] != 1 or x.batched or len(x.shape) != 2):
        raise GraphError("steps per channel; expected them on axis 1 of a constant matrix only")
    for parameter in inputs[1:]:
        _constant(parameter, x.shape[1:] if per_channel else ())
    return [Tensor(x.shape, x.batched)]


def _broadcast(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    x, y = inputs
    shape = _batched(x)
    other = y.shape
    if not y.batched and len(other) == len(shape) + 1 and other[0] == 1:
        other = other[1:]  # a batch of one
    if len(other) > len(shape) or (y.batched and len(other) != len(shape)):
        raise GraphError(f"shapes {shape} and {other}; {BATCH_FIRST}")
    padded = (1,) * (len(shape) - len(other)) + other
    if any(a != b and b != 1 for a, b in zip(shape, padded, strict=True)):
        raise GraphError(f"shapes {shape} and {other}, which do not fit")
    return [Tensor(shape)]


def _matmul(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    shape, other = _batched(inputs[0]), inputs[1].shape
    rank = 2 if not inputs[1].batched else len(shape)
    if len(shape) < 2 or len(other) != rank or other[-2] != shape[-1]:
        raise GraphError(f"a product of {shape} and {other}, which do not fit")
    if inputs[1].batched and other[:-2] != shape[:-2]:
        raise GraphError(f"a product of {shape} and {other}, which do not fit")
    return [Tensor((*shape[:-1], other[-1]))]


def _gemm(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    shape, weight = _batched(inputs[0]), inputs[1]
    if len(shape) != 1 or weight.batched or len(weight.shape) != 2 or weight.shape[0] != shape[0]:
        raise GraphError(f"a product of {shape} and {weight.shape}, which do not fit")
    _constant(inputs[2], weight.shape[1:])
    return [Tensor(weight.shape[1:])]


def _transpose(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    shape, order = _batched(inputs[0]), attributes["perm"]
    if not isinstance(order, tuple) or sorted(order) != list(range(len(shape) + 1)) or order[0]:
        raise GraphError(f"perm {order}; {BATCH_FIRST}")
    return [Tensor(tuple(shape[axis - 1] for axis in order[1:]))]


def _reshape(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    shape, target = _batched(inputs[0]), _integers(inputs[1])
    size = math.prod(shape)
    if target[:1] != (0,) or target.count(-1) > 1:
        raise GraphError(f"a reshape to {target}; {BATCH_FIRST}")
    new = [
        shape[i] if value == 0 and i < len(shape) else value for i, value in enumerate(target[1:])
    ]
    known = math.prod(value for value in new if value != -1)
    if -1 in new and known > 0:
        new[new.index(-1)] = size // known
    if math.prod(new) != size or min(new, default=1) < 1:
        raise GraphError(f"a reshape of {shape} to {target}, which do not fit")
    return [Tensor(tuple(new))]


def _pad(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    shape, pads = _batched(inputs[0]), _integers(inputs[1])
    rank = len(shape) + 1
    if len(pads) != 2 * rank or min(pads) < 0 or pads[0] or pads[rank]:
        raise GraphError(f"padding by {pads}; {BATCH_FIRST}")
    return [Tensor(tuple(n + pads[i] + pads[rank + i] for i, n in enumerate(shape, start=1)))]


def _slice(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    """One range of one axis, as counted from its start."""
    shape = _batched(inputs[0])
    bounds = [_integers(tensor) for tensor in inputs[1:]]
    if [len(values) for values in bounds] != [1, 1, 1]:
        raise GraphError("a slice of several axes; expected one")
    start, end, axis = (values[0] for values in bounds)
    if not 1 <= axis <= len(shape) or not 0 <= start < end <= shape[axis - 1]:
        raise GraphError(f"a slice {start}:{end} of axis {axis} of {shape}; {BATCH_FIRST}")
    return [Tensor((*shape[: axis - 1], end - start, *shape[axis:]))]


def _reduce(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    """The first axis behind the batch is taken out."""
    shape = _batched(inputs[0])
    if _integers(inputs[1]) != (1,) or attributes["keepdims"] != 0 or not shape:
        raise GraphError(f"a reduction of {inputs[1].values} of {shape}; expected of axis 1 alone")
    return [Tensor(shape[1:])]


def _split(inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    shape, parts = _batched(inputs[0]), attributes["num_outputs"]
    if (
        not isinstance(parts, int)
        or parts not in (2, 3)
        or attributes["axis"] != -1
        or not shape
        or shape[-1] % parts
    ):
        raise GraphError(f"a split of {shape} into {parts}; expected 2 or 3 of the last axis")
    return [Tensor((*shape[:-1], shape[-1] // parts))] * parts


OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(2, _broadcast),
    "Cast": Operator(1, _cast, {"to": _INT}),
    "DequantizeLinear": Operator(3, _dequantize, {"axis": _INT}, frozenset({"axis"})),
    "Gelu": Operator(1, _same),
    "Gemm": Operator(3, _gemm),
    "LayerNormalization": Operator(3, _layer_norm, {"axis": _INT, "epsilon": _FLOAT}),
    "MatMul": Operator(2, _matmul),
    "Mul": Operator(2, _broadcast),
    "Pad": Operator(2, _pad),
    "QuantizeLinear": Operator(3, _quantize),
    "ReduceMean": Operator(2, _reduce, {"keepdims": _INT}),
    "ReduceMin": Operator(2, _reduce, {"keepdims": _INT}),
    "Reshape": Operator(2, _reshape),
    "Slice": Operator(4, _slice),
    "Softmax": Operator(1, _last_axis, {"axis": _INT}),
    "Split": Operator(1, _split, {"axis": _INT, "num_outputs": _INT}),
    "Sub": Operator(2, _broadcast),
    "Transpose": Operator(1, _transpose, {"perm": _INTS}),
}
