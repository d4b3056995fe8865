"""Teachers and students from timm: created, initialised, saved."""

import logging
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edgelung.artifacts.model_config import ModelConfig, PretrainedConfig, StudentShape
from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import atomic_write, writing
from edgelung.train.recipe import Member, Schedule, Student
from edgelung.train.selection import select_weights
from edgelung.train.setting_names import setting
from edgelung.train.vit_probe import ViTProbe
from edgelung.train.weights import (
    NONE,
    architecture_of,
    classifiers,
    fresh_classifiers,
    hub_name,
    load_weights,
    plain_model_name,
)

logger = logging.getLogger(__name__)

# timm's models have attributes that torch's `nn.Module` does not declare.
Model = Any

VIT_MODULES = {"vision_transformer", "deit"}  # of timm: their models are made for an input size


def create_classifier(schedule: Schedule, classes: int, role: str) -> Model:
    """Create the baseline or a model of the teacher. A ViT is made for tiles of `schedule.size`.

    The probe of a plain ViT reads patch tokens (`vit_probe.py`), that of another model what its
    classifier reads.

    Raises EdgelungError for an unknown model or missing weights.
    """
    options: dict[str, int] = {}
    if timm.models.is_model_in_modules(plain_model_name(schedule.model), VIT_MODULES):
        options = {"img_size": schedule.size, "dynamic_img_size": True}
    model = _create(schedule, classes, role, **options)
    is_probe = isinstance(schedule, Member) and schedule.fit == "probe"
    # Not its subclasses: a distilled DeiT has two classifiers. Nor a trained attention pooling.
    if is_probe and type(model) is VisionTransformer and model.attn_pool is None:
        return ViTProbe.convert(model, classes)
    return model


def create_student(schedule: Student, classes: int) -> Model:
    """Create a distilled DeiT for tiles of `schedule.size` and windows of `schedule.low_size` px.

    Raises EdgelungError for a model without a distillation token, missing weights, or sizes that
    are not multiples of the patch size.
    """
    if architecture_of(schedule.model) not in timm.list_models("deit_*distilled*"):
        raise EdgelungError(
            f"student {schedule.model} is no DeiT with a distillation token; expected one of "
            f"{', '.join(timm.list_models('deit_*distilled*'))}"
        )
    selects = schedule.init == "select" and schedule.weights != NONE
    model = _create(
        schedule.model_copy(update={"weights": NONE}) if selects else schedule,
        classes,
        "student",
        img_size=schedule.size,
        drop_path_rate=schedule.drop_path,
        dynamic_img_size=True,
    )
    patch = patch_size(model)
    for name, size in (("size", schedule.size), ("low_size", schedule.low_size)):
        if size % patch:
            raise EdgelungError(
                f"student.{name} is {size}; expected a multiple of the patch size, {patch} pixels"
            )
    if schedule.init == "mimetic" and schedule.weights == NONE:
        mimetic_init(model)
    if selects:
        source = schedule.model_copy(update={"model": schedule.source})
        select_weights(_create(source, classes, "student"), model)
    return model


def patch_size(model: Model) -> int:
    """Pixels of the patches of a ViT; 1 for a CNN."""
    return int(model.patch_embed.patch_size[0]) if isinstance(model, VisionTransformer) else 1


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
    """Write the weights of a role and its config.json.

    `timm.create_model` can load it from there, except a ViT with a probe.
    """
    with writing(run.model_folder(role)):
        run.model_folder(role).mkdir(parents=True, exist_ok=True)
    is_vit = isinstance(model, VisionTransformer)
    shape = StudentShape()
    if hasattr(model, "dist_token"):
        heads = model.blocks[0].attn.num_heads
        shape = StudentShape(num_heads=heads, patch_size=patch_size(model))
    with atomic_write(run.weights_path(role)) as file:
        file.write(save({k: v.contiguous().cpu() for k, v in model.state_dict().items()}))
    config = model.pretrained_cfg
    run.write_model_config(
        ModelConfig(
            architecture=config["architecture"],
            num_classes=len(classes),
            num_features=model.num_features,
            label_names=classes,
            model_args={"img_size": size} if is_vit else {},
            pretrained_cfg=PretrainedConfig(
                input_size=(3, size, size),
                fixed_input_size=is_vit,
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
    """Load the weights that `save_model` wrote.

    Raises EdgelungError if an older edgelung wrote them for another form of the model.
    """
    try:
        model.load_state_dict(load_file(run.weights_path(role)))
    except RuntimeError as error:
        raise EdgelungError(
            f"{run.weights_path(role)} does not fit the {role} of this recipe and version "
            f"({one_line(error, 90)}); start anew in another folder"
        ) from error


def _create(schedule: Schedule, classes: int, role: str, **options: Any) -> Model:
    name, weights = plain_model_name(schedule.model), schedule.weights
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0].rpartition('/')[2]}*")[:6]
        raise EdgelungError(
            f"timm has no model {schedule.model!r} for the {role}; "
            + (f"similar: {', '.join(near)}" if near else "see timm.list_models()")
        )
    hub = hub_name(name, weights, role)
    try:
        model = timm.create_model(hub or name, pretrained=bool(hub), num_classes=classes, **options)
    except Exception as error:  # the hub client raises many types when there is no network
        if not hub:
            raise EdgelungError(f"cannot create {name}: {one_line(error)}") from error
        raise EdgelungError(
            f"cannot get the {role} weights of {hub} from timm's hub ({one_line(error, 90)}); with "
            f"no network pass a file: --set {setting(role, 'weights')}=FILE"
        ) from error
    fresh: list[str] = []
    if hub:
        fresh = classifiers(model)
        fresh_classifiers(model, fresh)
    elif weights != NONE:
        fresh = load_weights(model, weights, role)
    elif "." in name:  # timm's tag names pretrained weights, which are not asked for
        logger.info(
            "%s %s starts without its weights; to load them: --set %s=hub",
            *(role, name, setting(role, "weights")),
        )
    if fresh and isinstance(schedule, Member) and not schedule.epochs:
        raise EdgelungError(
            f"{role} weights {weights} have no classifier for these {classes} classes, and "
            f"{setting(role, 'epochs')} is 0, so it would stay untrained; expected weights of a "
            "model for these classes, or epochs above 0"
        )
    return model
