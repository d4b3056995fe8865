"""The starter's run folder again, out of the starter: to measure its weights or to export it anew.

    python benchmarks/starter_run.py TILES RUN [--groups audit/groups.csv]
    edgelung export RUN --out BUNDLE --int8 --early-exit

TILES: the 12,897 tiles that the starter was trained on. The weights come from the FP32 graph, the
split from recipe `starter`; both are compared with the starter. The folder holds run.json,
split.csv, the student and what it predicts: all that `edgelung export` reads, but no metrics.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from msgspec import structs
from onnx import numpy_helper

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.precision import Precision
from edgelung.export.graph import PIXEL_OFFSET, PIXEL_STEP, build_graph
from edgelung.export.student import read_student
from edgelung.train.models import Model, save_model
from edgelung.train.prepare import start_run
from edgelung.train.recipe import Distill, load_recipe
from edgelung.train.results import evaluate_models
from edgelung.train.stages import timm_model

STARTER = Path(__file__).parents[1] / "edgelung" / "starter"
Constants = dict[str, npt.NDArray[np.float64]]


def main() -> None:
    """Split, take the weights over, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--groups", type=Path)
    options = parser.parse_args()
    starter = open_bundle(STARTER, OWN_WORK)
    recipe = load_recipe("starter")
    run, modules = start_run(options.tiles, options.run, recipe, options.groups)
    folder = RunFolder(options.run)
    provenance = starter.manifest.provenance
    config = folder.read_config()
    if config.split_sha256 == provenance.split_sha256:
        folder.write_config(structs.replace(config, groups=provenance.groups))
    else:
        found, expected = config.split_sha256, provenance.split_sha256
        print(f"the split differs from the starter's: {found}, expected {expected}")
    graph = onnx.load_from_string(starter.variants[Precision.FP32].graph.read())
    student = timm_model(modules["student"])
    take_weights(graph, student, starter.manifest.temperature)
    save_model(student, folder, "student", run.classes, starter.reader.size)
    # Without its teacher, which is gone. Writes predictions.csv.
    alone = recipe.model_copy(update={"distill": Distill(mode="none")})
    evaluate_models(replace(run, recipe=alone), {"student": student})
    print(f"largest difference of a probability: {difference(graph, folder, starter):.1e}")


def take_weights(graph: onnx.ModelProto, student: Model, temperature: float) -> None:
    """Undo the rewrites of `edgelung.export.graph`; both heads become the mean of the two."""
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.graph.initializer}
    state = student.state_dict()
    width, heads = student.embed_dim, student.blocks[0].attn.num_heads
    weights: Constants = {}
    for name in state:
        if name.startswith("blocks.") and ".qkv." in name:
            weights[name] = _queries_keys_values(values, name, width // heads)
        elif name in values and "head" not in name and "patch_embed" not in name:
            value = values[name]
            is_linear = name.endswith(".weight") and value.ndim == 2
            weights[name] = value.T if is_linear else value
    weights |= _embedding(values, student) | _heads(values, temperature)
    missing = set(state) - set(weights)
    if missing:
        raise SystemExit(f"the graph has no {sorted(missing)}")
    student.load_state_dict(
        {k: torch.tensor(v).reshape(state[k].shape) for k, v in weights.items()}
    )


def _queries_keys_values(values: Constants, name: str, head_width: int) -> npt.NDArray[np.float64]:
    """Weight (3D, D) or bias (3D,), 1/√d taken out of the queries."""
    prefix, kind = name.rsplit(".qkv.", 1)
    names = [f"{prefix}.qkv.{i}.{kind}" for i in range(3)]
    if names[0] not in values:
        names = [f"{prefix}.{part}.{kind}" for part in ("q", "kv.0", "kv.1")]
    q, k, v = (values[n].T for n in names)
    return np.concatenate([q * head_width**0.5, k, v])


def _embedding(values: Constants, student: Model) -> Constants:
    """Normalisation out of the patch embedding, class tokens out of the positions."""
    config = student.pretrained_cfg
    mean, std = (np.array(config[key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    patch = student.patch_embed.patch_size[0]
    kernel = values["patch_embed.proj.weight"].T / (PIXEL_STEP / 255)  # (D, P·P·3)
    kernel = kernel.reshape(-1, patch, patch, 3).transpose(0, 3, 1, 2)  # (D, 3, P, P)
    centre = PIXEL_OFFSET / 255 - mean
    bias = values["patch_embed.proj.bias"] - (kernel * centre).sum(axis=(1, 2, 3))
    positions = values["positions"].copy()  # (1, T, D)
    tokens = {"cls_token": positions[:, :1].copy(), "dist_token": positions[:, 1:2].copy()}
    positions[:, :2] = 0
    return {
        "patch_embed.proj.weight": kernel * std,
        "patch_embed.proj.bias": bias,
        "pos_embed": positions,
        **tokens,
    }


def _heads(values: Constants, temperature: float) -> Constants:
    weight = values["head.weight"].T * temperature / 0.5  # (classes, 2D)
    halves = np.split(weight, 2, axis=1)
    bias = values["head.bias"] * temperature  # of each head: their mean is what the graph adds
    return {
        "head.weight": halves[0],
        "head_dist.weight": halves[1],
        "head.bias": bias,
        "head_dist.bias": bias,
    }


def difference(graph: onnx.ModelProto, folder: RunFolder, starter: Bundle) -> float:
    """Largest difference of a probability between the starter and the run, on random tiles."""
    tiles = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), np.uint8)
    again = build_graph(read_student(folder), temperature=starter.manifest.temperature)
    first, second = (
        ort.InferenceSession(model.SerializeToString()).run(["probs"], {"tiles": tiles})[0]
        for model in (graph, again)
    )
    return float(np.abs(first - second).max())


if __name__ == "__main__":
    main()
