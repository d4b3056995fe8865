"""What a graph may hold: whatever edgelung's exporter never writes is refused before a runtime.

Each case is one change to a graph that is accepted (`tiny.tiny_model`).
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from tiny import CLASSES, SIZE, tiny_bundle, tiny_model

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.artifacts.graph_profile import Role, check_graph
from edgelung.artifacts.onnx_wire import GraphError, read_graph
from edgelung.core.errors import EdgelungError

SIZES = {"size": SIZE, "classes": len(CLASSES)}
Change = Callable[[onnx.ModelProto], object]


def check(data: bytes) -> None:
    check_graph(data, Role.CLASSIFIER, SIZES)


def initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def external(tensor: TensorProto, location: str) -> None:
    """Let the tensor's data come from another file."""
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")


def insert(model: onnx.ModelProto, kind: str, inputs: list[str], **options: object) -> None:
    """Put a node behind the logits: `softmax` takes what it computes."""
    outputs = options.pop("outputs", ["inserted"])
    node = helper.make_node(kind, inputs, outputs, "inserted", **options)
    model.graph.node.insert(3, node)
    model.graph.node[4].input[0] = outputs[0]


def constant(model: onnx.ModelProto, name: str, value: object, dtype: type = np.int64) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def body(*tensors: TensorProto) -> onnx.GraphProto:
    """A subgraph with constants of its own."""
    empty = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", [tensors[0].name], ["y"])
    return helper.make_graph([node], "body", [], [empty], list(tensors))


def hidden() -> TensorProto:
    """A tensor whose data lie in a file of somebody's choice."""
    tensor = numpy_helper.from_array(np.zeros(1, np.float32), "hidden")
    external(tensor, "/etc/passwd")
    return tensor


def plain() -> TensorProto:
    return numpy_helper.from_array(np.zeros(1, np.float32), "plain")


def add_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(hidden())
    sparse.dims.append(1)


def add_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    opset = helper.make_opsetid("", 20)
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [node], [opset]))


def attribute_of(model: onnx.ModelProto, **fields: object) -> AttributeProto:
    """The attribute of the softmax, changed."""
    attribute = model.graph.node[3].attribute[0]
    for name, value in fields.items():
        setattr(attribute, name, value)
    return attribute


def dimension(values: list, place: int) -> onnx.TensorShapeProto.Dimension:
    return values[0].type.tensor_type.shape.dim[place]


def reshape_to(model: onnx.ModelProto, *shape: int) -> None:
    insert(model, "Reshape", ["logits", constant(model, "shape", shape)])


def outer_product(model: onnx.ModelProto) -> None:
    """(N, 2**20, 1) times (1, 2**20), from a constant of 4 MB."""
    row = constant(model, "row", np.zeros((1, 1 << 20)), np.float32)
    column = constant(model, "column", [0, 2, 1])
    pads = constant(model, "pads", [0, 0, 0, 0, (1 << 20) - 2, 0])
    insert(model, "MatMul", ["padded", row], outputs=["product"])
    insert(model, "Pad", ["folded", pads], outputs=["padded"])
    insert(model, "Reshape", ["logits", column], outputs=["folded"])
    model.graph.node[6].input[0] = "product"


ELSEWHERE: dict[str, Change] = {
    "an absolute path": lambda m: external(initializer(m, "weight"), "/etc/passwd"),
    "a file beside the graph": lambda m: external(initializer(m, "weight"), "w.bin"),
    "a path that climbs": lambda m: external(initializer(m, "weight"), "../../w.bin"),
    "a location alone": lambda m: setattr(
        initializer(m, "weight"), "data_location", TensorProto.EXTERNAL
    ),
    "a tensor in an attribute": lambda m: insert(m, "Constant", [], value=hidden()),
    "tensors in an attribute": lambda m: m.graph.node[3].attribute.append(
        AttributeProto(name="all", type=AttributeProto.TENSORS, tensors=[hidden()])
    ),
    "a subgraph": lambda m: insert(
        m, "If", ["logits"], then_branch=body(hidden()), else_branch=body(hidden())
    ),
    "a sparse initializer": add_sparse,
    "a sparse attribute": lambda m: m.graph.node[3].attribute.append(
        AttributeProto(name="all", type=AttributeProto.SPARSE_TENSOR)
    ),
    "training info": lambda m: m.training_info.add().algorithm.CopyFrom(body(hidden())),
}

