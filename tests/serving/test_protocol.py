"""The Open Inference Protocol v2: what a client states is checked against what is there."""

import json
import math
from typing import Any

import numpy as np
import pytest

from edgelung.serving.protocol import (
    InferRequest,
    ModelMetadata,
    TensorMetadata,
    format_infer,
    parse_infer,
)
from edgelung.serving.refusal import Refusal

SIDE = 2
MOST = 1000  # tiles of a request
TILES = ModelMetadata(
    name="m",
    versions=["1"],
    platform="edgelung",
    inputs=[TensorMetadata("tiles", "UINT8", [-1, SIDE, SIDE, 3])],
    outputs=[TensorMetadata("probs", "FP32", [-1, 3]), TensorMetadata("ood", "FP32", [-1, 1])],
)
IMAGES = ModelMetadata(
    name="m",
    versions=["1"],
    platform="edgelung",
    inputs=[TensorMetadata("images", "BYTES", [-1, 1])],
    outputs=[
        TensorMetadata("label", "BYTES", [-1, 1]),
        TensorMetadata("probs", "FP32", [-1, 3]),
        TensorMetadata("stage", "UINT8", [-1, 1]),
    ],
)
PIXELS = np.arange(2 * SIDE * SIDE * 3, dtype=np.uint8).reshape(2, SIDE, SIDE, 3)
ARRAYS = {
    "probs": np.array([[0.1, 0.2, 0.7], [1, 0, 0]], np.float32),
    "ood": np.array([[0.5], [1.5]], np.float32),
}


def header(**changes: Any) -> dict[str, Any]:
    given = {"name": "tiles", "datatype": "UINT8", "shape": [2, SIDE, SIDE, 3]}
    return {"inputs": [given | changes]}


def parse(
    content: Any, tail: bytes = b"", model: ModelMetadata = TILES, length: str | None = None
) -> InferRequest:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    if length is None and tail:
        length = str(len(text))
    return parse_infer(text + tail, length, model, json_bytes=1000, check_tiles=check_tiles)


def check_tiles(count: int) -> None:
    if count > MOST:
        raise Refusal(413, f"{count} tiles")


def binary(size: Any = PIXELS.size, **changes: Any) -> dict[str, Any]:
    return header(parameters={"binary_data_size": size}, **changes)


@pytest.mark.parametrize(
    "request_",
    [
        parse(header(data=PIXELS.ravel().tolist())),
        parse(header(data=PIXELS.tolist())),
        parse(binary(), PIXELS.tobytes()),
    ],
    ids=["flat", "nested", "binary"],
)
def test_every_form_gives_the_pixels(request_: InferRequest) -> None:
    assert request_.tiles is not None
    assert np.array_equal(request_.tiles, PIXELS)
    assert [output.name for output in request_.outputs] == ["probs", "ood"]


def test_images_are_split_by_their_lengths() -> None:
    parts = [b"first", b"", b"third"]
    tail = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    content = header(
        name="images", datatype="BYTES", shape=[3, 1], parameters={"binary_data_size": len(tail)}
    )
    assert list(parse(content, tail, IMAGES).images) == parts


def test_an_answer_in_json_holds_the_float32_values() -> None:
    request = parse(header(data=PIXELS.ravel().tolist()) | {"id": "7"})
    body, headers = format_infer(request, TILES, ARRAYS)
    answer = json.loads(body)
    assert headers == {"Content-Type": "application/json"}
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", "7")
    probs, ood = answer["outputs"]
    assert (probs["shape"], ood["shape"]) == ([2, 3], [2, 1])
    assert np.array_equal(np.float32(probs["data"]), ARRAYS["probs"].ravel())


