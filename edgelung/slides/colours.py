"""Colours of classes and of probabilities, for pictures, pages and QuPath.

Nobody has to tell red from green. Classes have the colours of Okabe and Ito (2008), which people
with every common colour vision tell apart; probabilities have the scale cividis (Nuñez, Anderton
and Renslow, 2018), from dark blue to yellow, whose lightness rises evenly.
"""

import colorsys

import numpy as np
import numpy.typing as npt

Colour = tuple[int, int, int]

# Okabe and Ito, in an order in which neighbours differ most, on pink tissue too.
_CLASSES: tuple[Colour, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
    (64, 64, 64),  # dark grey
)
NO_LABEL: Colour = (150, 150, 150)  # tiles that were read, but have no label
TISSUE: Colour = (40, 40, 40)  # the outline of the tissue in QuPath
_GOLDEN = 0.618034  # of a turn: every further hue lies far from those before
_CIVIDIS = (
    *("00204d", "00336f", "39486b", "575c6d", "707173"),
    *("8a8779", "a69d75", "c4b56c", "e4cf5b", "ffea46"),
)


def class_colour(index: int) -> Colour:
    """The colour of a class. From the ninth on, colours alone do not tell all classes apart."""
    if index < len(_CLASSES):
        return _CLASSES[index]
    lightness = (0.35, 0.55, 0.75)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(index * _GOLDEN % 1, lightness, 0.65)
    return round(255 * red), round(255 * green), round(255 * blue)


def css(colour: Colour) -> str:
    """A colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def probability_colours(count: int) -> npt.NDArray[np.uint8]:
    """Colours (count, 3) of evenly spaced probabilities from 0 to 1."""
    anchors = np.array([list(bytes.fromhex(code)) for code in _CIVIDIS], np.float64)
    at = np.linspace(0, len(anchors) - 1, count)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T]
    colours: npt.NDArray[np.uint8] = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return colours