CONTROL: dict[str, Change] = {
    "Loop": lambda m: insert(m, "Loop", ["flat", ""], body=body(plain())),
    "Scan": lambda m: insert(m, "Scan", ["logits"], body=body(plain()), num_scan_inputs=1),
    "If": lambda m: insert(
        m, "If", ["logits"], then_branch=body(plain()), else_branch=body(plain())
    ),
    "a function": add_function,
    "a call of a function": lambda m: insert(m, "F", ["logits"], domain="own"),
    "another domain": lambda m: insert(m, "Gelu", ["logits"], domain="com.microsoft"),
    "ONNX's other name": lambda m: insert(m, "Gelu", ["logits"], domain="ai.onnx"),
    "an unused operator set": lambda m: m.opset_import.append(
        helper.make_opsetid("com.microsoft", 1)
    ),
    "an operator set twice": lambda m: m.opset_import.append(helper.make_opsetid("", 20)),
    "no operator set": lambda m: m.ClearField("opset_import"),
    "an older operator set": lambda m: setattr(m.opset_import[0], "version", 13),
    "a newer operator set": lambda m: setattr(m.opset_import[0], "version", 26),
    "a newer IR": lambda m: setattr(m, "ir_version", 13),
    "metadata": lambda m: m.metadata_props.add(key="a", value="b"),
    "metadata of the graph": lambda m: m.graph.metadata_props.add(key="a", value="b"),
    "metadata of a node": lambda m: m.graph.node[0].metadata_props.add(key="a", value="b"),
    "a quantization annotation": lambda m: m.graph.quantization_annotation.add(tensor_name="x"),
    "declared inner shapes": lambda m: m.graph.value_info.append(m.graph.output[0]),
    "a note": lambda m: setattr(m.graph, "doc_string", "note"),
}

PORTS: dict[str, Change] = {
    "another output's name": lambda m: (
        m.graph.node[3].output.__setitem__(0, "scores"),
        setattr(m.graph.output[0], "name", "scores"),
    ),
    "another input's name": lambda m: (
        m.graph.node[0].input.__setitem__(0, "pixels"),
        setattr(m.graph.input[0], "name", "pixels"),
    ),
    "a float input": lambda m: setattr(
        m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT
    ),
    "a double output": lambda m: setattr(
        m.graph.output[0].type.tensor_type, "elem_type", TensorProto.DOUBLE
    ),
    "a second output": lambda m: m.graph.output.append(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])
    ),
    "a second output in front": lambda m: m.graph.output.insert(
        0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])
    ),
    "a second input": lambda m: m.graph.input.append(
        helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])
    ),
    "an input that is also a constant": lambda m: m.graph.input.append(
        helper.make_tensor_value_info("bias", TensorProto.FLOAT, [2])
    ),
    "a fixed batch": lambda m: setattr(dimension(m.graph.input, 0), "dim_value", 1),
    "a batch of another name": lambda m: setattr(dimension(m.graph.input, 0), "dim_param", "M"),
    "tiles of another size": lambda m: setattr(dimension(m.graph.input, 1), "dim_value", 32),
    "tiles of any size": lambda m: setattr(dimension(m.graph.input, 1), "dim_param", "H"),
    "another number of classes": lambda m: setattr(dimension(m.graph.output, 1), "dim_value", 3),
    "no shape": lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"),
    "a sequence": lambda m: m.graph.output[0].type.CopyFrom(
        helper.make_sequence_type_proto(m.graph.output[0].type)
    ),
    "an output that nothing computes": lambda m: m.graph.node[3].output.__setitem__(0, "other"),
    "an output of another shape than declared": lambda m: (
        initializer(m, "bias").CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), "bias")),
        initializer(m, "weight").CopyFrom(
            numpy_helper.from_array(np.zeros((SIZE * SIZE * 3, 3), np.float32), "weight")
        ),
    ),
}

