"""Random views of tiles: an affine warp and a stain change, in batches, on any device."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from edgelung.train.recipe import Augment

# Optical density of haematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001).
_STAINS = F.normalize(
    torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]), dim=1
)
_UNMIX = torch.linalg.inv(_STAINS)


@lru_cache
def _stains(device: torch.device) -> tuple[Tensor, Tensor]:
    """The stains and the inverse of their matrix on a device; every step needs them."""
    return _STAINS.to(device), _UNMIX.to(device)


def augment(
    tiles: Tensor,
    size: int,
    settings: Augment,
    generator: torch.Generator,
    share: tuple[int, int] = (0, 1),
    window: float = 1.0,
) -> Tensor:
    """Random views of uint8 (B, 3, H, W) tiles as float32 (B, 3, size, size) in 0…1.

    Args:
        tiles: uint8 (B, 3, H, W).
        size: side of the views in pixels.
        settings: ranges of the random parameters.
        generator: a CPU generator, so the parameters are the same on every device.
        share: (rank, n) if the tiles are every n-th of a batch of n · B, starting at the rank-th;
            they get the views that they would get in that batch.
        window: fraction of the view's side that is kept, at a random place. The scale stays the
            same if `size` is that fraction of the whole view's size.
    """
    images = tiles.float() / 255
    rank, processes = share
    warp = affine_matrices(len(tiles) * processes, settings, generator, window)[rank::processes]
    warp = warp.to(images.device)
    grid = F.affine_grid(warp, [len(tiles), 3, size, size], align_corners=False)
    # Reflection: black corners would tell the model the angle of a rotation.
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return change_colour(images, settings, generator, share)


def affine_matrices(
    count: int, settings: Augment, generator: torch.Generator, window: float = 1.0
) -> Tensor:
    """Random maps (count, 2, 3) from output to input coordinates in −1…1, for `F.affine_grid`."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    def flip(probability: float) -> Tensor:
        return torch.where(torch.rand(count, generator=generator) < probability, -1.0, 1.0)

    angle = uniform(-settings.rotate, settings.rotate) * math.pi / 180
    side = window * torch.exp(uniform(math.log(settings.scale[0]), math.log(settings.scale[1])))
    shear = uniform(-settings.shear, settings.shear)
    flip_x, flip_y = flip(settings.hflip), flip(settings.vflip)
    # A crop that is smaller than the tile lies anywhere in it. The tile is 2 units wide.
    room = (1 - side).clamp(min=0)
    shift_x = uniform(-1, 1) * room + 2 * uniform(-settings.translate, settings.translate)
    shift_y = uniform(-1, 1) * room + 2 * uniform(-settings.translate, settings.translate)
    cos, sin = angle.cos() * side, angle.sin() * side
    # rotation · scale · shear · flip
    rows = [
        torch.stack([cos * flip_x, (cos * shear - sin) * flip_y, shift_x], dim=1),
        torch.stack([sin * flip_x, (sin * shear + cos) * flip_y, shift_y], dim=1),
    ]
    return torch.stack(rows, dim=1)


def change_colour(
    images: Tensor, settings: Augment, generator: torch.Generator, share: tuple[int, int] = (0, 1)
) -> Tensor:
    """Change stain and light of float images (B, 3, H, W) in 0…1.

    Stain: the amounts of haematoxylin, eosin and a residual are each scaled (σ = stain) and shifted
    slightly in optical density, as between slides and scanners (after Tellez et al. 2018).
    """
    rank, processes = share

    def normal(*shape: int) -> Tensor:
        """Standard normal (B, *shape)."""
        values = torch.randn(len(images) * processes, *shape, generator=generator)
        return values[rank::processes].to(images.device)

    if settings.stain:
        stains, unmix = _stains(images.device)
        density = -torch.log(images.clamp(min=1 / 255))
        amounts = 1 + settings.stain * normal(3)
        # One 3x3 matrix per tile: unmix, scale, mix again; (B, 3, 3).
        mix = torch.einsum("ij,bj,jk->bki", unmix, amounts, stains)
        shift = (settings.stain / 8 * normal(3)) @ stains  # (B, 3)
        flat = torch.baddbmm(shift[:, :, None], mix, density.flatten(2))  # (B, 3, H·W)
        images = torch.exp(-flat).view_as(images).clamp(0, 1)
    if settings.light:
        contrast = 1 + settings.light * normal(1, 1, 1)
        brightness = settings.light / 2 * normal(1, 1, 1)
        images = ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
    return images
