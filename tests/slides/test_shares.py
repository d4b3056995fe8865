"""Shares of the tissue: weighed by tissue, with intervals from blocks and not from tiles."""

import dataclasses

import numpy as np
import pytest

from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.slides import shares
from edgelung.slides.shares import class_shares


def square_of_tiles(labels: np.ndarray, side: int = 500) -> SlideTiles:
    """One tile per label (rows, columns), of two classes; -1: without a label."""
    rows, columns = np.indices(labels.shape).reshape(2, -1)
    flat = labels.reshape(-1)
    return SlideTiles(
        classes=("a", "b"),
        x=(columns * side).astype(np.int64),
        y=(rows * side).astype(np.int64),
        side=side,
        step=float(side),
        probabilities=np.stack([flat != 1, flat == 1], axis=1).astype(np.float32),
        statuses=["ok" if label >= 0 else "review" for label in flat],
        errors=[""] * len(flat),
    )


def patches(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Labels in squares of `width` tiles."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 2, (count, count)), np.ones((width, width), int))


def test_a_share_is_of_the_tissue_and_not_of_the_tiles() -> None:
    tiles = square_of_tiles(np.array([[0, 1, 1, -1]]))
    found, _ = class_shares(tiles, np.array([1.0, 0.5, 0.5, 1.0]), 0.5)
    assert [one.tiles for one in found] == [1, 2]
    assert [one.share for one in found] == pytest.approx([0.5, 0.5])


def test_few_blocks_give_no_interval() -> None:
    tiles = square_of_tiles(patches(3, 8))  # 12 × 12 mm at 1 µm: 36 blocks; at 0.25 µm: 4
    assert class_shares(tiles, None, 1.0)[0][0].interval
    found, blocks = class_shares(tiles, None, 0.25)
    assert blocks.count == 4
    assert [one.interval for one in found] == [None, None]
    assert found[0].share is not None


def test_blocks_with_a_rim_of_tissue_do_not_count_as_whole_ones() -> None:
    tiles = square_of_tiles(np.zeros((16, 16), int))  # 16 blocks of 4 × 4 tiles
    tissue = np.where((tiles.x < 4000) & (tiles.y < 4000), 1.0, 0.01)
    _, blocks = class_shares(tiles, tissue, 1.0)
    assert blocks.count == 16
    assert blocks.effective < 5


def test_the_interval_of_patches_is_wider_than_that_of_single_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiles = square_of_tiles(patches(8, 4))
    low, high = class_shares(tiles, None, 1.0)[0][0].interval
    monkeypatch.setattr(shares, "BLOCK_UM", 0.0)
    monkeypatch.setattr(shares, "LEAST_TILES", 1)
    low_tiles, high_tiles = class_shares(tiles, None, 1.0)[0][0].interval
    assert high - low > 2.5 * (high_tiles - low_tiles)


def test_intervals_hold_the_true_share_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "RESAMPLES", 400)
    held = 0
    for seed in range(60):
        share = class_shares(square_of_tiles(patches(10, 4, seed)), None, 1.0)[0][0]
        held += share.interval[0] <= 0.5 <= share.interval[1]
    assert held >= 52  # 57 expected; fewer than 52 have a chance of one in a hundred


def test_one_class_everywhere_is_not_certain() -> None:
    tiles = square_of_tiles(np.zeros((24, 24), int))
    found, blocks = class_shares(tiles, None, 1.0)
    assert blocks.count == 36
    low = 0.025 ** (1 / 36)
    assert found[0].interval == pytest.approx((low, 1.0))
    assert found[1].interval == pytest.approx((0.0, 1 - low))


def test_the_same_tiles_have_the_same_interval(make_slide) -> None:
    slide = make_slide()
    weights = np.random.default_rng(0).random(len(slide.tiles))
    assert class_shares(slide.tiles, weights, 0.5) == class_shares(slide.tiles, weights, 0.5)


def test_overlapping_tiles_do_not_narrow_the_interval(make_slide) -> None:
    plain = make_slide(overlap=0.0).summary.shares[0].interval
    dense = make_slide(overlap=0.5).summary.shares[0].interval
    assert dense[1] - dense[0] == pytest.approx(plain[1] - plain[0], rel=0.35)


def test_a_slide_without_labels_has_no_share() -> None:
    tiles = square_of_tiles(np.full((2, 2), -1))
    found, blocks = class_shares(tiles, None, 0.5)
    assert blocks is None
    assert [(one.tiles, one.share, one.interval) for one in found] == [(0, None, None)] * 2
    none = dataclasses.replace(
        tiles, x=tiles.x[:0], y=tiles.y[:0], probabilities=tiles.probabilities[:0], statuses=[]
    )
    assert class_shares(none, None, 0.5)[1] is None
