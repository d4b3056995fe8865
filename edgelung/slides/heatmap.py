"""Heat maps, the map of the labels, the tissue mask and the thumbnail, as PNG.

All but the thumbnail and the legend lie over the overview: the same corner, and the same size
unless they are reduced by a whole number. Pixels outside of the tiles are transparent. Where tiles
overlap, a pixel shows the mean of all tiles that cover it.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.core.errors import visible
from edgelung.core.files import atomic_write
from edgelung.slides.base import Overview
from edgelung.slides.colours import NO_LABEL, class_colour, probability_colours
from edgelung.slides.overview import shrink
from edgelung.slides.tile_raster import Raster, TileRaster

LABELS, LEGEND, MASK, THUMBNAIL = "labels.png", "legend.png", "mask.png", "thumbnail.png"
UNKNOWN = "unknown.png"
SEE_THROUGH = 160  # of 255: the tissue below stays visible
STEPS = 255  # of the probability scale; pixel value 0 is 'no tile'
COLOURS = 254  # most colours of the label map; classes beyond share them
NO_LABEL_VALUE = 255
THUMBNAIL_SIDE = 1024  # pixels
HATCH_STEP, HATCH_WIDTH, HATCH_ALPHA = 12, 2, 200  # pixels, pixels, of 255
_INK, _PAPER = (27, 31, 36), (255, 255, 255)


def write_pictures(
    folder: Path,
    tiles: SlideTiles,
    overview: Overview,
    mask: npt.NDArray[np.bool_] | None,
) -> list[str]:
    """Write all pictures of a slide into a folder; returns their names."""
    names = []
    for name, picture in _pictures(tiles, overview, mask):
        with atomic_write(folder / name) as file:
            file.write(picture)
        names.append(name)
    return names


def _pictures(
    tiles: SlideTiles, overview: Overview, mask: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[str, bytes]]:
    height, width, _ = overview.pixels.shape
    on = TileRaster(tiles, Raster(width, height, overview.downsample))
    for index, name in enumerate(tiles.classes):
        yield heat_map_name(index, name), heat_map(on, index)
    yield LABELS, label_map(on)
    yield LEGEND, legend(tiles.classes)
    if tiles.unknown.any():
        yield UNKNOWN, hatching(on)
    yield THUMBNAIL, thumbnail(tiles, overview)
    if mask is not None:
        yield MASK, mask_picture(mask)


def heat_map_name(index: int, name: str) -> str:
    """File name of the heat map of a class. Class names may hold what file names may not."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40].strip("-")
    return f"heat-{index + 1:02d}{'-' if plain else ''}{plain}.png"


def probability_values(on: TileRaster, index: int) -> npt.NDArray[np.uint8]:
    """Per cell: 0 without a tile, else 1 for probability 0 to 255 for probability 1."""
    mean = on.mean(on.tiles.probabilities[:, index])
    return np.nan_to_num(np.rint(1 + (STEPS - 1) * mean)).astype(np.uint8)


def heat_map(on: TileRaster, index: int, alpha: int = SEE_THROUGH) -> bytes:
    """PNG of the probability of one class. `alpha`: opacity of the tiles, of 255."""
    colours = np.vstack([[[0, 0, 0]], probability_colours(STEPS)])
    return _palette_png(on.picture(probability_values(on, index)), colours, alpha)


def label_map(on: TileRaster, alpha: int = SEE_THROUGH) -> bytes:
    """PNG of the labels. Where tiles overlap: the class of the largest mean probability.

    Unknown tissue has the colour of its most probable class: `hatching` lies over it. Grey: other
    tiles without a label, such as damaged ones and those that are left to people.
    """
    colours = [(0, 0, 0), *map(class_colour, range(COLOURS)), NO_LABEL]
    return _palette_png(on.picture(label_values(on)), np.array(colours, np.uint8), alpha)


def label_values(on: TileRaster) -> npt.NDArray[np.uint8]:
    """Per cell: 0 without a tile, 255 without a label, else 1 and more for the classes."""
    tiles = on.tiles
    covered = np.isfinite(on.mean(np.zeros(len(tiles))))
    values = np.where(covered, NO_LABEL_VALUE, 0).astype(np.uint8)
    largest = np.full(values.shape, -1.0)
    labelled = tiles.shown_labels >= 0
    for index in range(len(tiles.classes)):
        mean = np.nan_to_num(
            on.mean(np.where(labelled, tiles.probabilities[:, index], np.nan)), nan=-2
        )
        values[mean > largest] = 1 + index % COLOURS
        largest = np.maximum(largest, mean)
    return values