MEMORY: dict[str, Change] = {
    "ConstantOfShape": lambda m: insert(m, "ConstantOfShape", ["flat"]),
    "Expand": lambda m: insert(m, "Expand", ["logits", constant(m, "to", [1 << 40, 2])]),
    "Tile": lambda m: insert(m, "Tile", ["logits", constant(m, "by", [1, 1 << 40])]),
    "Range": lambda m: insert(m, "Range", ["flat", "flat", "flat"]),
    "Resize": lambda m: insert(m, "Resize", ["logits", "", "flat"]),
    "a reshape that grows": lambda m: reshape_to(m, 0, 1 << 40),
    "a reshape by −1 that does not fit": lambda m: reshape_to(m, 0, 3, -1),
    "a reshape with two unknowns": lambda m: reshape_to(m, 0, -1, -1),
    "padding by terabytes": lambda m: insert(
        m, "Pad", ["logits", constant(m, "pads", [0, 1 << 40, 0, 0])]
    ),
    "padding that grows step by step": lambda m: [
        insert(m, "Pad", ["logits", constant(m, f"pads{i}", [0, 1 << 26, 0, 0])]) for i in range(3)
    ],
    "negative padding": lambda m: insert(m, "Pad", ["logits", constant(m, "pads", [0, -3, 0, 0])]),
    "a product of terabytes": outer_product,
    "a computed shape": lambda m: insert(m, "Reshape", ["logits", "logits"]),
    "an unused constant of negative dimensions": lambda m: m.graph.initializer.append(
        TensorProto(name="unused", dims=[-2, -1], data_type=TensorProto.FLOAT, raw_data=bytes(8))
    ),
    "a dimension of zero with its bytes": lambda m: (
        initializer(m, "bias").ClearField("dims"),
        initializer(m, "bias").dims.extend([0, 2]),
    ),
    "dimensions whose product overflows": lambda m: (
        initializer(m, "bias").ClearField("dims"),
        initializer(m, "bias").dims.extend([1 << 62, 4, 2]),
    ),
    "a negative dimension": lambda m: (
        initializer(m, "bias").ClearField("dims"),
        initializer(m, "bias").dims.extend([-2]),
    ),
    "a dimension of zero": lambda m: (
        initializer(m, "bias").ClearField("dims"),
        initializer(m, "bias").dims.extend([0]),
        setattr(initializer(m, "bias"), "raw_data", b""),
    ),
    "too few bytes": lambda m: setattr(initializer(m, "bias"), "raw_data", b"\0" * 7),
    "too many bytes": lambda m: setattr(initializer(m, "bias"), "raw_data", b"\0" * 9),
    "no bytes": lambda m: initializer(m, "bias").ClearField("raw_data"),
    "a constant of many dimensions": lambda m: (
        initializer(m, "bias").ClearField("dims"),
        initializer(m, "bias").dims.extend([2, *[1] * 20]),
    ),
}

