"""config.pbtxt of Triton Inference Server: typed values to protobuf's text format.

The fields are those of `model_config.proto` (Triton 2.50 and later). Only what edgelung's models
need is here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

MAX_BATCH = 32  # tiles; as edgelung's own batches on a GPU
MAX_QUEUE = 256  # requests that wait; Triton refuses the next one: memory and waiting are bounded


class DataType(StrEnum):
    """Element types of tensors."""

    UINT8 = "TYPE_UINT8"
    FP32 = "TYPE_FP32"
    STRING = "TYPE_STRING"  # any bytes


class InstanceKind(StrEnum):
    """Where Triton runs a model."""

    CPU = "KIND_CPU"
    GPU = "KIND_GPU"


@dataclass(frozen=True)
class TensorConfig:
    """An input or output.

    Attributes:
        name: its name.
        type: type of its elements.
        dims: shape without the batch. Triton knows no empty one: clients see () as (1,).
        labels: file beside config.pbtxt that names the elements; '' for none.
    """

    name: str
    type: DataType
    dims: tuple[int, ...]
    labels: str = ""

    def message(self) -> "Message":
        """The fields of ModelInput and ModelOutput."""
        message: dict[str, Value] = {
            "name": self.name,
            "data_type": self.type,
            "dims": list(self.dims or (1,)),
        }
        if not self.dims:
            message["reshape"] = {"shape": []}
        if self.labels:
            message["label_filename"] = self.labels
        return message


@dataclass(frozen=True)
class Warmup:
    """A request that Triton sends before the model is ready.

    `file`: the data of the input in the folder `warmup`; '' for zeros.
    """

    batch_size: int
    file: str = ""


@dataclass(frozen=True)
class ModelConfig:
    """A model of one input. `parameters` are handed to it as texts."""

    name: str
    backend: str
    kind: InstanceKind
    input: TensorConfig
    outputs: Sequence[TensorConfig]
    warmups: Sequence[Warmup]
    parameters: Mapping[str, str] = field(default_factory=dict)

    def text(self, *comments: str) -> str:
        """The content of config.pbtxt."""
        message: dict[str, Value] = {
            "name": self.name,
            "backend": self.backend,
            "max_batch_size": MAX_BATCH,
            "input": [self.input.message()],
            "output": [output.message() for output in self.outputs],
            "instance_group": [{"count": 1, "kind": self.kind}],
            "dynamic_batching": {"default_queue_policy": {"max_queue_size": MAX_QUEUE}},
            "model_warmup": [self._warmup(warmup) for warmup in self.warmups],
            "parameters": [
                {"key": key, "value": {"string_value": value}}
                for key, value in self.parameters.items()
            ],
        }
        return "".join(f"# {line}\n" for line in comments) + pbtxt(message)

    def _warmup(self, warmup: Warmup) -> "Message":
        data: Message = {"input_data_file": warmup.file} if warmup.file else {"zero_data": True}
        tensor = {"data_type": self.input.type, "dims": list(self.input.dims or (1,)), **data}
        return {
            "name": f"{warmup.batch_size} tiles",
            "batch_size": warmup.batch_size,
            "inputs": {"key": self.input.name, "value": tensor},
        }


Value = (
    DataType
    | InstanceKind
    | str
    | bool
    | int
    | Sequence[int]
    | Mapping[str, "Value"]
    | Sequence["Message"]
)
Message = Mapping[str, Value]


def pbtxt(message: Message, indent: str = "") -> str:
    """A message in protobuf's text format. A list of messages is a repeated field."""
    return "".join(
        f"{indent}{line}" for name, value in message.items() for line in _field(name, value, indent)
    )


def _field(name: str, value: Value, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield f"{name} {{\n{pbtxt(value, indent + '  ')}{indent}}}\n"
    elif isinstance(value, str | int):  # bool is an int
        yield f"{name}: {_scalar(value)}\n"
    elif all(isinstance(element, int) for element in value):
        yield f"{name}: [{', '.join(map(str, value))}]\n"
    else:
        for element in value:
            assert isinstance(element, Mapping)
            yield from _field(name, element, indent)


def _scalar(value: str | bool | int) -> str:
    if isinstance(value, DataType | InstanceKind):  # an enumeration's value has no quotes
        return value.value
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    r"""A string literal of the text format: every byte but printable ASCII as `\ooo`."""
    inner = "".join(
        f"\\{chr(byte)}"
        if chr(byte) in "\\\"'"
        else chr(byte)
        if 32 <= byte < 127
        else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{inner}"'
