"""Physical size: stated, or refused with the option that settles it."""

import math

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.slides.base import StatedScale
from edgelung.slides.scale import settle_scale, settle_tile


def stated(x: float | None, y: float | None = None, objective: float | None = None) -> StatedScale:
    return StatedScale(x, x if y is None else y, objective, "aperio.MPP")


@pytest.mark.parametrize(
    ("x", "objective"), [(0.499, 20), (0.2528, 40), (0.25, None), (1.0, 10), (0.37, 20), (0.11, 80)]
)
def test_a_plausible_scale_is_taken(x: float, objective: float | None) -> None:
    scale = settle_scale(stated(x, objective=objective))
    assert (scale.mpp, scale.source, scale.notes) == (pytest.approx(x), "aperio.MPP", ())


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (StatedScale(), ["does not say", "--mpp"]),
        (StatedScale(0.5, None), ["does not say", "--mpp"]),
        (StatedScale(objective=40.0), ["does not say", "40×", "--mpp"]),
        (stated(4.99), ["says 4.99", "expected 0.1 to 1.5", "--mpp"]),
        (stated(0.0499), ["says 0.0499", "expected 0.1 to 1.5", "--mpp"]),
        (stated(0.0), ["says 0", "--mpp"]),
        (stated(-0.5), ["says -0.5", "--mpp"]),
        (stated(math.nan), ["says nan", "--mpp"]),
        (stated(math.inf), ["says inf", "--mpp"]),
        (stated(0.5, 0.25), ["0.5 × 0.25", "no squares", "--mpp"]),
        (stated(0.5, objective=40), ["objective of 40×", "about 0.25", "--mpp"]),
        (stated(0.25, objective=20), ["objective of 20×", "about 0.5", "--mpp"]),
    ],
)
def test_what_is_missing_implausible_or_contradicted_is_refused(
    scale: StatedScale, words: list[str]
) -> None:
    with pytest.raises(EdgelungError) as caught:
        settle_scale(scale)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [StatedScale(), stated(4.99), stated(0.5, 0.25), stated(0.5)])
def test_the_user_settles_it_and_what_is_overruled_is_said(scale: StatedScale) -> None:
    settled = settle_scale(scale, 0.25)
    assert (settled.mpp, settled.source) == (0.25, "--mpp")
    assert bool(settled.notes) == (scale.mpp_x is not None)


@pytest.mark.parametrize("mpp", [0.0, -1.0, math.nan, math.inf, 5e-324, 1e-300, 1e300])
def test_a_user_can_be_wrong_too(mpp: float) -> None:
    with pytest.raises(EdgelungError, match="--mpp"):
        settle_scale(stated(0.5), mpp)


def test_slightly_anisotropic_pixels_are_tolerated_and_said() -> None:
    scale = settle_scale(stated(0.50, 0.51))
    assert scale.mpp == pytest.approx(math.sqrt(0.50 * 0.51))
    assert "0.5 × 0.51" in scale.notes[0]


def test_without_a_tile_size_nothing_is_guessed() -> None:
    with pytest.raises(EdgelungError, match=r"--tile-um"):
        settle_tile(None, None)


def test_the_bundle_says_the_size_of_a_tile_and_the_user_may_overrule_it() -> None:
    assert settle_tile(112.0, None) == (112.0, ())
    assert settle_tile(None, 150.0) == (150.0, ())
    assert settle_tile(112.0, 112.0) == (112.0, ())
    side, notes = settle_tile(112.0, 150.0)
    assert side == 150.0
    assert "trained on 112" in notes[0]


@pytest.mark.parametrize("tile_um", [0.0, -5.0, math.nan, math.inf, 1e-300, 1e300])
def test_a_tile_has_a_size(tile_um: float) -> None:
    with pytest.raises(EdgelungError, match="--tile-um"):
        settle_tile(112.0, tile_um)
