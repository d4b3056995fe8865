"""Scores for tissue that a model was not made for: those that `unknown.py` compares.

Each takes the features of training tiles, their classes, and the features of the tiles to judge;
a higher score is further from the training tiles. Literature: maximum softmax (Hendrycks and Gimpel
2017), energy (Liu et al. 2020), Mahalanobis (Lee et al. 2018), relative Mahalanobis (Ren et al.
2021), nearest neighbours (Sun et al. 2022), ViM (Wang et al. 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.utils import Extractor
from rich.progress import track

from edgelung.evaluation.known import fit_known
from edgelung.tiles.reader import ReaderSpec, read_tile

Array = npt.NDArray[np.float64]
BATCH = 8
NEIGHBOURS = 10
PATCH_BLOCKS = (2, 4, 5, 6, 7, 8, 9, 10, 11)
TOKEN_BLOCKS = (8, 10, 11)


@dataclass(frozen=True)
class Features:
    """What a graph computes on the way, by name, (N, …) each, for tiles in this order."""

    paths: list[str]
    arrays: Mapping[str, npt.NDArray[np.float32]]

    def take(self, indices: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Features":
        """Some of the tiles."""
        chosen = np.arange(len(self.paths))[indices]
        paths = [self.paths[i] for i in chosen]
        return Features(paths, {name: array[chosen] for name, array in self.arrays.items()})


def with_features(graph: bytes) -> bytes:
    """A full-precision graph of `edgelung export` that also gives its features and logits."""
    model = onnx.load_from_string(graph)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    streams = [norms[2 * i].input[0] for i in range(1, len(norms) // 2)]  # after block i
    numbers = {"zero": 0, "two": 2, "end": 1 << 30, "one": 1}
    for name, value in numbers.items():
        tensor = helper.make_tensor(f"features.{name}", TensorProto.INT64, [1], [value])
        model.graph.initializer.append(tensor)
    names = []
    for block, stream in enumerate(streams, 1):
        for part, (start, end) in {"patches": ("two", "end"), "token": ("zero", "two")}.items():
            bounds = [f"features.{name}" for name in (start, end, "one")]
            out = f"features.{part}.{block}"
            model.graph.node.append(helper.make_node("Slice", [stream, *bounds], [out]))
            names.append(out)
        mean = f"features.mean.{block}"
        model.graph.node.append(
            helper.make_node(
                "ReduceMean",
                [f"features.patches.{block}", "features.one"],
                [mean],
                keepdims=0,
            )
        )
        names[-2:] = [names[-1], mean]
    head = next(node for node in model.graph.node if node.name == "head")
    names += [head.input[0], head.output[0]]
    known = {output.name for output in model.graph.output}
    for name in names:
        if name not in known:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())


def without_score(graph: bytes) -> bytes:
    """The graph without its output `ood` and what computes it."""
    part = Extractor(onnx.load_from_string(graph)).extract_model(["tiles"], ["probs"])
    part.graph.ClearField("value_info")  # shapes that the extractor adds
    return bytes(part.SerializeToString())


def read_features(graph: bytes, paths: list[Path], title: str, size: int = 224) -> Features:
    """Run a graph over tiles and keep its features in float32."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 0
    model = with_features(graph)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in outputs}
    spec = ReaderSpec(size=size)
    for start in track(range(0, len(paths), BATCH), title):
        tiles = np.stack([read_tile(path, spec) for path in paths[start : start + BATCH]])
        for name, array in zip(outputs, session.run(outputs, {"tiles": tiles}), strict=True):
            parts[name].append(array)
    arrays = {_short(name): np.concatenate(part) for name, part in parts.items()}
    return Features([str(path) for path in paths], arrays)


def _short(name: str) -> str:
    """'probs', 'mean 8', 'token 8', 'logits', 'penultimate'."""
    if name.startswith("features."):
        return name.removeprefix("features.").replace(".", " ")
    if name in ("probs", "ood"):
        return name
    return "logits" if name == "head.out" else "penultimate"


def all_scores(train: Features, labels: npt.NDArray[np.int64], tiles: Features) -> dict[str, Array]:
    """Every score of the tiles, (N,) each, by its name."""
    ours = {name: _flat(array) for name, array in train.arrays.items()}
    theirs = {name: _flat(array) for name, array in tiles.arrays.items()}
    logits, last = theirs["logits"], "penultimate"
    scores = {
        "1 - maximum softmax": 1 - theirs["probs"].max(axis=1),
        "energy": -_log_sum(logits),
        "ViM, class tokens": _vim(ours[last], ours["logits"], theirs[last], logits),
    }
    layers = [f"mean {block}" for block in PATCH_BLOCKS] + [f"token {b}" for b in TOKEN_BLOCKS]
    for name in layers:
        what = name.replace("mean", "patches, block").replace("token", "class tokens, block")
        x, y = ours[name], theirs[name]
        known = fit_known(x, labels, 0)
        scores[f"Mahalanobis, {what}"] = known.scores(y)
        everything = fit_known(x, np.zeros_like(labels), 0)
        scores[f"relative Mahalanobis, {what}"] = known.scores(y) - everything.scores(y)
    for name in ("mean 8", "mean 10"):
        what = name.replace("mean", "patches, block")
        scores[f"{NEIGHBOURS} nearest neighbours, {what}"] = _neighbours(ours[name], theirs[name])
    return scores


def _flat(array: npt.NDArray[np.float32]) -> Array:
    return array.reshape(len(array), -1).astype(np.float64)


def _log_sum(logits: Array) -> Array:
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)))


def _neighbours(train: Array, tiles: Array) -> Array:
    """Distance to the k-th nearest training tile, in features of length 1."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, tiles))
    nearest = np.sort(-(b @ a.T), axis=1)[:, NEIGHBOURS - 1]
    return 2 + 2 * nearest


def _vim(train: Array, train_logits: Array, tiles: Array, logits: Array) -> Array:
    """Virtual-logit matching: the part of the features outside the main subspace, as a logit."""
    mean = train.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((train - mean).T))
    rest = vectors[:, : train.shape[1] // 2]  # the smallest half
    length = np.linalg.norm((train - mean) @ rest, axis=1)
    alpha = train_logits.max(axis=1).mean() / length.mean()
    virtual = alpha * np.linalg.norm((tiles - mean) @ rest, axis=1)
    return np.asarray(virtual - _log_sum(logits))
