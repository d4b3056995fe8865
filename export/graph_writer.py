"""Write an ONNX graph node by node: constants, operators and the finished model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgelung.export.eight_bit import Array

OPSET = 20  # has Gelu as an operator, and Q/DQ of FP16
IR_VERSION = 9  # the version of opset 20: old runtimes refuse newer files


class GraphWriter:
    """Collects nodes and constants; `dtype` is the graph's floating-point type."""

    def __init__(self, dtype: type[np.float32] | type[np.float16]) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        name: str = "",
        outputs: Sequence[str] = (),
        **attributes: Any,  # ONNX attributes: int, float, string or lists of them
    ) -> str:
        """Add a node; returns the name of its first output."""
        name = name or f"{kind}_{len(self.nodes)}"
        outputs = outputs or [f"{name}.out"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, **attributes))
        return outputs[0]

    def cast(self, x: str, dtype: type[np.generic]) -> str:
        """Convert a tensor to another type."""
        return self.op("Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def real(self, name: str, value: Array) -> str:
        """Add a constant in the graph's floating-point type."""
        return self.constant(name, np.asarray(value).astype(self.dtype))

    def integers(self, name: str, value: list[int]) -> str:
        """Add an int64 constant: a shape, axes or indices."""
        return self.constant(name, np.array(value, np.int64))

    def constant(self, name: str, value: Array) -> str:
        """Add a constant in its own type; a name that is already there is shared."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Assemble and check the model."""
        graph = helper.make_graph(
            self.nodes, name, inputs, outputs, initializer=list(self.constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgelung",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def float_info(name: str, shape: Sequence[str | int | None]) -> onnx.ValueInfoProto:
    """Describe a float32 input or output."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def pixels_info(name: str, size: int) -> onnx.ValueInfoProto:
    """Describe the input of uint8 RGB tiles [N, size, size, 3]."""
    return helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", size, size, 3])


def switches_info(name: str, count: int) -> onnx.ValueInfoProto:
    """Describe an input of `count` booleans."""
    return helper.make_tensor_value_info(name, TensorProto.BOOL, [count])
