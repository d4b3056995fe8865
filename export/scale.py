"""The physical size of a training tile: stated when the run was trained, or at its export."""

from dataclasses import dataclass

from edgelung.artifacts.run import RunConfig
from edgelung.core.errors import EdgelungError
from edgelung.tiles.physical_size import stated_side


@dataclass(frozen=True)
class TileScale:
    """Side of a training tile in micrometres, and the command to which the user stated it."""

    tile_um: float
    stated_to: str


def resolve_scale(config: RunConfig, tile_um: float | None) -> TileScale | None:
    """The scale of a run; None where nobody stated it.

    Args:
        config: run.json.
        tile_um: what `export --tile-um` says, for runs that were trained without it.

    Raises:
        EdgelungError: if run.json states another side, or the tiles are not square.
    """
    if config.tile_um is None:
        side = stated_side(config.sizes, tile_um=tile_um)
        return None if side is None else TileScale(side, "export")
    if tile_um is not None and tile_um != config.tile_um:
        raise EdgelungError(
            f"--tile-um {tile_um:g} contradicts the run, which was trained with tiles of "
            f"{config.tile_um:g} µm; leave --tile-um out, or train again"
        )
    return TileScale(config.tile_um, "train")
