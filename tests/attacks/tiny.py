"""A bundle of a few kilobytes whose graph is a linear classifier, to be attacked."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgelung.artifacts.bundle import write_bundle
from edgelung.tiles.reader import ReaderSpec

SIZE = 16  # pixels
CLASSES = ["benign", "malignant"]
FEATURES = SIZE * SIZE * 3
GRAPH = "model.fp32.onnx"


def tiny_model() -> onnx.ModelProto:
    """tiles uint8 (N, 16, 16, 3) → probs float32 (N, 2), by one linear and a softmax."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1e-3, (FEATURES, 2)).astype(np.float32)
    constants = {"flat": np.array([0, -1]), "weight": weight, "bias": np.zeros(2, np.float32)}
    nodes = [
        helper.make_node("Cast", ["tiles"], ["x"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["x", "flat"], ["rows"], "reshape"),
        helper.make_node("Gemm", ["rows", "weight", "bias"], ["logits"], "head"),
        helper.make_node("Softmax", ["logits"], ["probs"], "softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9, producer_name="edgelung")


def other_model() -> bytes:
    """A graph that fits the profile and turns the classes around."""
    model = tiny_model()
    weight = model.graph.initializer[1]
    numbers = bytearray(weight.raw_data)
    for i in range(0, len(numbers), 8):
        numbers[i : i + 8] = numbers[i + 4 : i + 8] + numbers[i : i + 4]
    weight.raw_data = bytes(numbers)
    return model.SerializeToString()


def tiny_probabilities(pixels: np.ndarray) -> list[float]:
    """What the graph computes for one tile, uint8 (16, 16, 3)."""
    weight = numpy_helper.to_array(tiny_model().graph.initializer[1])
    logits = pixels.reshape(-1).astype(np.float32) @ weight
    exponents = np.exp(logits - logits.max())
    return [float(p) for p in exponents / exponents.sum()]


def tiny_bundle(folder: Path, model: onnx.ModelProto | bytes | None = None) -> Path:
    """Write the bundle, with another graph in it if one is given."""
    model = tiny_model() if model is None else model
    graph = model if isinstance(model, bytes) else model.SerializeToString()
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    (folder / "golden").mkdir(parents=True)
    (folder / "golden" / "00.png").write_bytes(png.getvalue())
    (folder / GRAPH).write_bytes(graph)
    (folder / "report.html").write_text("<p>report</p>")
    entry = {
        "file": GRAPH,
        "bytes": len(graph),
        "base": "fp32",
        "meant_for": "reference",
        "quantized_linears": 0,
        "judged_by": "onnxruntime",
        "tiles_per_second": {},
        "gate": {"verdict": "reference", "reasons": [], "tiles": 1},
    }
    tile = {
        "file": "golden/00.png",
        "class": CLASSES[0],
        "probabilities": {"fp32": tiny_probabilities(pixels)},
    }
    manifest = {
        "schema_version": 1,
        "classes": CLASSES,
        "preprocessing": ReaderSpec(size=SIZE).to_json(),
        "temperature": 1.0,
        "variants": {"fp32": entry},
        "golden": [tile],
        "concerns": [],
    }
    write_bundle(folder, manifest)  # type: ignore[arg-type]
    return folder


def reseal(folder: Path, change: Callable[[dict], object] | None = None) -> None:
    """Write the manifest again, changed, with the hashes of the files that are there now."""
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["files"]
    if change:
        change(manifest)
    write_bundle(folder, manifest)  # type: ignore[arg-type]


def write_sealed(folder: Path, text: bytes) -> None:
    """Replace bundle.json by any bytes, with a seal that fits."""
    (folder / "bundle.json").write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    (folder / "bundle.json.sha256").write_text(f"{digest}  bundle.json\n")
