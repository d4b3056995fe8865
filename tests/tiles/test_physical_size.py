"""The size of a training tile in micrometres: what is taken, and which slips are refused."""

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.tiles.physical_size import check_tile_um, stated_side

SQUARES = {"768x768": 10}


def test_nothing_stated_is_not_known() -> None:
    assert stated_side(SQUARES) is None


def test_micrometres_per_pixel_times_pixels_is_the_side() -> None:
    assert stated_side(SQUARES, mpp=0.25) == 192


def test_tiles_of_several_sizes_may_show_as_much_tissue() -> None:
    assert stated_side({"768x768": 3, "224x224": 9}, tile_um=192) == 192


def test_one_scale_of_several_sizes_is_refused_with_the_side_of_most() -> None:
    with pytest.raises(EdgelungError, match=r"one size; found 2, most .*768×768.*--tile-um 192$"):
        stated_side({"768x768": 9, "224x224": 3}, mpp=0.25)


def test_both_statements_at_once_are_refused() -> None:
    with pytest.raises(EdgelungError, match="give one of them"):
        stated_side(SQUARES, tile_um=192, mpp=0.25)


@pytest.mark.parametrize("options", [{"tile_um": 192.0}, {"mpp": 0.25}])
def test_tiles_that_are_not_square_have_no_side(options: dict[str, float]) -> None:
    with pytest.raises(EdgelungError, match="most training tiles are not square"):
        stated_side({"768x512": 10}, **options)


def test_a_few_cut_off_tiles_do_not_matter() -> None:
    assert stated_side({"768x768": 9, "768x100": 1, "768x760": 5}, tile_um=192) == 192


@pytest.mark.parametrize("value", [0.0, -192.0, 0.25, 4.9, 5000.1, float("nan"), float("inf")])
def test_an_implausible_side_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"expected the side .* 5 to 5,000"):
        check_tile_um(value)
    with pytest.raises(EdgelungError, match=r"^--tile-um .*: found .*; expected"):
        stated_side(SQUARES, tile_um=value)


@pytest.mark.parametrize("mpp", [0.001, 25.0, 1e306])
def test_a_scale_that_makes_an_implausible_side_is_refused(mpp: float) -> None:
    with pytest.raises(
        EdgelungError, match=r"^--mpp .* with tiles of 768×768 px: found .*expected"
    ):
        stated_side(SQUARES, mpp=mpp)