def hatching(on: TileRaster) -> bytes:
    """PNG of diagonal lines over the tiles that are unlike the training tiles."""
    unknown = on.mean(np.where(on.tiles.unknown, 1.0, 0.0))
    covered = on.picture((np.nan_to_num(unknown) >= 0.5).astype(np.uint8))
    lines = np.arange(covered.shape[1] + HATCH_STEP) % HATCH_STEP
    pattern = np.select([lines < HATCH_WIDTH, lines < 2 * HATCH_WIDTH], [1, 2]).astype(np.uint8)
    for number, row in enumerate(covered):  # in place: the picture may have 16 million pixels
        row *= pattern[number % HATCH_STEP :][: len(row)]
    colours = np.array([(0, 0, 0), _INK, _PAPER])  # dark and light lines show on any colour
    return _palette_png(covered, colours, HATCH_ALPHA)


def mask_picture(mask: npt.NDArray[np.bool_]) -> bytes:
    """PNG of the tissue mask (h, w): white is tissue."""
    return _png(Image.fromarray(mask.astype(np.uint8) * 255))


def dimmed_glass(mask: npt.NDArray[np.bool_], alpha: int = SEE_THROUGH) -> bytes:
    """PNG that dims what is not tissue, to lie over the overview."""
    return _palette_png((~mask).astype(np.uint8), np.array([[0, 0, 0], [70, 70, 70]]), alpha)


def thumbnail(tiles: SlideTiles, overview: Overview) -> bytes:
    """PNG of at most THUMBNAIL_SIDE pixels a side: the slide, the labels on it, their legend."""
    height, width, _ = overview.pixels.shape
    raster = Raster(width, height, overview.downsample).reduced(THUMBNAIL_SIDE)
    on = TileRaster(tiles, raster)
    factor = round(raster.downsample / overview.downsample)
    picture = Image.fromarray(shrink(overview.pixels, factor)).convert("RGBA")
    with Image.open(io.BytesIO(label_map(on))) as labels:
        picture.alpha_composite(labels.convert("RGBA"))
    if tiles.unknown.any():
        with Image.open(io.BytesIO(hatching(on))) as lines:
            picture.alpha_composite(lines.convert("RGBA"))
    keys = _label_keys(tiles.classes, max(picture.width, 320))
    whole = Image.new("RGB", (max(picture.width, keys.width), picture.height + keys.height), _PAPER)
    whole.paste(picture.convert("RGB"), (0, 0))
    whole.paste(keys, (0, picture.height))
    return _png(whole)


def legend(classes: Sequence[str]) -> bytes:
    """PNG with the scale of all heat maps and the colours of the label map."""
    width, bar, margin = 480, 20, 12
    keys = _label_keys(classes, width)
    scale = Image.new("RGB", (width, 78), _PAPER)
    draw, font = ImageDraw.Draw(scale), _font()
    draw.text((margin, 8), "probability of the class", _INK, font)
    ramp = probability_colours(width - 2 * margin)[None].repeat(bar, axis=0)
    scale.paste(Image.fromarray(ramp), (margin, 30))
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = margin + value * (width - 2 * margin - 1)
        anchor = "la" if value == 0 else "ra" if value == 1 else "ma"
        draw.text((at, 30 + bar + 4), f"{value:g}", _INK, font, anchor=anchor)
    whole = Image.new("RGB", (width, scale.height + keys.height), _PAPER)
    whole.paste(scale, (0, 0))
    whole.paste(keys, (0, scale.height))
    return _png(whole)


def _label_keys(classes: Sequence[str], width: int) -> Image.Image:
    """One coloured square and a name per class, in lines of at most `width` pixels."""
    font, margin, line = _font(), 12, 24
    entries = [(class_colour(i % COLOURS), name) for i, name in enumerate(classes)]
    placed, left, top = [], margin, margin
    for colour, name in [*entries, (NO_LABEL, "no label")]:
        text = visible(name if len(name) <= 36 else f"{name[:17]}…{name[-18:]}")
        needed = 24 + int(font.getlength(text)) + margin
        if left > margin and left + needed > width:
            left, top = margin, top + line
        placed.append((left, top, colour, text))
        left += needed
    picture = Image.new("RGB", (width, top + line), _PAPER)
    draw = ImageDraw.Draw(picture)
    for left, top, colour, text in placed:
        draw.rectangle((left, top, left + 15, top + 15), colour, _INK)
        draw.text((left + 22, top + 8), text, _INK, font, anchor="lm")
    return picture


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(14)


def _palette_png(
    values: npt.NDArray[np.uint8], colours: npt.NDArray[np.integer], alpha: int
) -> bytes:
    """PNG of palette colours (K, 3); the first one is transparent, all others have `alpha`."""
    image = Image.fromarray(values)
    image.putpalette(colours.astype(np.uint8).tobytes())
    return _png(image, bytes([0, *[alpha] * (len(colours) - 1)]))


def _png(image: Image.Image, transparency: bytes | None = None) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", **({} if transparency is None else {"transparency": transparency}))
    return data.getvalue()