VALUES: dict[str, Change] = {
    "a typed list": lambda m: initializer(m, "bias").float_data.extend([0, 0]),
    "doubles": lambda m: initializer(m, "bias").CopyFrom(
        numpy_helper.from_array(np.zeros(2), "bias")
    ),
    "strings": lambda m: initializer(m, "bias").CopyFrom(
        helper.make_tensor("bias", TensorProto.STRING, [2], [b"a", b"b"])
    ),
    "a segment": lambda m: setattr(initializer(m, "bias").segment, "begin", 1),
    "a constant twice": lambda m: m.graph.initializer.append(initializer(m, "bias")),
    "a constant with the input's name": lambda m: constant(m, "tiles", [0.0], np.float32),
    "a constant without a name": lambda m: constant(m, "", [0.0], np.float32),
    "a result computed twice": lambda m: m.graph.node.append(m.graph.node[3]),
    "a result with a constant's name": lambda m: insert(m, "Gelu", ["logits"], outputs=["bias"]),
    "a node before its input": lambda m: (
        m.graph.node.append(m.graph.node[1]),
        m.graph.node.__delitem__(1),
    ),
    "a node that takes its own result": lambda m: insert(m, "Gelu", ["inserted"]),
    "an input left out": lambda m: insert(m, "Gelu", [""]),
    "an input too many": lambda m: insert(m, "Gelu", ["logits", "logits"]),
    "an output too many": lambda m: insert(m, "Gelu", ["logits"], outputs=["one", "two"]),
    "tiles that change places": lambda m: insert(m, "Transpose", ["logits"], perm=[1, 0]),
    "a softmax over the batch": lambda m: attribute_of(m, i=0),
    "a reshape that mixes tiles": lambda m: reshape_to(m, -1, 2),
    "a slice of the batch": lambda m: insert(
        m, "Slice", ["logits", constant(m, "a", [0]), constant(m, "b", [1]), "a"]
    ),
    "a result that is the same for all tiles": lambda m: insert(
        m, "Add", [constant(m, "fixed", [[0.0, 9.0]], np.float32), "bias"]
    ),
    "an attribute that the operator lacks": lambda m: m.graph.node[3].attribute.append(
        helper.make_attribute("more", 1)
    ),
    "an attribute twice": lambda m: m.graph.node[3].attribute.append(
        helper.make_attribute("axis", -1)
    ),
    "an attribute of another type": lambda m: (
        m.graph.node[3].attribute[0].CopyFrom(helper.make_attribute("axis", -1.0))
    ),
    "an attribute of two values": lambda m: attribute_of(m, f=1.0),
    "an attribute without its value": lambda m: attribute_of(m).ClearField("i"),
    "an attribute that refers to a function's": lambda m: attribute_of(m, ref_attr_name="a"),
    "an attribute that is a string": lambda m: m.graph.node[3].attribute.append(
        helper.make_attribute("text", "a")
    ),
    "a cast to text": lambda m: (
        m.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("to", TensorProto.STRING))
    ),
    "an escape sequence in a name": lambda m: setattr(m.graph.node[0], "name", "\x1b[2J"),
    "a name of a megabyte": lambda m: setattr(m.graph.node[0], "name", "a" * (1 << 20)),
    "a name that is not ASCII": lambda m: setattr(m.graph.node[0], "name", "softm\u0430x"),
    "too many nodes": lambda m: m.graph.node.extend([m.graph.node[0]] * 20_000),
    "a random operator": lambda m: insert(m, "RandomNormalLike", ["logits"]),
    "a dead operator": lambda m: m.graph.node.append(
        helper.make_node("Dropout", ["logits"], ["unused"])
    ),
}


def test_a_graph_as_edgelung_writes_it_is_accepted() -> None:
    check(tiny_model().SerializeToString())


def refuse(change: Change) -> None:
    model = tiny_model()
    change(model)
    with pytest.raises(GraphError) as error:
        check(model.SerializeToString())
    assert str(error.value).isprintable()


@pytest.mark.parametrize("where", ELSEWHERE)
def test_data_outside_the_graph_are_refused(where: str) -> None:
    refuse(ELSEWHERE[where])


@pytest.mark.parametrize("what", CONTROL)
def test_loops_functions_and_other_operator_sets_are_refused(what: str) -> None:
    refuse(CONTROL[what])


