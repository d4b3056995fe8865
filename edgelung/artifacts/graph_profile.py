"""What a graph must look like before a runtime sees it: a table by the graph's role.

A runtime runs whatever a file says: it reads other files (external data), loops for ever, or takes
another output for the probabilities. So a graph is checked here first, from the bytes that will be
loaded. To allow a new kind of graph, add a role with its `Profile`; to allow a new operator, add
its rule to `graph_shapes.OPERATORS`. Then raise `bundle.GRAPH_RULES`: verdicts are cached.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from edgelung.artifacts.graph_shapes import (
    ELEMENT_BYTES,
    FLOAT,
    INT64,
    MAX_PRODUCTS,
    UINT8,
    Tensor,
    apply,
    products,
)
from edgelung.artifacts.onnx_wire import Constant, Graph, GraphError, Value, read_graph

BATCH = "N"
IR_VERSION, OPSET = 9, 20  # what the exporter writes
MAX_SHORT = 16  # integers of a shape


class Role(StrEnum):
    """What a graph is for."""

    CLASSIFIER = "classifier"
    SCORED_CLASSIFIER = "scored-classifier"  # also tells how far a tile is from training tiles
    FIRST_STAGE = "first-stage"  # the same up to an early exit, and the tokens there
    SECOND_STAGE = "second-stage"  # from those tokens to the end


@dataclass(frozen=True)
class Port:
    """An input or output. A dimension is a number, `BATCH`, or a name of `check_graph`'s sizes."""

    name: str
    type: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Profile:
    """The inputs and outputs of a role, in their order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


_TILES = Port("tiles", UINT8, (BATCH, "size", "size", 3))
_PROBS = Port("probs", FLOAT, (BATCH, "classes"))
_OOD = Port("ood", FLOAT, (BATCH,))
_TOKENS = Port("tokens", FLOAT, (BATCH, "tokens", "width"))
PROFILES: Mapping[Role, Profile] = {
    Role.CLASSIFIER: Profile(inputs=(_TILES,), outputs=(_PROBS,)),
    Role.SCORED_CLASSIFIER: Profile(inputs=(_TILES,), outputs=(_PROBS, _OOD)),
    Role.FIRST_STAGE: Profile(inputs=(_TILES,), outputs=(_PROBS, _OOD, _TOKENS)),
    Role.SECOND_STAGE: Profile(inputs=(_TOKENS,), outputs=(_PROBS, _OOD)),
}


def check_graph(data: bytes, role: Role, sizes: Mapping[str, int]) -> None:
    """Check an ONNX file against the profile of its role.

    Args:
        data: the file.
        role: what the graph is for.
        sizes: the dimensions that the profile names, such as `size` and `classes`.

    Raises:
        GraphError: names the first thing that is not as edgelung's exporter writes it.
    """
    graph, profile = read_graph(data), PROFILES[role]
    if graph.ir_version != IR_VERSION or graph.opsets != (("", OPSET),):
        raise GraphError(
            f"IR version {graph.ir_version} and operator sets {graph.opsets}; expected "
            f"{IR_VERSION} and ONNX's operator set {OPSET} alone"
        )
    tensors = _ports("input", graph.inputs, profile.inputs, sizes)
    for constant in graph.constants:
        _add(tensors, constant.name, _tensor(constant, data))
    _run(graph, tensors)
    for name, expected in _ports("output", graph.outputs, profile.outputs, sizes).items():
        if (found := tensors.get(name)) != expected:
            raise GraphError(
                f"the output {name!r} is computed as {found.shape if found else 'nothing'}; "
                f"expected {expected.shape} behind the batch"
            )


def _ports(
    what: str, found: Sequence[Value], expected: Sequence[Port], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Check the declared inputs or outputs, and return them."""
    resolved = [
        Value(
            port.name,
            port.type,
            tuple(n if n == BATCH or isinstance(n, int) else sizes[n] for n in port.shape),
        )
        for port in expected
    ]
    if list(found) != resolved:
        raise GraphError(f"the {what}s {_describe(found)}; expected {_describe(resolved)}")
    return {
        value.name: Tensor(tuple(n for n in value.shape[1:] if isinstance(n, int)))
        for value in resolved
    }


def _describe(values: Sequence[Value]) -> str:
    names = {FLOAT: "float32", UINT8: "uint8"}
    return ", ".join(
        f"{value.name} {names.get(value.type, f'type {value.type}')} "
        f"[{', '.join(map(str, value.shape))}]"
        for value in values[:4]
    )


def _tensor(constant: Constant, data: bytes) -> Tensor:
    """Check that a constant's bytes are those of its shape and type."""
    name, kind, shape, start, end = constant
    if kind not in ELEMENT_BYTES or min(shape, default=1) < 1:
        raise GraphError(
            f"the initializer {name!r} of type {kind} and shape {shape}; expected one of the types "
            f"{', '.join(map(str, ELEMENT_BYTES))} and no dimension below 1"
        )
    if (expected := math.prod(shape) * ELEMENT_BYTES[kind]) != end - start:
        raise GraphError(
            f"the initializer {name!r} of {end - start:,} bytes; its shape {shape} needs "
            f"{expected:,}"
        )
    values = None
    if kind == INT64 and len(shape) == 1 and shape[0] <= MAX_SHORT:
        values = struct.unpack_from(f"<{shape[0]}q", data, start)
    return Tensor(shape, batched=False, values=values)


def _run(graph: Graph, tensors: dict[str, Tensor]) -> None:
    """Add the outputs of all nodes, in their order, to `tensors`."""
    total = 0
    for node in graph.nodes:
        try:
            if unknown := [name for name in node.inputs if name not in tensors]:
                raise GraphError(f"the input {unknown[0]!r}, which nothing before it computes")
            inputs = [tensors[name] for name in node.inputs]
            outputs = apply(node, inputs)
            for name, tensor in zip(node.outputs, outputs, strict=True):
                _add(tensors, name, tensor)
            if (total := total + products(node, inputs, outputs)) > MAX_PRODUCTS:
                raise GraphError(f"more than {MAX_PRODUCTS:,} multiplications per tile")
        except GraphError as error:
            raise GraphError(f"the node {node.name or node.kind!r} has {error}") from error


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if not name or name in tensors:
        raise GraphError(f"two tensors of the name {name!r}; expected one each")
    tensors[name] = tensor
