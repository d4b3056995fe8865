"""Read an ONNX file's protobuf encoding into typed values, without the onnx package.

Only the fields that edgelung's exporter writes are read; a file with any other field is refused. So
there is nothing in a file that this reader does not see and a runtime does: no subgraphs, functions
or external data. Weights are not copied.

The encoding is read strictly: no field more often than its limit, no group, no padded number, no
length that leaves its message. No message holds one of its own kind, which bounds the depth.

Reference: https://protobuf.dev/programming-guides/encoding and onnx.proto of ONNX 1.17.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

MAX_NAME = 256  # characters of a name
MAX_NODES = 1 << 14  # and initializers; DeiT-B has 600
MAX_PORTS = 16  # inputs and outputs of a graph or a node, and its attributes
MAX_RANK = 8

VARINT, LENGTH, FIXED32 = 0, 2, 5  # protobuf's wire types
_MAX_VARINT_BYTES = 10


class GraphError(ValueError):
    """The file is no ONNX file, or not one that edgelung reads: what was found and expected."""


class Attribute(NamedTuple):
    """An attribute of a node: an int, a float or a list of ints, as ONNX's type number says."""

    name: str
    type: int
    value: int | float | tuple[int, ...]


class Node(NamedTuple):
    """An operator with the names of its inputs and outputs."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[Attribute, ...]


class Constant(NamedTuple):
    """An initializer. Its data are the file's bytes from `start` to `end`."""

    name: str
    type: int
    shape: tuple[int, ...]
    start: int
    end: int


