"""The objects of TensorRT's Python API that functions here pass on; the bindings have no types."""

from collections.abc import Sequence
from typing import Protocol


class ErrorLog(Protocol):
    """The logger of `flavour.error_log`: it collects the texts of TensorRT's errors."""

    errors: list[str]


class Member(Protocol):
    """A member of one of TensorRT's enums."""

    name: str


class Tensor(Protocol):
    name: str
    dtype: Member
    shape: Sequence[int]


class Layer(Protocol):
    type: Member
    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> Tensor | None: ...
    def get_output(self, index: int) -> Tensor: ...


class Network(Protocol):
    num_layers: int

    def get_layer(self, index: int) -> Layer: ...
    def get_input(self, index: int) -> Tensor: ...


class ParserError(Protocol):
    def node(self) -> int: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
    def desc(self) -> str: ...


class Parser(Protocol):
    num_errors: int

    def parse(self, onnx: bytes) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class Serializable(Protocol):
    """A timing cache or a runtime cache."""

    def serialize(self) -> bytes: ...


class ExecutionContext(Protocol):
    def set_tensor_address(self, name: str, address: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def execute_async_v3(self, stream: int) -> bool: ...
