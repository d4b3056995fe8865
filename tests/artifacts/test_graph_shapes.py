"""The shape rules of a graph's operators: what each computes, and what it refuses and why."""

import re
from pathlib import Path

import pytest

from edgelung.artifacts.graph_shapes import OPERATORS, Tensor, apply
from edgelung.artifacts.onnx_wire import Attribute, GraphError, Node

INT, FLOAT, INTS = 2, 1, 7


def row(*shape: int) -> Tensor:
    """An activation; the batch in front of its shape is left out."""
    return Tensor(shape)


def fixed(*shape: int) -> Tensor:
    return Tensor(shape, batched=False)


def integers(*values: int) -> Tensor:
    return Tensor((len(values),), batched=False, values=values)


def shapes(kind: str, inputs: list[Tensor], outputs: int = 1, **attributes: object) -> list[tuple]:
    types = {int: INT, float: FLOAT, tuple: INTS}
    given = tuple(
        Attribute(name, types[type(value)], value)  # type: ignore[index, arg-type]
        for name, value in attributes.items()
    )
    names = tuple(f"out{i}" for i in range(outputs))
    return [tensor.shape for tensor in apply(Node(kind, "n", (), names, given), inputs)]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "shape"),
    [
        ("Cast", [row(8, 8, 3)], {"to": 1}, (8, 8, 3)),
        ("Gelu", [row(4, 6)], {}, (4, 6)),
        ("Softmax", [row(4, 6)], {"axis": -1}, (4, 6)),
        ("LayerNormalization", [row(4, 6), fixed(6), fixed(6)], {"axis": -1, "epsilon": 1e-6},
         (4, 6)),
        ("QuantizeLinear", [row(4, 6), fixed(), fixed()], {}, (4, 6)),
        ("DequantizeLinear", [row(4, 6), fixed(), fixed()], {}, (4, 6)),
        ("DequantizeLinear", [fixed(6, 9), fixed(9), fixed(9)], {"axis": 1}, (6, 9)),
        ("Add", [row(4, 6), row(4, 6)], {}, (4, 6)),
        ("Add", [row(4, 6), fixed(6)], {}, (4, 6)),
        ("Add", [row(4, 6), fixed(1, 4, 6)], {}, (4, 6)),
        ("Mul", [row(4, 6), fixed()], {}, (4, 6)),
        ("Sub", [row(4, 6), fixed(4, 1)], {}, (4, 6)),
        ("MatMul", [row(4, 6), fixed(6, 9)], {}, (4, 9)),
        ("MatMul", [row(2, 4, 6), row(2, 6, 4)], {}, (2, 4, 4)),
        ("Gemm", [row(6), fixed(6, 2), fixed(2)], {}, (2,)),
        ("Transpose", [row(4, 6)], {"perm": (0, 2, 1)}, (6, 4)),
        ("Reshape", [row(4, 6), integers(0, 0, 2, 3)], {}, (4, 2, 3)),
        ("Reshape", [row(4, 6), integers(0, -1)], {}, (24,)),
        ("Pad", [row(4, 6), integers(0, 2, 0, 0, 1, 0)], {}, (7, 6)),
        ("Slice", [row(4, 6), integers(0), integers(2), integers(1)], {}, (2, 6)),
    ],
)  # fmt: skip
def test_what_an_operator_computes(
    kind: str, inputs: list[Tensor], attributes: dict, shape: tuple
) -> None:
    assert shapes(kind, inputs, **attributes) == [shape]


def test_a_split_gives_equal_parts() -> None:
    assert shapes("Split", [row(4, 6)], 3, axis=-1, num_outputs=3) == [(4, 2)] * 3


