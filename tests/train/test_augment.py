"""Augmentation does what its numbers say."""

import math

import pytest
import torch

from edgelung.train.augment import affine_matrices, augment, change_colour
from edgelung.train.recipe import Augment, load_recipe


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int = 4, size: int = 64) -> torch.Tensor:
    ramp = torch.linspace(0, 255, size)
    planes = torch.stack([ramp[None].expand(size, size), ramp[:, None].expand(size, size)])
    picture = torch.cat([planes, planes.mean(0, keepdim=True)])
    return picture.to(torch.uint8).expand(count, 3, size, size)


def test_nothing_asked_changes_nothing() -> None:
    tiles = smooth()
    views = augment(tiles, 64, Augment(), generator())
    torch.testing.assert_close(views, tiles.float() / 255, atol=1e-5, rtol=0)


def test_a_certain_flip_is_a_flip() -> None:
    tiles = smooth()
    views = augment(tiles, 64, Augment(hflip=1.0), generator())
    torch.testing.assert_close(views, tiles.float().flip(-1) / 255, atol=1e-5, rtol=0)
    views = augment(tiles, 64, Augment(vflip=1.0), generator())
    torch.testing.assert_close(views, tiles.float().flip(-2) / 255, atol=1e-5, rtol=0)


def test_the_papers_parameters_are_the_ranges_that_occur() -> None:
    how = load_recipe("paper").augment
    warp = affine_matrices(20_000, how, generator())
    a, b = warp[:, :, 0], warp[:, :, 1]
    flipped = torch.det(warp[:, :, :2]) < 0
    assert flipped.float().mean().item() == pytest.approx(0.1, abs=0.01)
    side = a.norm(dim=1)
    assert side.min() >= 0.9 - 1e-4
    assert side.max() <= 1.1 + 1e-4
    sign = torch.where(flipped, -1.0, 1.0)
    angle = torch.atan2(a[:, 1] * sign, a[:, 0] * sign) * 180 / math.pi
    assert angle.abs().max() <= 10.001
    assert angle.abs().max() >= 9.9
    shear = (a * sign[:, None] * b).sum(1) / side**2
    assert shear.abs().max() <= 0.1001
    # 10 % of the side is 0.2 in −1…1; a crop of 0.9 may lie 0.1 further off the centre
    assert warp[:, :, 2].abs().max() <= 0.3001


def test_a_window_is_a_part_of_the_tile_at_its_scale() -> None:
    """Pixel for pixel, from anywhere in it."""
    tiles = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8)
    warp = affine_matrices(16, Augment(), generator(3), window=0.5)
    views = augment(tiles, 32, Augment(), generator(3), window=0.5)
    assert views.shape == (16, 3, 32, 32)
    corners = ((warp[:, :, 2] + 1) * 32 - 16).flip(1)  # (B, 2): top, left; of the pixel grid
    assert corners.min() >= 0
    assert corners.max() <= 32
    assert (corners.std(0) > 5).all()
    for tile, view, corner in zip(tiles, views, corners, strict=True):
        top, left = corner.tolist()
        y, x = int(top), int(left)
        shift_y, shift_x = top - y, left - x
        around = tile[:, y : y + 33, x : x + 33].float() / 255
        rows = around[:, :-1] * (1 - shift_y) + around[:, 1:] * shift_y
        expected = rows[:, :, :-1] * (1 - shift_x) + rows[:, :, 1:] * shift_x
        torch.testing.assert_close(view, expected[:, :32, :32], atol=1e-4, rtol=0)


def test_parameters_depend_on_the_generator_alone() -> None:
    how = load_recipe("quick").augment
    first = augment(smooth(), 32, how, generator(5))
    torch.manual_seed(99)
    torch.testing.assert_close(first, augment(smooth(), 32, how, generator(5)), atol=0, rtol=0)
    assert not torch.equal(first, augment(smooth(), 32, how, generator(6)))


def test_stain_changes_colour_but_keeps_white_near_white() -> None:
    how = Augment(stain=0.2)
    tissue = torch.tensor([0.7, 0.4, 0.6]).view(1, 3, 1, 1).expand(200, 3, 2, 2)
    changed = change_colour(tissue, how, generator())
    assert changed.std(dim=0).min() > 0.01
    assert changed.min() >= 0
    assert changed.max() <= 1
    white = change_colour(torch.ones(200, 3, 2, 2), how, generator())
    assert white.mean() > 0.95


def test_views_have_no_black_corners() -> None:
    bright = torch.full((8, 3, 48, 48), 200, dtype=torch.uint8)
    views = augment(bright, 48, Augment(rotate=180, scale=(1.0, 1.1), translate=0.1), generator())
    assert views.min() > 0.75


def test_a_share_of_a_batch_looks_as_it_does_in_the_batch() -> None:
    """Two processes together see what one would."""
    how = load_recipe("quick").augment
    whole = augment(smooth(6), 32, how, generator(5))
    for rank in (0, 1):
        part = augment(smooth(3), 32, how, generator(5), share=(rank, 2))
        torch.testing.assert_close(part, whole[rank::2], atol=1e-6, rtol=0)
