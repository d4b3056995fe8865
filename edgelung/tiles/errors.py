"""Why a file is not read as a tile: one fixed status word and a reason for people."""

from edgelung.core.errors import one_line
from edgelung.tiles.status import Status

__all__ = ["NOT_A_TILE", "Status", "TileError", "damaged"]

NOT_A_TILE = "not a tile; run `edgelung slide` on it, or cut tiles from it"  # said of a slide


class TileError(Exception):
    """A file that is not read as a tile."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def damaged(error: Exception) -> TileError:
    """Turn a decoder's error into `truncated` where data ran out, else into `corrupt`."""
    text = one_line(error)
    ran_out = any(word in text.lower() for word in ("premature", "truncated", "no more data"))
    return TileError(Status.TRUNCATED if ran_out else Status.CORRUPT, text)