BATCH = "batch that stays the first dimension"


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "reason"),
    [
        ("Loop", [], {}, "operator 'Loop'; expected one of Add, Cast"),
        ("Gelu", [], {}, "0 inputs; expected 1"),
        ("Gelu", [row(4)] * 2, {}, "2 inputs; expected 1"),
        ("Gelu", [fixed(4)], {}, "expected an activation"),
        ("Gelu", [row(1 << 14, 1 << 14)], {}, "268,435,456 numbers per tile"),
        ("Gelu", [row(4)], {"approximate": 1}, "the attributes approximate; expected none"),
        ("Cast", [row(4)], {}, "the attributes none; expected to"),
        ("Cast", [row(4)], {"to": 8}, "a cast to type 8"),
        ("Cast", [row(4)], {"to": 1.0}, "the attributes to; expected to"),
        ("Softmax", [row(4, 6)], {"axis": 1}, "axis 1; expected -1"),
        ("Softmax", [row()], {"axis": -1}, "axis -1"),
        ("LayerNormalization", [row(4, 6), fixed(4), fixed(6)], {"axis": -1, "epsilon": 1.0},
         "a parameter of shape"),
        ("LayerNormalization", [row(4, 6), row(6), fixed(6)], {"axis": -1, "epsilon": 1.0},
         "a parameter of shape"),
        ("QuantizeLinear", [row(4, 6), fixed(6), fixed(6)], {}, "a parameter of shape"),
        ("DequantizeLinear", [row(4, 6), fixed(6), fixed(6)], {"axis": 1}, "steps per channel"),
        ("DequantizeLinear", [fixed(6, 9), fixed(6), fixed(6)], {"axis": 0}, "steps per channel"),
        ("DequantizeLinear", [fixed(6, 9), fixed(6), fixed(6)], {"axis": 1}, "a parameter"),
        ("Add", [row(4, 6), row(6)], {}, BATCH),
        ("Add", [row(4, 1), row(4, 6)], {}, "do not fit"),
        ("Add", [row(4, 6), fixed(2, 4, 6)], {}, BATCH),
        ("Add", [row(4, 6), fixed(5, 6)], {}, "do not fit"),
        ("Add", [fixed(4, 6), row(4, 6)], {}, "expected an activation"),
        ("MatMul", [row(6), fixed(6, 2)], {}, "do not fit"),
        ("MatMul", [row(4, 6), fixed(5, 2)], {}, "do not fit"),
        ("MatMul", [row(4, 6), fixed(3, 6, 2)], {}, "do not fit"),
        ("MatMul", [row(2, 4, 6), row(3, 6, 4)], {}, "do not fit"),
        ("MatMul", [row(2, 4, 6), row(6, 4)], {}, "do not fit"),
        ("Gemm", [row(6), fixed(5, 2), fixed(2)], {}, "do not fit"),
        ("Gemm", [row(6), row(6, 2), fixed(2)], {}, "do not fit"),
        ("Gemm", [row(6), fixed(6, 2), fixed(3)], {}, "a parameter of shape"),
        ("Gemm", [row(4, 6), fixed(6, 2), fixed(2)], {}, "do not fit"),
        ("Transpose", [row(4, 6)], {"perm": (1, 0, 2)}, BATCH),
        ("Transpose", [row(4, 6)], {"perm": (0, 1, 1)}, BATCH),
        ("Transpose", [row(4, 6)], {"perm": (0, 1, 2, 3)}, BATCH),
        ("Reshape", [row(4, 6), integers(-1, 24)], {}, BATCH),
        ("Reshape", [row(4, 6), integers(1, 24)], {}, BATCH),
        ("Reshape", [row(4, 6), integers()], {}, BATCH),
        ("Reshape", [row(4, 6), integers(0, -1, -1)], {}, BATCH),
        ("Reshape", [row(4, 6), integers(0, 25)], {}, "do not fit"),
        ("Reshape", [row(4, 6), integers(0, 5, -1)], {}, "do not fit"),
        ("Reshape", [row(4, 6), integers(0, -2, -12)], {}, "do not fit"),
        ("Reshape", [row(4, 6), integers(0, 4, 6, 0)], {}, "do not fit"),
        ("Reshape", [row(4, 6), row(3)], {}, "short int64 constant"),
        ("Pad", [row(4, 6), integers(1, 0, 0, 0, 0, 0)], {}, BATCH),
        ("Pad", [row(4, 6), integers(0, 0, 0, 1, 0, 0)], {}, BATCH),
        ("Pad", [row(4, 6), integers(0, -1, 0, 0, 0, 0)], {}, "padding by"),
        ("Pad", [row(4, 6), integers(0, 1)], {}, "padding by"),
        ("Pad", [row(4, 6), integers(0, 1 << 62, 0, 0, 0, 0)], {}, "numbers per tile"),
        ("Slice", [row(4, 6), integers(0), integers(1), integers(0)], {}, BATCH),
        ("Slice", [row(4, 6), integers(0), integers(5), integers(1)], {}, "a slice 0:5"),
        ("Slice", [row(4, 6), integers(2), integers(2), integers(1)], {}, "a slice 2:2"),
        ("Slice", [row(4, 6), integers(-1), integers(2), integers(1)], {}, "a slice -1:2"),
        ("Slice", [row(4, 6), integers(0), integers(1), integers(3)], {}, "of axis 3"),
        ("Slice", [row(4, 6), integers(0, 0), integers(1, 1), integers(1, 2)], {}, "expected one"),
        ("Split", [row(4, 6)], {"axis": -1, "num_outputs": 4}, "a split of"),
        ("Split", [row(4, 5)], {"axis": -1, "num_outputs": 2}, "a split of"),
        ("Split", [row(4, 6)], {"axis": 0, "num_outputs": 2}, "a split of"),
        ("Split", [row(4, 6)], {"axis": -1, "num_outputs": 2}, "1 outputs; expected 2"),
    ],
)  # fmt: skip
def test_what_an_operator_refuses(
    kind: str, inputs: list[Tensor], attributes: dict, reason: str
) -> None:
    with pytest.raises(GraphError, match=reason):
        shapes(kind, inputs, **attributes)


def test_an_attribute_that_is_there_twice_is_refused() -> None:
    node = Node("Softmax", "n", (), ("y",), (Attribute("axis", INT, -1),) * 2)
    with pytest.raises(GraphError, match="the attributes axis"):
        apply(node, [row(4)])


def test_the_page_lists_the_operators() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "bundles.md"
    table = page.read_text("utf-8").split("| operator |")[1].split("\n\n")[0]
    named = {
        name
        for line in table.splitlines()[2:]
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == set(OPERATORS)
