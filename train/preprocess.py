"""Model inputs: views of tiles, resized and normalised."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from edgelung.train.models import Model


def normalise(images: Tensor, model: Model) -> Tensor:
    """Normalise images (B, 3, H, W) in 0…1 with the mean and deviation that `model` expects."""
    mean, std = _statistics(model, images.device)
    return (images - mean) / std


def renormalise(images: Tensor, source: Model, target: Model) -> Tensor:
    """Images (B, 3, H, W) that are normalised for `source`, normalised for `target` instead."""
    ours, theirs = source.pretrained_cfg, target.pretrained_cfg
    if all(tuple(ours[key]) == tuple(theirs[key]) for key in ("mean", "std")):
        return images
    mean, std = _statistics(source, images.device)
    target_mean, target_std = _statistics(target, images.device)
    return (images * std + mean - target_mean) / target_std


def resize_views(images: Tensor, size: int) -> Tensor:
    """Resize images (B, 3, H, W) to (B, 3, size, size), antialiased."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _statistics(model: Model, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (1, 3, 1, 1) each."""
    config = model.pretrained_cfg
    return _per_channel(tuple(config["mean"]), device), _per_channel(tuple(config["std"]), device)


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value for each channel (1, 3, 1, 1) on a device; every step needs it."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)