class Value(NamedTuple):
    """An input or output of the graph; a dimension is a number, or a name if it is symbolic."""

    name: str
    type: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """What an ONNX file holds. `opsets`: domain and version of each operator set."""

    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    nodes: tuple[Node, ...]
    constants: tuple[Constant, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    data: bytes = field(repr=False)


class _Field(NamedTuple):
    """A field, its wire type, and how often it may stand in a message."""

    name: str
    wire: int
    limit: int = 1


@dataclass(frozen=True)
class _Kind:
    """A kind of message: the fields that are read, and names of some that are refused."""

    name: str
    fields: Mapping[int, _Field]
    refused: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def by_tag(self) -> dict[int, _Field]:
        """The fields by what stands before them in the file: number and wire type."""
        return {number << 3 | known.wire: known for number, known in self.fields.items()}

    def refusal(self, tag: int) -> GraphError:
        """The error for a field that is not read."""
        if known := self.fields.get(tag >> 3):
            return GraphError(f"the field {known.name} of {self.name} is encoded as another type")
        name = self.refused.get(tag >> 3, f"number {tag >> 3}")
        return GraphError(f"{self.name} has the field {name}, which edgelung never writes")

    def repeated(self, known: _Field) -> GraphError:
        """The error for a field that stands there too often."""
        return GraphError(f"{self.name} has the field {known.name} more than {known.limit} times")


_MODEL = _Kind(
    "the model",
    {
        1: _Field("ir_version", VARINT),
        2: _Field("producer_name", LENGTH),
        7: _Field("graph", LENGTH),
        8: _Field("opset_import", LENGTH, MAX_PORTS),
    },
    {6: "doc_string", 14: "metadata_props", 20: "training_info", 25: "functions"},
)
_OPSET = _Kind("an operator set", {1: _Field("domain", LENGTH), 2: _Field("version", VARINT)})
_GRAPH = _Kind(
    "the graph",
    {
        1: _Field("node", LENGTH, MAX_NODES),
        2: _Field("name", LENGTH),
        5: _Field("initializer", LENGTH, MAX_NODES),
        11: _Field("input", LENGTH, MAX_PORTS),
        12: _Field("output", LENGTH, MAX_PORTS),
    },
    {
        10: "doc_string",
        13: "value_info",
        14: "quantization_annotation",
        15: "sparse_initializer",
        16: "metadata_props",
    },
)
_NODE = _Kind(
    "a node",
    {
        1: _Field("input", LENGTH, MAX_PORTS),
        2: _Field("output", LENGTH, MAX_PORTS),
        3: _Field("name", LENGTH),
        4: _Field("op_type", LENGTH),
        5: _Field("attribute", LENGTH, MAX_PORTS),
    },
    {6: "doc_string", 7: "domain (of another operator set)", 8: "overload", 9: "metadata_props"},
)
_ATTRIBUTE = _Kind(
    "an attribute",
    {
        1: _Field("name", LENGTH),
        2: _Field("f", FIXED32),
        3: _Field("i", VARINT),
        8: _Field("ints", VARINT, MAX_RANK),
        20: _Field("type", VARINT),
    },
    {
        4: "s (a string)",
        5: "t (a tensor)",
        6: "g (a subgraph)",
        7: "floats",
        9: "strings",
        10: "tensors",
        11: "graphs",
        13: "doc_string",
        21: "ref_attr_name",
        22: "sparse_tensor",
        23: "sparse_tensors",
    },
)
_TENSOR = _Kind(
    "an initializer",
    {
        1: _Field("dims", VARINT, MAX_RANK),
        2: _Field("data_type", VARINT),
        8: _Field("name", LENGTH),
        9: _Field("raw_data", LENGTH),
    },
    {
        3: "segment",
        4: "float_data",
        5: "int32_data",
        6: "string_data",
        7: "int64_data",
        10: "double_data",
        11: "uint64_data",
        13: "external_data (a file elsewhere)",
        14: "data_location",
    },
)
_VALUE = _Kind("an input or output", {1: _Field("name", LENGTH), 2: _Field("type", LENGTH)})
_TYPE = _Kind(
    "a type",
    {1: _Field("tensor_type", LENGTH)},
    {4: "sequence_type", 5: "map_type", 8: "sparse_tensor_type", 9: "optional_type"},
)
_TENSOR_TYPE = _Kind("a tensor type", {1: _Field("elem_type", VARINT), 2: _Field("shape", LENGTH)})
_SHAPE = _Kind("a shape", {1: _Field("dim", LENGTH, MAX_RANK)})
_DIMENSION = _Kind("a dimension", {1: _Field("dim_value", VARINT), 2: _Field("dim_param", LENGTH)})

_FLOAT, _INT, _INTS = 1, 2, 7  # AttributeProto.AttributeType
_FIELD_OF_TYPE = {_FLOAT: "f", _INT: "i", _INTS: "ints"}


class _Message:
    """The fields of one message: numbers, and places of strings, bytes and messages."""

    __slots__ = ("data", "kind", "numbers", "places")

    def __init__(self, data: bytes, start: int, end: int, kind: _Kind) -> None:
        self.data, self.kind = data, kind
        self.numbers: dict[str, list[int]] = {}
        self.places: dict[str, list[tuple[int, int]]] = {}
        fields, position = kind.by_tag, start
        while position < end:
            tag, position = data[position], position + 1
            if tag >= 0x80:
                tag, position = _varint(data, position - 1, end)
            known = fields.get(tag)
            if known is None:
                raise kind.refusal(tag)
            name, wire, limit = known
            if wire == FIXED32:
                number = 4
            else:
                number, position = _varint(data, position, end)
            if wire == VARINT:
                numbers = self.numbers.setdefault(name, [])
                if len(numbers) == limit:
                    raise kind.repeated(known)
                numbers.append(number)
                continue
            if number > end - position:
                raise GraphError(f"the field {name} of {kind.name} ends beyond it (truncated)")
            places = self.places.setdefault(name, [])
            if len(places) == limit:
                raise kind.repeated(known)
            places.append((position, position + number))
            position += number

    def integers(self, name: str) -> tuple[int, ...]:
        """All values of an int64 field."""
        return tuple(
            value - (1 << 64) if value >> 63 else value for value in self.numbers.get(name, ())
        )

    def integer(self, name: str) -> int:
        """The value of an int64 field, which must be there."""
        if name not in self.numbers:
            raise GraphError(f"{self.kind.name} lacks the field {name}")
        return self.integers(name)[0]

    def place(self, name: str) -> tuple[int, int]:
        """Start and end of a field, which must be there."""
        if name not in self.places:
            raise GraphError(f"{self.kind.name} lacks the field {name}")
        return self.places[name][0]

    def texts(self, name: str) -> tuple[str, ...]:
        """All values of a string field."""
        return tuple(self._text(name, place) for place in self.places.get(name, ()))

    def text(self, name: str) -> str:
        """The value of a string field, or ''."""
        return next(iter(self.texts(name)), "")

    def messages(self, name: str, kind: _Kind) -> "list[_Message]":
        """All messages in a field."""
        return [_Message(self.data, *place, kind) for place in self.places.get(name, ())]

    def message(self, name: str, kind: _Kind) -> "_Message":
        """The message in a field, which must be there."""
        return _Message(self.data, *self.place(name), kind)

    def _text(self, name: str, place: tuple[int, int]) -> str:
        start, end = place
        text = self.data[start : min(end, start + MAX_NAME + 1)]
        if len(text) > MAX_NAME or not (
            text.isascii() and (decoded := text.decode()).isprintable()
        ):
            raise GraphError(
                f"the field {name} of {self.kind.name} is not printable ASCII of at most "
                f"{MAX_NAME} characters"
            )
        return decoded


def read_graph(data: bytes) -> Graph:
    """Read an ONNX file. Raises GraphError for anything that edgelung's exporter never writes."""
    model = _Message(data, 0, len(data), _MODEL)
    graph = model.message("graph", _GRAPH)
    return Graph(
        ir_version=model.integer("ir_version"),
        opsets=tuple(
            (opset.text("domain"), opset.integer("version"))
            for opset in model.messages("opset_import", _OPSET)
        ),
        nodes=tuple(map(_node, graph.messages("node", _NODE))),
        constants=tuple(map(_constant, graph.messages("initializer", _TENSOR))),
        inputs=tuple(map(_value, graph.messages("input", _VALUE))),
        outputs=tuple(map(_value, graph.messages("output", _VALUE))),
        data=data,
    )


def _node(node: _Message) -> Node:
    return Node(
        node.text("op_type"),
        node.text("name"),
        node.texts("input"),
        node.texts("output"),
        tuple(map(_attribute, node.messages("attribute", _ATTRIBUTE))),
    )


def _attribute(attribute: _Message) -> Attribute:
    name, kind = attribute.text("name"), attribute.integer("type")
    own = _FIELD_OF_TYPE.get(kind)
    others = (attribute.numbers.keys() | attribute.places.keys()) - {"name", "type", own}
    if own is None or others:
        raise GraphError(f"the attribute {name} is not one int, one float or a list of ints")
    if kind == _FLOAT:
        start, _ = attribute.place("f")
        (number,) = struct.unpack_from("<f", attribute.data, start)
        return Attribute(name, kind, number)
    values = attribute.integers(own)
    return Attribute(name, kind, attribute.integer("i") if kind == _INT else values)


def _constant(tensor: _Message) -> Constant:
    start, end = tensor.place("raw_data")
    shape = tensor.integers("dims")
    return Constant(tensor.text("name"), tensor.integer("data_type"), shape, start, end)


def _value(value: _Message) -> Value:
    tensor = value.message("type", _TYPE).message("tensor_type", _TENSOR_TYPE)
    dimensions = tensor.message("shape", _SHAPE).messages("dim", _DIMENSION)
    shape = tuple(map(_dimension, dimensions))
    return Value(value.text("name"), tensor.integer("elem_type"), shape)


def _dimension(dimension: _Message) -> int | str:
    if dimension.numbers and dimension.places:  # runtimes take the one that comes last
        raise GraphError("a dimension is a number and a name at once")
    return dimension.text("dim_param") if dimension.places else dimension.integer("dim_value")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Decode a varint at `position`; returns the value and the position behind it."""
    if position < end and (byte := data[position]) < 0x80:
        return byte, position + 1
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if position >= end:
            raise GraphError("it ends within a number (truncated)")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if value >> 64 or (count and not byte):
                break
            return value, position
    raise GraphError("it holds a number of more than 64 bits, or one that is padded")
