"""Sizes of tiles: which are far from those that the model was trained on."""

import pytest

from edgelung.tiles.sizes import MAX_SIZES, TrainedSizes, frequent

SQUARE = TrainedSizes({"224x224": 1000})


@pytest.mark.parametrize(
    "size", [(224, 224), (113, 113), (447, 447), (250, 210), (210, 250), (300, 240)]
)
def test_a_size_near_a_training_size_is_not_far(size: tuple[int, int]) -> None:
    assert not SQUARE.is_far(size)


@pytest.mark.parametrize("size", [(1, 1), (111, 111), (449, 449), (768, 200), (300, 230)])
def test_another_scale_or_aspect_ratio_is_far(size: tuple[int, int]) -> None:
    assert SQUARE.is_far(size)
    assert SQUARE.is_far(size[::-1])


def test_one_near_size_is_enough() -> None:
    sizes = TrainedSizes({"224x224": 1000, "1024x768": 1})
    assert not sizes.is_far((768, 1024))
    assert sizes.is_far((768, 768))


def test_a_bundle_that_does_not_know_its_sizes_calls_none_far() -> None:
    assert not TrainedSizes({}).is_far((9216, 9216))


def test_sizes_are_told_in_words() -> None:
    assert str(SQUARE) == "224×224 px"
    assert str(TrainedSizes({"768x768": 2, "512x512": 1})) == "2 sizes, 512×512 to 768×768 px"


def test_the_most_frequent_sizes_are_kept() -> None:
    sizes = [(f"{width}x224", width) for width in range(1, MAX_SIZES + 50)]
    kept = frequent(sizes)
    assert len(kept) == MAX_SIZES
    assert min(kept.values()) == 50