@pytest.mark.parametrize("what", PORTS)
def test_inputs_and_outputs_are_exactly_those_of_a_classifier(what: str) -> None:
    refuse(PORTS[what])


@pytest.mark.parametrize("what", MEMORY)
def test_sizes_are_bounded_before_anything_is_allocated(what: str) -> None:
    refuse(MEMORY[what])


@pytest.mark.parametrize("what", VALUES)
def test_a_graph_computes_each_tile_by_known_operators_alone(what: str) -> None:
    refuse(VALUES[what])


def test_a_product_may_not_cost_more_than_its_limit() -> None:
    """384 × 2**13 × 2**13 multiplications, 100 times, in tensors of 12 MB."""
    model = tiny_model()
    wide = constant(model, "wide", np.zeros((2, 1 << 13)), np.float32)
    square = constant(model, "square", np.zeros((1 << 13, 1 << 13)), np.int8)
    narrow = constant(model, "narrow", np.zeros((1 << 13, 2)), np.float32)
    last = model.graph.node.pop()
    del model.graph.node[2:]
    add = model.graph.node.append
    reshaped = constant(model, "halves", [0, SIZE * SIZE * 3 // 2, 2])
    add(helper.make_node("Reshape", ["rows", reshaped], ["pairs"]))
    add(helper.make_node("MatMul", ["pairs", wide], ["m0"]))
    for i in range(100):
        add(helper.make_node("MatMul", [f"m{i}", square], [f"m{i + 1}"]))
    add(helper.make_node("MatMul", ["m100", narrow], ["logits"]))
    add(last)
    with pytest.raises(GraphError, match="multiplications"):
        check(model.SerializeToString())


def test_every_beginning_of_a_graph_is_refused() -> None:
    data = tiny_model().SerializeToString()
    for end in [*range(120), *range(120, len(data), 13)]:
        with pytest.raises(GraphError):
            check(data[:end])


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of less than 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 11,
        b"\x08" + b"\xff" * 10,
        b"\x08" + b"\x80" * 9 + b"\x02",  # 2**64
        b"\x08\x89\x00",  # 9, padded
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a length of 2**63 − 1
        b"\x3b",  # a group begins
        b"\x3c",  # a group ends
        b"\x3d\0\0\0\0",  # the graph as a number of 32 bits
        b"\x00\x00",  # field 0
        b"\x3a\x00\x3a\x00",  # the graph twice: protobuf would merge them
        b"\x08\x09\x08\x09",
        b"\xfa\x06\x01x",  # an unknown field
        b"\x08",
        b"\x3a",
        b"\x3a\x05\x00",
    ],
    ids=repr,
)
def test_a_malformed_encoding_is_refused(data: bytes) -> None:
    whole = tiny_model().SerializeToString()
    for attempt in (data, whole + data):
        with pytest.raises(GraphError):
            read_graph(attempt)


@pytest.mark.parametrize(
    "nine",
    [
        b"\x89\x00",
        b"\x89\x80\x00",
        b"\x89" + b"\x80" * 8 + b"\x02",
        b"\x89" + b"\x80" * 9 + b"\x01",
    ],
    ids=["padded", "padded twice", "plus 2**64", "eleven bytes"],
)
def test_a_number_that_readers_may_take_for_another_is_refused(nine: bytes) -> None:
    """Some cut off what does not fit into 64 bits."""
    data = tiny_model().SerializeToString()
    assert data.startswith(b"\x08\x09")  # ir_version
    with pytest.raises(GraphError, match="more than 64 bits, or one that is padded"):
        check(b"\x08" + nine + data[2:])


def test_a_field_that_is_there_twice_is_refused() -> None:
    """Of two, readers differ in which they take."""
    tensor = b"\x08\x02\x10\x01" + field(8, b"a") + field(9, b"\0" * 8)
    for again in (b"\x10\x01", field(8, b"b"), field(9, b"\1" * 8)):
        with pytest.raises(GraphError, match="more than 1 times"):
            read_graph(b"\x08\x09" + field(7, field(5, tensor + again)))


