"""Tiles without tissue to judge: glass, black, one colour, pen, out of focus.

Told by simple statistics of the tile as the model sees it. The limits are wide: they let every tile
of LC25000 pass (`benchmarks/unknown.py`). What passes may still be unknown to the model (see
`edgelung.evaluation.known`). docs/explanation/unknown.md describes both.
"""

import numpy as np
import numpy.typing as npt

from edgelung.kernels.resize import Pixels

SAMPLED_SIDE = 224  # about this many pixels a side are looked at
Channel = npt.NDArray[np.int16]

GLASS_LEVEL, GLASS_SHARE = 200, 0.95  # least channel of a bright pixel; share of such pixels
DARK_LEVEL, DARK_SHARE = 60, 0.9  # greatest channel of a dark pixel
LEAST_CONTRAST = 8.0  # standard deviation of the green channel, levels
LEAST_SHARPNESS = 0.33  # steep steps between neighbours, in standard deviations
STEEP = 0.99  # quantile of the steps
PEN_SHARE = 0.75


def why_blank(pixels: Pixels) -> str:
    """Why a tile, uint8 RGB (H, W, 3), shows no tissue that could be judged; '' if it may.

    A tile that waits for its resize is larger than the model's input: then pixels are left out.
    """
    step = max(1, min(pixels.shape[:2]) // SAMPLED_SIDE)
    sampled = pixels[::step, ::step]
    red, green, blue = (sampled[::4, ::4, channel].astype(np.int16) for channel in range(3))
    if (np.minimum(np.minimum(red, green), blue) >= GLASS_LEVEL).mean() >= GLASS_SHARE:
        return "glass: nearly all of it is bright"
    if (np.maximum(np.maximum(red, green), blue) < DARK_LEVEL).mean() >= DARK_SHARE:
        return "black: nearly all of it is dark"
    contrast = float(green.std())
    if contrast < LEAST_CONTRAST:
        return "one colour: it has hardly any contrast"
    if pen_ink(red, green, blue).mean() >= PEN_SHARE:
        return "pen: most of it has a colour that stained tissue does not have"
    if _steepest(sampled[..., 1]) < LEAST_SHARPNESS * contrast:
        return "out of focus: it has no sharp edge"
    return ""


def pen_ink(red: Channel, green: Channel, blue: Channel) -> npt.NDArray[np.bool_]:
    """The pixels with the colour of a green, blue or red felt pen; stained tissue has none."""
    ink = green - np.maximum(red, blue) > 15  # green
    ink |= (blue - red > 80) & (red < 120)  # blue
    ink |= (red - green > 150) & (red - blue > 150)  # red
    return ink


def _steepest(green: Pixels) -> float:
    """The step between neighbours, in levels, that `STEEP` of them do not exceed."""
    rows, columns = green[::16].astype(np.int16), green[:, ::16].T.astype(np.int16)
    steps = np.concatenate([np.abs(np.diff(rows)).ravel(), np.abs(np.diff(columns)).ravel()])
    counts = np.bincount(steps, minlength=256)
    return float(np.searchsorted(counts.cumsum(), STEEP * len(steps)))
