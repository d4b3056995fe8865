"""How many micrometres of tissue a tile shows: what people state, checked for slips.

A slide is cut into squares of this side. So the training tiles have to be squares too, and all of
them have to show as much tissue, whatever their size in pixels is.
"""

import math
from collections.abc import Mapping

from edgelung.core.errors import EdgelungError
from edgelung.tiles.sizes import Size, parse_size

# Side of a tile. A cell is 5 to 20 µm wide; 5,000 µm of a slide are 224 px at an objective of 0.5.
MIN_TILE_UM, MAX_TILE_UM = 5.0, 5000.0
MAX_SIDE_RATIO = 1.02  # between the sides of a tile that counts as square
EXPECTED = (
    f"the side of a training tile in micrometres, {MIN_TILE_UM:g} to {MAX_TILE_UM:,.0f}, such as "
    "192 for 768 px at 0.25 micrometres per pixel"
)


def check_tile_um(value: float) -> float:
    """Return the side of a tile in micrometres. Raises ValueError if it cannot be one."""
    if not MIN_TILE_UM <= value <= MAX_TILE_UM:  # NaN is neither
        raise ValueError(f"found {value:g}; expected {EXPECTED}")
    return float(value)


def check_mpp(value: float) -> float:
    """Return micrometres per pixel. Raises ValueError if the number is not positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(
            f"found {value:g}; expected the micrometres per pixel of the training tiles, such as "
            "0.25"
        )
    return float(value)


def stated_side(
    sizes: Mapping[str, int], *, tile_um: float | None = None, mpp: float | None = None
) -> float | None:
    """Side of the training tiles in micrometres, from what the user states about them.

    Args:
        sizes: number of training tiles by '<width>x<height>' in pixels.
        tile_um: the side in micrometres.
        mpp: micrometres per pixel of the files; then all tiles must have one size.

    Returns:
        The side; None if the user states neither.

    Raises:
        EdgelungError: if both are given, the side is implausible, or the tiles do not have the
            one, square size that it would be true for.
    """
    if tile_um is None and mpp is None:
        return None
    if tile_um is not None and mpp is not None:
        raise EdgelungError(
            "--tile-um and --mpp both state the physical size of a training tile; give one of them"
        )
    size = max(sizes, key=lambda name: (sizes[name], name))  # the most frequent
    width, height = parse_size(size)
    if mpp is not None and len(sizes) > 1:
        tile_um = max(width, height) * mpp
        raise EdgelungError(
            f"--mpp needs training tiles of one size; found {len(sizes)}, most of them {width}×"
            f"{height} px. If all show as much tissue, state their side instead: --tile-um "
            f"{tile_um:g}"
        )
    squares = sum(count for name, count in sizes.items() if _is_square(parse_size(name)))
    if 2 * squares < sum(sizes.values()):
        raise EdgelungError(
            f"most training tiles are not square ({width}×{height} px), but slides are cut into "
            "squares; cut the training tiles square, or leave --tile-um and --mpp out"
        )
    if mpp is None:
        return _side(tile_um or 0.0, f"--tile-um {tile_um:g}")
    side = max(width, height) * check_mpp(mpp)
    return _side(side, f"--mpp {mpp:g} with tiles of {width}×{height} px")


def _side(value: float, named: str) -> float:
    try:
        return check_tile_um(value)
    except ValueError as error:
        raise EdgelungError(f"{named}: {error}") from error


def _is_square(size: Size) -> bool:
    return max(size) <= MAX_SIDE_RATIO * min(size)
