"""The Open Inference Protocol v2 over HTTP: a request's bytes to tensors, and tensors to an answer.

JSON, and the extension for binary tensors that `tritonclient` uses: the raw bytes of the tensors
follow the JSON part, and the header `Inference-Header-Content-Length` says where they begin.
Every size that a client states is checked against the bytes that are there before it is used.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Raw, Struct

from edgelung.core.errors import one_line
from edgelung.engines.base import Tiles
from edgelung.serving.refusal import bad_request, too_large

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_NAME = 256  # characters of a name or an id that is given back
MAX_ENTRIES = 16  # inputs or outputs of one request; a model has one, and up to seven

# FP32, UINT8, or BYTES of the shape [N, 1]
Array = npt.NDArray[np.float32] | npt.NDArray[np.uint8] | Sequence[bytes]
Value = str | int | float | bool | None
Parameters = dict[str, Value]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Size = Annotated[int, Meta(ge=0, lt=2**31)]
Level = Annotated[int, Meta(ge=0, le=255)]
T = TypeVar("T")


class TensorMetadata(Struct, frozen=True):
    """A tensor of a model; -1 in its shape is any number."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Struct, frozen=True, kw_only=True):
    """What a client may send to a model, and what comes back."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputHeader(Struct, frozen=True, kw_only=True):
    """One input of a request. `data` is empty if its bytes follow the JSON part."""

    name: Name
    datatype: Name
    shape: Annotated[list[Size], Meta(max_length=8)]
    parameters: Parameters = {}
    data: Raw = Raw()


class OutputHeader(Struct, frozen=True, kw_only=True):
    """One output that is asked for."""

    name: Name
    parameters: Parameters = {}


class InferHeader(Struct, frozen=True, kw_only=True):
    """The JSON part of a request."""

    inputs: Annotated[list[InputHeader], Meta(max_length=MAX_ENTRIES)]
    id: Name = ""
    outputs: Annotated[list[OutputHeader], Meta(max_length=MAX_ENTRIES)] = []
    parameters: Parameters = {}


@dataclass(frozen=True)
class RequestedOutput:
    """An output, and whether its bytes follow the JSON part of the answer."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the model.

    Attributes:
        id: given back.
        tiles: uint8 (N, size, size, 3), of a model of tiles; None for a model of images.
        images: encoded images, of a model of images.
        outputs: in the order of the answer.
    """

    id: str
    tiles: Tiles | None
    images: Sequence[bytes]
    outputs: Sequence[RequestedOutput]


class _TensorAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: Sequence[float] | Sequence[str] | None = None


class _InferAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    model_name: str
    model_version: str
    id: str = ""
    outputs: list[_TensorAnswer]


def parse_infer(
    body: bytes,
    header_length: str | None,
    model: ModelMetadata,
    *,
    json_bytes: int,
    check_tiles: Callable[[int], None],
) -> InferRequest:
    """Parse and check a request.

    Args:
        body: of the request.
        header_length: the header `Inference-Header-Content-Length`; None without binary tensors.
        model: which it is for; it has one input.
        json_bytes: limit of the JSON part.
        check_tiles: raises Refusal if so many tiles cannot be taken. Called before the tensor is
            read: a body of zeros can hold millions of empty images.

    Raises:
        Refusal: for anything that the model cannot answer.
    """
    length = _json_length(header_length, len(body))
    if length > json_bytes:
        raise too_large(
            f"the JSON part has {length} bytes; expected {json_bytes} at most: send tensors as "
            "binary data"
        )
    header = _decode(body[:length], InferHeader, "the JSON part")
    (expected,) = model.inputs
    if len(header.inputs) != 1 or header.inputs[0].name != expected.name:
        names = ", ".join(one_line(one.name, 40) for one in header.inputs) or "none"
        raise bad_request(f"found the inputs {names}; expected the one input {expected.name}")
    (given,) = header.inputs
    _check(given, expected)
    check_tiles(given.shape[0])
    binary = _binary_data(given, memoryview(body)[length:])
    outputs = _outputs(header, model)
    if given.datatype == "BYTES":
        if binary is None:
            raise bad_request(
                f"{given.name} came as JSON, which holds no bytes; send it as binary data"
            )
        return InferRequest(header.id, None, _split_bytes(binary, given.shape[0]), outputs)
    return InferRequest(header.id, _tiles(given, binary), (), outputs)


def _json_length(text: str | None, available: int) -> int:
    if text is None:
        return available
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and int(text) <= available):
        raise bad_request(
            f"{HEADER_LENGTH} is {one_line(text, 40)!r}; expected a number of bytes, at most the "
            f"{available} of the body"
        )
    return int(text)


def _decode(data: bytes | Raw, kind: type[T], what: str) -> T:
    """Decode JSON as a type; what does not fit ends the decoding before it takes memory."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(f"{what} cannot be used: {one_line(error)}") from error


def _check(given: InputHeader, expected: TensorMetadata) -> None:
    """Raise Refusal unless type and shape are those of the model's input."""
    if given.datatype != expected.datatype:
        raise bad_request(
            f"{given.name} is {one_line(given.datatype, 40)}; expected {expected.datatype}"
        )
    fits = len(given.shape) == len(expected.shape) and all(
        size == fixed if fixed >= 0 else size > 0
        for size, fixed in zip(given.shape, expected.shape, strict=True)
    )
    if not fits:
        shape = str(expected.shape).replace("-1", "N")
        raise bad_request(f"{given.name} has the shape {given.shape}; expected {shape}, N above 0")