def test_a_dimension_that_is_a_number_and_a_name_is_refused() -> None:
    both = b"\x08\x05\x12\x01N"
    value = field(1, b"tiles") + field(2, field(1, b"\x08\x02" + field(2, field(1, both))))
    with pytest.raises(GraphError, match="at once"):
        read_graph(b"\x08\x09" + field(7, field(11, value)))


def test_packed_dimensions_are_refused() -> None:
    tensor = field(1, b"\x02") + b"\x10\x01" + field(8, b"a") + field(9, b"\0" * 8)
    with pytest.raises(GraphError, match="another type"):
        read_graph(b"\x08\x09" + field(7, field(5, tensor)))


def test_millions_of_empty_nodes_are_refused_after_a_few() -> None:
    nodes = b"\x0a\x00" * 2_000_000
    size = len(nodes)
    length = bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    with pytest.raises(GraphError, match="the field node more than"):
        read_graph(b"\x08\x09\x3a" + length + nodes)


def test_random_changes_of_bytes_give_a_graph_or_a_refusal() -> None:
    data, rng = tiny_model().SerializeToString(), random.Random(0)
    places = [i for i in range(len(data)) if not 200 < i < len(data) - 400]  # not the weights
    refused = 0
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.choice(places)] = rng.randrange(256)
        try:
            check(bytes(changed))
        except GraphError:
            refused += 1
    assert refused > 1000


def test_the_reader_sees_what_onnx_sees() -> None:
    data = (starter_bundle() / "model.int8.onnx").read_bytes()
    ours, theirs = read_graph(data), onnx.load_from_string(data).graph
    assert [(n.kind, n.name, list(n.inputs), list(n.outputs)) for n in ours.nodes] == [
        (n.op_type, n.name, list(n.input), list(n.output)) for n in theirs.node
    ]
    assert [(c.name, c.type, list(c.shape)) for c in ours.constants] == [
        (t.name, t.data_type, list(t.dims)) for t in theirs.initializer
    ]
    assert all(
        data[c.start : c.end] == t.raw_data
        for c, t in zip(ours.constants, theirs.initializer, strict=True)
    )
    for mine, other in zip(ours.nodes, theirs.node, strict=True):
        values = {a.name: helper.get_attribute_value(a) for a in other.attribute}
        found = {
            a.name: list(a.value) if isinstance(a.value, tuple) else a.value
            for a in mine.attributes
        }
        assert found == values


def test_every_exported_variant_fits_the_profile(bundle: Bundle) -> None:
    assert len(bundle.variants) == 5
    for variant in bundle.variants.values():
        sizes = {"size": bundle.reader.size, "classes": len(bundle.classes)}
        check_graph(variant.graph.read(), Role.SCORED_CLASSIFIER, sizes)


@pytest.mark.parametrize("group", [ELSEWHERE, CONTROL, PORTS], ids=["data", "control", "ports"])
def test_a_bundle_with_such_a_graph_does_not_open(tmp_path: Path, group: dict) -> None:
    for number, change in enumerate(group.values()):
        model = tiny_model()
        change(model)
        folder = tiny_bundle(tmp_path / str(number), model)
        with pytest.raises(EdgelungError, match=r"model\.fp32\.onnx is not a graph that") as error:
            open_bundle(folder)
        assert "\n" not in str(error.value)


def test_a_remembered_verdict_is_of_these_bytes_alone(tmp_path: Path) -> None:
    open_bundle(tiny_bundle(tmp_path / "good"))
    open_bundle(tmp_path / "good")
    model = tiny_model()
    PORTS["a float input"](model)
    folder = tiny_bundle(tmp_path / "bad", model)
    for _ in range(2):
        with pytest.raises(EdgelungError, match="is not a graph"):
            open_bundle(folder)
