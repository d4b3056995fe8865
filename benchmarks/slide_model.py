"""The starter's FP32 weights as a model folder that WSInfer and TIAToolbox run.

    python benchmarks/slide_model.py FOLDER --tile-um U

The starter has no run folder. So its weights are read from its ONNX file, the rewrites of
`export.graph` are undone, and `edgelung export --wsinfer`'s own code writes the TorchScript. It is
written only if its probabilities equal those of ONNX Runtime.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.core import typed_json
from edgelung.core.precision import FULL_PRECISION
from edgelung.export.graph import PIXEL_OFFSET, PIXEL_STEP
from edgelung.export.student import Student, Weights
from edgelung.export.torchscript import build_torchscript, load_torchscript
from edgelung.export.wsinfer import CONFIG, PROGRAM, Transform, WsinferConfig
from edgelung.tiles.reader import read_tile

ARCHITECTURE, HEADS = "deit_tiny_distilled_patch16_224", 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOLERANCE = 1e-4  # of a probability
CHECK = "check.json"


def read_starter(bundle: Bundle) -> Student:
    """The starter as timm names its weights; its temperature stays inside the heads."""
    graph = onnx.load_from_string(bundle.variant(FULL_PRECISION).graph.read()).graph
    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    weights: Weights = {}
    for name, value in found.items():
        if name.startswith(("blocks.", "norm.")) and ".attn.q" not in name and ".kv." not in name:
            weights[name] = value.T
    for block in range(12):
        _join_attention(found, f"blocks.{block}.attn", weights)
    _split_embedding(found, weights)
    width = weights["norm.weight"].shape[0]
    both = 2 * found["head.weight"].T  # (classes, 2 D); twice: the program takes the mean
    weights["head.weight"], weights["head_dist.weight"] = both[:, :width], both[:, width:]
    weights["head.bias"] = weights["head_dist.bias"] = found["head.bias"]
    size = bundle.reader.size
    owned = {name: np.array(one, np.float32) for name, one in weights.items()}  # writable
    return Student(ARCHITECTURE, bundle.classes, size, 16, HEADS, MEAN, STD, owned)


def _join_attention(found: dict[str, Any], name: str, weights: Weights) -> None:
    """Queries, keys and values as one linear; without the scale of the queries."""
    last = f"{name}.q.weight" in found  # its queries are separate: they run for two tokens alone
    parts = ["q", "kv.0", "kv.1"] if last else ["qkv.0", "qkv.1", "qkv.2"]
    for kind in ("weight", "bias"):
        values = [found[f"{name}.{part}.{kind}"].T for part in parts]
        values[0] = values[0] * (values[0].shape[0] // HEADS) ** 0.5
        weights[f"{name}.qkv.{kind}"] = np.concatenate(values)


def _split_embedding(found: dict[str, Any], weights: Weights) -> None:
    """The patch embedding as a convolution of normalised pixels; class tokens as positions."""
    kernel = found["patch_embed.proj.weight"].T.astype(np.float64) * (255 / PIXEL_STEP)
    kernel = kernel.reshape(-1, 16, 16, 3).transpose(0, 3, 1, 2)  # (D, 3, P, P), divided by std
    centre = PIXEL_OFFSET / 255 - np.array(MEAN).reshape(1, 3, 1, 1)
    bias = found["patch_embed.proj.bias"] - (kernel * centre).sum(axis=(1, 2, 3))
    weights["patch_embed.proj.weight"] = (kernel * np.array(STD).reshape(1, 3, 1, 1)).astype(
        np.float32
    )
    weights["patch_embed.proj.bias"] = bias.astype(np.float32)
    positions = found["positions"]
    weights["pos_embed"] = positions
    weights["cls_token"] = weights["dist_token"] = np.zeros((1, 1, positions.shape[2]), np.float32)


def largest_difference(program: bytes, bundle: Bundle) -> float:
    """The program against ONNX Runtime's FP32 on the golden tiles: of a probability."""
    import onnxruntime
    import torch

    paths = sorted((bundle.folder / "golden").iterdir())
    tiles = np.stack([read_tile(path, bundle.reader) for path in paths])
    graph = bundle.variant(FULL_PRECISION).graph.read()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["probs"], {"tiles": tiles})
    images = (tiles / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    logits = load_torchscript(program)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return float(np.abs(logits.softmax(dim=1).numpy() - expected).max())


def write_model(folder: Path, tile_um: float) -> None:
    """Write config.json, the program and check.json for tiles of `tile_um` micrometres.

    Raises RuntimeError if the program's probabilities differ from the bundle's.
    """
    bundle = open_bundle(starter_bundle())
    student = read_starter(bundle)
    program = build_torchscript(student, 1.0)
    difference = largest_difference(program, bundle)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the program's probabilities differ by {difference:.3g}")
    config = WsinferConfig(
        name=bundle.manifest.name,
        architecture=ARCHITECTURE,
        num_classes=len(bundle.classes),
        class_names=list(bundle.classes),
        patch_size_pixels=student.size,
        spacing_um_px=tile_um / student.size,
        transform=[
            Transform(name="Resize", arguments={"size": student.size}),
            Transform(name="ToTensor"),
            Transform(name="Normalize", arguments={"mean": list(MEAN), "std": list(STD)}),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    typed_json.write(folder / CONFIG, config)
    (folder / PROGRAM).write_bytes(program)
    check = {"largest_probability_difference": difference, "golden_tiles": 9}
    (folder / CHECK).write_text(json.dumps(check, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write one model folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tile-um", type=float, required=True)
    options = parser.parse_args()
    write_model(options.folder, options.tile_um)


if __name__ == "__main__":
    main()