def test_outputs_come_as_asked_for_and_in_that_order() -> None:
    wanted = [{"name": "ood"}, {"name": "probs", "parameters": {"binary_data": True}}]
    body, headers = format_infer(
        parse(binary() | {"outputs": wanted}, PIXELS.tobytes()), TILES, ARRAYS
    )
    length = int(headers["Inference-Header-Content-Length"])
    ood, probs = json.loads(body[:length])["outputs"]
    assert ood["data"] == [0.5, 1.5]
    assert probs["parameters"] == {"binary_data_size": 24}
    assert body[length:] == ARRAYS["probs"].tobytes()


def test_binary_outputs_for_all_can_be_asked_for_at_once() -> None:
    request = parse(binary() | {"parameters": {"binary_data_output": True}}, PIXELS.tobytes())
    assert all(output.binary for output in request.outputs)


ROWS = {
    "label": ["é".encode(), b""],
    "probs": np.array([[0, 0, 1], [math.nan] * 3], np.float32),
    "stage": np.array([[2], [0]], np.uint8),
}


def of_images(**parameters: bool) -> InferRequest:
    tail = b"\1\0\0\0a" * 2
    content = header(
        name="images", datatype="BYTES", shape=[2, 1], parameters={"binary_data_size": len(tail)}
    )
    return parse(content | {"parameters": parameters}, tail, IMAGES)


def test_rows_in_json_have_null_where_there_is_no_number() -> None:
    label, probs, stage = json.loads(format_infer(of_images(), IMAGES, ROWS)[0])["outputs"]
    assert (label["datatype"], label["shape"], label["data"]) == ("BYTES", [2, 1], ["é", ""])
    assert probs["data"] == [0, 0, 1, None, None, None]
    assert (stage["datatype"], stage["data"]) == ("UINT8", [2, 0])


def test_rows_as_binary_data_have_each_type() -> None:
    body, headers = format_infer(of_images(binary_data_output=True), IMAGES, ROWS)
    tail = body[int(headers["Inference-Header-Content-Length"]) :]
    label = b"\2\0\0\0\xc3\xa9" + b"\0\0\0\0"
    assert tail == label + ROWS["probs"].tobytes() + b"\2\0"


