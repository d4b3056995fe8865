"""Physical size: micrometres per pixel of a slide, and how large the model's tile is on it.

A model is only right at the scale that it was trained at, and files often say nothing or something
wrong (TRIDENT#14, slideflow#266, HEST#106). So nothing is guessed: what is missing, implausible or
contradicted is refused, with the option that settles it.
"""

import math
from dataclasses import dataclass

from edgelung.core.errors import EdgelungError
from edgelung.slides.base import StatedScale

# A scanner has an objective of 10× to 80×: about 1 to 0.125 µm a pixel.
LEAST_MPP, MOST_MPP = 0.1, 1.5
MPP_TIMES_OBJECTIVE = 10.0  # a 20× objective has about 0.5 µm a pixel
# Between that and what a file says: scanners of 20× have 0.37 to 0.55, of 40× 0.20 to 0.27 µm.
MOST_CONTRADICTION = 1.6
MOST_ANISOTROPY = 1.05  # between the two directions
SAID_ANISOTROPY = 1.001  # above it, the summary says so
# What a user may name: far beyond any scanner, without the numbers of a slip on the keyboard.
LEAST_NAMED_MPP, MOST_NAMED_MPP = 0.01, 100.0
LEAST_TILE_UM, MOST_TILE_UM = 1.0, 100_000.0


@dataclass(frozen=True)
class Scale:
    """The scale at which a slide is read.

    Attributes:
        mpp: micrometres per pixel of level 0 (geometric mean of both directions).
        source: where it is from.
        notes: what a reader of the results should know about it.
    """

    mpp: float
    source: str
    notes: tuple[str, ...] = ()


def settle_scale(stated: StatedScale, mpp: float | None = None) -> Scale:
    """The scale of a slide.

    Args:
        stated: what the file says.
        mpp: what the user says with `--mpp`, in micrometres per pixel of level 0; it overrules the
            file.

    Raises:
        EdgelungError: the file says nothing, something implausible, or contradicts itself, and the
            user says nothing.
    """
    if mpp is not None:
        check_mpp(mpp)
        return Scale(mpp, "--mpp", _overruled(stated, mpp))
    x, y = stated.mpp_x, stated.mpp_y
    if x is None or y is None:
        lens = f", only an objective of {stated.objective:g}×" if stated.objective else ""
        raise EdgelungError(
            f"the file does not say how many micrometres a pixel has{lens}; name them with --mpp "
            "(ask who scanned it: 0.5 is usual for 20×, 0.25 for 40×)"
        )
    said = f"{x:g}" if x == y else f"{x:g} × {y:g}"
    said = f"{stated.source} says {said} µm a pixel"
    if not all(math.isfinite(one) and LEAST_MPP <= one <= MOST_MPP for one in (x, y)):
        raise EdgelungError(
            f"{said}; expected {LEAST_MPP:g} to {MOST_MPP:g}, as scanners have. Name the right "
            "value with --mpp"
        )
    mean = math.sqrt(x * y)
    if max(x, y) / min(x, y) > MOST_ANISOTROPY:
        raise EdgelungError(
            f"{said}: pixels that are no squares; expected at most {MOST_ANISOTROPY:g} times as "
            f"long as wide. Name one value with --mpp, such as {mean:.4g}"
        )
    if stated.objective:
        usual = MPP_TIMES_OBJECTIVE / stated.objective
        if max(mean / usual, usual / mean) > MOST_CONTRADICTION:
            raise EdgelungError(
                f"{said}, but its objective of {stated.objective:g}× has about {usual:.2g}. Name "
                "the right value with --mpp"
            )
    notes: tuple[str, ...] = ()
    if max(x, y) / min(x, y) > SAID_ANISOTROPY:
        notes = (f"pixels are {x:g} × {y:g} µm; tiles are read as if they were square",)
    return Scale(mean, stated.source, notes)


def check_mpp(mpp: float | None) -> None:
    """Raise EdgelungError for a `--mpp` that is no size of a pixel."""
    if mpp is not None and not LEAST_NAMED_MPP <= mpp <= MOST_NAMED_MPP:
        raise EdgelungError(
            f"--mpp {mpp:g}; expected {LEAST_NAMED_MPP:g} to {MOST_NAMED_MPP:g} micrometres per "
            "pixel"
        )


def _overruled(stated: StatedScale, mpp: float) -> tuple[str, ...]:
    x, y = stated.mpp_x, stated.mpp_y
    if x is None or y is None:
        return ()
    if max(x / mpp, mpp / x, y / mpp, mpp / y) <= SAID_ANISOTROPY:
        return ()
    return (f"--mpp {mpp:g} overrules the file: {stated.source} says {x:g} × {y:g} µm a pixel",)


def settle_tile(model_um: float | None, tile_um: float | None) -> tuple[float, tuple[str, ...]]:
    """Side of a tile in micrometres, and notes about it.

    Args:
        model_um: what the bundle says that the model was trained on; None if it does not.
        tile_um: what the user says with `--tile-um`; it overrules the bundle.

    Raises:
        EdgelungError: neither says it.
    """
    if tile_um is None:
        if model_um is None:
            raise EdgelungError(
                "the bundle does not say how many micrometres a training tile was wide, so the "
                "right size on the slide is unknown; name it with --tile-um, or train with "
                "--tile-um or --mpp"
            )
        return model_um, ()
    if not LEAST_TILE_UM <= tile_um <= MOST_TILE_UM:
        raise EdgelungError(
            f"--tile-um {tile_um:g}; expected {LEAST_TILE_UM:g} to {MOST_TILE_UM:g} micrometres"
        )
    if model_um is not None and not math.isclose(model_um, tile_um, rel_tol=0.01):
        return tile_um, (f"--tile-um {tile_um:g} overrules the bundle: trained on {model_um:g} µm",)
    return tile_um, ()
