"""Weight selection: a small DeiT starts from every n-th channel and head of a larger ViT.

Xu et al., 'Initializing Models with Larger Ones' (ICLR 2024). The same channels are kept in all
layers, evenly spaced; of the heads whole ones, evenly spaced; of the blocks the first. Before that
the ViT is brought into the form of a DeiT: LayerScale is folded into the layers before it, the
normalisation of its inputs into the patch embedding, patches and positions are resampled.
"""

import logging
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError

logger = logging.getLogger(__name__)

Model = Any  # a timm model, as in `models.py`

EXPECTED = "expected a plain ViT such as vit_small_patch14_dinov2"
LAYER_SCALES = {"blocks.ls1.gamma", "blocks.ls2.gamma"}


@torch.no_grad()
def select_weights(source: Model, target: Model) -> None:
    """Overwrite the weights of a DeiT, all but its classifiers, with weights of a larger ViT.

    The class token and its position become those of the ViT; so do the distillation token and its
    position: both tokens begin alike, and their losses make them different. A `target` of the
    ViT's own width, heads and patches computes what the ViT computes, if it has no distillation
    token.

    Args:
        source: a timm VisionTransformer with a class token, with or without LayerScale.
        target: a timm DeiT, or a ViT of the same form, that is not larger in any way.

    Raises:
        EdgelungError: the source has other parts than the target, or is smaller.
    """
    _check(source, target)
    channels = _spread(target.embed_dim, source.embed_dim)
    heads = _spread(target.blocks[0].attn.num_heads, source.blocks[0].attn.num_heads)
    size = source.blocks[0].attn.head_dim
    rows = (heads[:, None] * size + torch.arange(size)).flatten()  # of the kept heads
    for block, large in zip(target.blocks, source.blocks, strict=False):
        hidden = _spread(block.mlp.fc1.out_features, large.mlp.fc1.out_features)
        three = torch.cat([rows + part * source.embed_dim for part in range(3)])  # q, k, v
        _copy_norm(block.norm1, large.norm1, channels)
        _copy_linear(block.attn.qkv, large.attn.qkv, three, channels)
        _copy_linear(block.attn.proj, large.attn.proj, channels, rows, large.ls1)
        _copy_norm(block.norm2, large.norm2, channels)
        _copy_linear(block.mlp.fc1, large.mlp.fc1, hidden, channels)
        _copy_linear(block.mlp.fc2, large.mlp.fc2, channels, hidden, large.ls2)
    _copy_norm(target.norm, source.norm, channels)
    kernel, bias = _patch_embedding(source, target)
    target.patch_embed.proj.weight.copy_(kernel[channels])
    target.patch_embed.proj.bias.copy_(bias[channels])
    grid = list(target.patch_embed.grid_size)
    old_grid = list(source.patch_embed.grid_size)
    positions = resample_abs_pos_embed(source.pos_embed, grid, old_grid)[:, :, channels]
    extra = positions[:, :1].expand(-1, target.num_prefix_tokens - 1, -1)
    target.pos_embed.copy_(torch.cat([positions[:, :1], extra, positions[:, 1:]], dim=1))
    target.cls_token.copy_(source.cls_token[:, :, channels])
    if hasattr(target, "dist_token"):
        target.dist_token.copy_(target.cls_token)
    logger.info(
        "student weights selected: %d of %d channels, %d of %d heads, %d of %d blocks; patches "
        "resampled from %d to %d px, positions from %d × %d to %d × %d",
        *(target.embed_dim, source.embed_dim, len(heads), source.blocks[0].attn.num_heads),
        *(len(target.blocks), len(source.blocks)),
        *(model.patch_embed.patch_size[0] for model in (source, target)),
        *(*old_grid, *grid),
    )


def _check(source: Model, target: Model) -> None:
    """Raise EdgelungError unless the target can be a part of the source."""
    name = source.pretrained_cfg["architecture"]
    if not isinstance(source, VisionTransformer) or source.no_embed_class:
        raise EdgelungError(f"student.source {name} is no ViT with a class token; {EXPECTED}")
    own = {"dist_token", *LAYER_SCALES}
    parts = [
        {_part(key) for key in model.state_dict() if not key.startswith("head")} - own
        for model in (source, target)
    ]
    if strange := sorted(parts[0] ^ parts[1]):
        raise EdgelungError(
            f"student.source {name} and the student differ in {strange[0]}; {EXPECTED}"
        )
    if source.num_prefix_tokens != 1:
        raise EdgelungError(f"student.source {name} has a distillation token; {EXPECTED}")
    mlp = source.blocks[0].mlp
    if mlp.fc2.in_features != mlp.fc1.out_features:  # the MLP of DINOv2's giant is gated
        raise EdgelungError(f"student.source {name} has a gated MLP; {EXPECTED}")
    own_sizes = _sizes(target)
    for what, size in _sizes(source).items():
        if size < own_sizes[what]:
            raise EdgelungError(
                f"student.source {name} has {size} {what}, the student {own_sizes[what]}; expected "
                "a source that is not smaller"
            )
    sizes = [model.blocks[0].attn.head_dim for model in (source, target)]
    if sizes[0] != sizes[1]:
        raise EdgelungError(
            f"student.source {name} has heads of {sizes[0]} channels, the student of {sizes[1]}; "
            "expected heads of one size"
        )


def _sizes(model: Model) -> dict[str, int]:
    first = model.blocks[0]
    return {
        "channels": model.embed_dim,
        "heads": first.attn.num_heads,
        "hidden channels": first.mlp.fc1.out_features,
        "blocks": len(model.blocks),
    }


def _part(key: str) -> str:
    """The name of a tensor without the number of its block."""
    return ".".join(part for part in key.split(".") if not part.isdigit())


def _spread(kept: int, count: int) -> Tensor:
    """`kept` of `count` indices, evenly spaced: every second one of twice as many."""
    return torch.arange(kept) * count // kept


def _copy_norm(target: nn.LayerNorm, source: nn.LayerNorm, channels: Tensor) -> None:
    target.weight.copy_(source.weight[channels])
    target.bias.copy_(source.bias[channels])


def _copy_linear(
    target: nn.Linear,
    source: nn.Linear,
    outputs: Tensor,
    inputs: Tensor,
    layer_scale: nn.Module | None = None,
) -> None:
    """Copy the kept outputs and inputs of a linear layer, times the LayerScale that follows it."""
    gamma = getattr(layer_scale, "gamma", torch.ones(source.out_features))  # (outputs,)
    target.weight.copy_((source.weight * gamma[:, None])[outputs][:, inputs])
    target.bias.copy_((source.bias * gamma)[outputs])


def _patch_embedding(source: Model, target: Model) -> tuple[Tensor, Tensor]:
    """Kernel (D, 3, P, P) and bias (D,) of the source for the target's patches and inputs."""
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std")]
        for model in (source, target)
    )
    kernel = source.patch_embed.proj.weight
    bias = source.patch_embed.proj.bias + (kernel * ((own_mean - mean) / std)).sum(dim=(1, 2, 3))
    kernel = resample_patch_embed(kernel * (own_std / std), list(target.patch_embed.patch_size))
    return kernel, bias