BYTES = {"name": "images", "datatype": "BYTES", "shape": [1, 1]}
WRONG: dict[str, tuple[Any, bytes, ModelMetadata, str | None]] = {
    "no JSON": (b"\x00\x01", b"", TILES, None),
    "a list": ([], b"", TILES, None),
    "no inputs": ({"inputs": []}, b"", TILES, None),
    "two inputs": ({"inputs": header()["inputs"] * 2}, b"", TILES, None),
    "another input": (header(name="pixels", data=[]), b"", TILES, None),
    "another type": (header(datatype="FP32", data=PIXELS.ravel().tolist()), b"", TILES, None),
    "no shape": ({"inputs": [{"name": "tiles", "datatype": "UINT8"}]}, b"", TILES, None),
    "three dimensions": (header(shape=[SIDE, SIDE, 3], data=[]), b"", TILES, None),
    "another size": (header(shape=[2, 3, 3, 3], data=[]), b"", TILES, None),
    "no tile": (header(shape=[0, SIDE, SIDE, 3], data=[]), b"", TILES, None),
    "a negative size": (header(shape=[-2, SIDE, SIDE, 3], data=[]), b"", TILES, None),
    "a size beyond 64 bits": (header(shape=[2**80, SIDE, SIDE, 3], data=[]), b"", TILES, None),
    "a size that is no integer": (header(shape=[1.5, SIDE, SIDE, 3], data=[]), b"", TILES, None),
    "too few numbers": (header(data=[1, 2, 3]), b"", TILES, None),
    "too many numbers": (header(data=[0] * 25), b"", TILES, None),
    "numbers above 255": (header(data=[256] * 24), b"", TILES, None),
    "negative numbers": (header(data=[-1] * 24), b"", TILES, None),
    "fractions": (header(data=[0.5] * 24), b"", TILES, None),
    "NaN": (
        b'{"inputs":[{"name":"tiles","datatype":"UINT8","shape":[1],"data":[NaN]}]}',
        b"",
        TILES,
        None,
    ),
    "text for numbers": (header(data=["1"] * 24), b"", TILES, None),
    "lists of several lengths": (header(data=[[[[1, 2, 3], [1, 2]]]]), b"", TILES, None),
    "nested in another shape": (header(data=PIXELS[:1].tolist()), b"", TILES, None),
    "no data at all": (header(), b"", TILES, None),
    "data and bytes": (binary(data=[1]), PIXELS.tobytes(), TILES, None),
    "fewer bytes than stated": (binary(24), PIXELS.tobytes()[:-1], TILES, None),
    "more bytes than stated": (binary(24), PIXELS.tobytes() + b"1", TILES, None),
    "bytes that nobody stated": (header(data=[0] * 24), b"123", TILES, None),
    "a negative number of bytes": (binary(-1), PIXELS.tobytes(), TILES, None),
    "a number of bytes as text": (binary("24"), PIXELS.tobytes(), TILES, None),
    "a number of bytes that is true": (binary(True), b"1", TILES, None),
    "bytes that do not fit the shape": (binary(23), PIXELS.tobytes()[:-1], TILES, None),
    "a header beyond the body": (binary(), PIXELS.tobytes(), TILES, "100000"),
    "a header within the JSON": (binary(), PIXELS.tobytes(), TILES, "20"),
    "a negative header": (binary(), PIXELS.tobytes(), TILES, "-1"),
    "a header that is no number": (binary(), PIXELS.tobytes(), TILES, "٣"),
    "shared memory": (header(parameters={"shared_memory_region": "r"}), b"", TILES, None),
    "an unknown output": (binary() | {"outputs": [{"name": "x"}]}, PIXELS.tobytes(), TILES, None),
    "an output twice": (
        binary() | {"outputs": [{"name": "ood"}] * 2},
        PIXELS.tobytes(),
        TILES,
        None,
    ),
    "classification": (
        binary() | {"outputs": [{"name": "probs", "parameters": {"classification": 2}}]},
        PIXELS.tobytes(),
        TILES,
        None,
    ),
    "deep nesting": (b'{"inputs":' + b"[" * 400, b"", TILES, None),
    "images as JSON": ({"inputs": [BYTES | {"data": ["x"]}]}, b"", IMAGES, None),
    "an image that is longer than the body": (
        {"inputs": [BYTES | {"parameters": {"binary_data_size": 5}}]},
        b"\xff\xff\xff\xff1",
        IMAGES,
        None,
    ),
    "half a length": (
        {"inputs": [BYTES | {"parameters": {"binary_data_size": 3}}]},
        b"\0\0\0",
        IMAGES,
        None,
    ),
    "one image more than the shape says": (
        {"inputs": [BYTES | {"parameters": {"binary_data_size": 8}}]},
        b"\0" * 8,
        IMAGES,
        None,
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG.keys())
def test_a_request_that_does_not_fit_is_refused(
    case: tuple[Any, bytes, ModelMetadata, str | None],
) -> None:
    content, tail, model, length = case
    with pytest.raises(Refusal) as refused:
        parse(content, tail, model, length)
    assert refused.value.status == 400
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(("model", "name"), [(TILES, "tiles"), (IMAGES, "images")])
def test_too_many_tiles_are_refused_before_they_are_read(model: ModelMetadata, name: str) -> None:
    shape = [2**31 - 1, *model.inputs[0].shape[1:]]
    content = binary(1, name=name, datatype=model.inputs[0].datatype, shape=shape)
    with pytest.raises(Refusal) as refused:
        parse(content, b"\xff", model)  # which would be 400
    assert refused.value.status == 413


def test_a_long_json_part_is_refused_before_it_is_read() -> None:
    with pytest.raises(Refusal) as refused:
        parse(b"[" * 1001)
    assert refused.value.status == 413