def _binary_data(given: InputHeader, rest: memoryview) -> memoryview | None:
    """The bytes behind the JSON part, which all belong to the one input; None if it has none."""
    stated = given.parameters.get("binary_data_size")
    for name in given.parameters:
        if name.startswith("shared_memory"):
            raise bad_request("shared memory is not offered; send the bytes with the request")
    if stated is None:
        if len(rest):
            raise bad_request(f"{len(rest)} bytes follow the JSON part, which names none")
        return None
    if type(stated) is not int or stated != len(rest):
        raise bad_request(
            f"binary_data_size is {one_line(stated, 40)}; {len(rest)} bytes follow the JSON part"
        )
    if len(given.data):
        raise bad_request(f"{given.name} has both data and binary_data_size; expected one of them")
    return rest


def _tiles(given: InputHeader, binary: memoryview | None) -> Tiles:
    """The tiles of a UINT8 input, which is as large as its shape says."""
    count = prod(given.shape)  # no overflow: Python's integers
    if binary is not None:
        if len(binary) != count:
            raise bad_request(f"{given.name} has {len(binary)} bytes; its shape needs {count}")
        return np.frombuffer(binary, np.uint8).reshape(given.shape)
    text = memoryview(given.data)
    if not text:
        raise bad_request(f"{given.name} has neither data nor binary_data_size")
    if bytes(text[:64]).translate(None, b" \n\r\t").startswith(b"[["):
        return _nested(given)
    levels = _decode(given.data, list[Level], given.name)
    if len(levels) != count:
        raise bad_request(f"{given.name} has {len(levels)} numbers; its shape needs {count}")
    return np.array(levels, np.uint8).reshape(given.shape)


def _nested(given: InputHeader) -> Tiles:
    """The tiles of lists within lists."""
    lists = _decode(given.data, list[list[list[list[Level]]]], given.name)
    try:
        tiles = np.array(lists, np.uint8)
    except ValueError as error:
        raise bad_request(f"the lists of {given.name} are not of one length") from error
    if list(tiles.shape) != given.shape:
        raise bad_request(
            f"the lists of {given.name} have the shape {list(tiles.shape)}; it says {given.shape}"
        )
    return tiles


def _split_bytes(data: memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor: each one is its length (4 bytes) and its bytes."""
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        if len(elements) == count or len(data) - at < 4:
            break
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length > len(data) - at:
            raise bad_request(
                f"element {len(elements)} says that it has {length} bytes; {len(data) - at} follow"
            )
        elements.append(bytes(data[at : at + length]))
        at += length
    if len(elements) != count or at != len(data):
        raise bad_request(
            f"the bytes hold {len(elements)} whole elements and {len(data) - at} bytes more; the "
            f"shape says {count} elements"
        )
    return elements


def _outputs(header: InferHeader, model: ModelMetadata) -> list[RequestedOutput]:
    """The outputs that are asked for; all of them if the request names none."""
    names = [output.name for output in model.outputs]
    all_binary = header.parameters.get("binary_data_output") is True
    if not header.outputs:
        return [RequestedOutput(name, all_binary) for name in names]
    chosen: list[RequestedOutput] = []
    for output in header.outputs:
        if output.name not in names or output.name in (one.name for one in chosen):
            raise bad_request(
                f"the output {one_line(output.name, 40)} is asked for; expected each of "
                f"{', '.join(names)} once at most"
            )
        for parameter in output.parameters:
            if parameter == "classification" or parameter.startswith("shared_memory"):
                raise bad_request(f"{one_line(parameter, 40)} is not offered; leave it out")
        binary = output.parameters.get("binary_data", all_binary)
        chosen.append(RequestedOutput(output.name, binary is True))
    return chosen


def format_infer(
    request: InferRequest, model: ModelMetadata, arrays: Mapping[str, Array]
) -> tuple[bytes, dict[str, str]]:
    """The body of the answer and its headers. `arrays`: the model's outputs by name."""
    types = {output.name: output.datatype for output in model.outputs}
    answers, tails = [], []
    for output in request.outputs:
        array = arrays[output.name]
        tail = _binary(array) if output.binary else b""
        answers.append(
            _TensorAnswer(
                name=output.name,
                datatype=types[output.name],
                shape=list(array.shape) if isinstance(array, np.ndarray) else [len(array), 1],
                parameters={"binary_data_size": len(tail)} if output.binary else {},
                data=None if output.binary else _json_data(array),
            )
        )
        tails.append(tail)
    head = msgspec.json.encode(
        _InferAnswer(
            model_name=model.name,
            model_version=model.versions[0],
            id=request.id,
            outputs=answers,
        )
    )
    if not any(output.binary for output in request.outputs):
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *tails]), headers


def _binary(array: Array) -> bytes:
    if isinstance(array, np.ndarray):
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in array)


def _json_data(array: Array) -> Sequence[float] | Sequence[str]:
    """The elements; JSON has no NaN, which becomes null."""
    if isinstance(array, np.ndarray):
        flat: Sequence[float] = array.ravel().tolist()
        return flat
    return [element.decode() for element in array]
