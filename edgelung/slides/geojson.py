"""GeoJSON as QuPath 0.4 and later read it: tiles as tile objects, tissue as annotations.

Positions are pixels of level 0 from the corner of the slide's bounds, where QuPath begins too. The
ids are made from the slide's name and the position, so the same results give the same bytes. The
text is written directly, a few thousand tiles at a time: 100,000 tiles take seconds.

Source: `QuPathTypeAdapters`, `ROITypeAdapters` and `GsonTools` of QuPath.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.predictions import DECIMALS
from edgelung.artifacts.slide_tiles import SlideTiles
from edgelung.core.files import atomic_write
from edgelung.slides.colours import TISSUE, Colour, class_colour
from edgelung.slides.outlines import Piece, Point, outlines

TILES, TISSUE_FILE = "tiles.geojson", "tissue.geojson"
CHUNK = 4096  # tiles; bounds the memory
TISSUE_CLASS = "Tissue"
_IDS = uuid.UUID("5e9f2f0e-0d0b-5b0e-8a55-6c1f6d6f2a10")  # the namespace of our ids
_BEGIN, _END = '{"type":"FeatureCollection","features":[\n', "\n]}\n"


def write_tile_features(path: Path, tiles: SlideTiles, slide: str) -> int:
    """Write the predicted tiles as QuPath tile objects; returns their number.

    A tile that has no label (left to people) has its measurements, but no classification. A tile
    without probabilities is left out: QuPath would count an object that nothing was measured of.
    `slide`: the slide's name, for the ids.
    """
    rows = np.flatnonzero(tiles.predicted)
    with atomic_write(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(_BEGIN)
        for number, features in enumerate(_tile_features(tiles, rows, slide)):
            file.write(",\n" if number else "")
            file.write(",\n".join(features))
        file.write(_END)
    return len(rows)


def write_tissue_features(
    path: Path,
    mask: npt.NDArray[np.bool_],
    downsample: float,
    slide: str,
    size: tuple[int, int],
) -> int:
    """Write the tissue mask as locked QuPath annotations, one per piece; returns their number.

    Args:
        path: the file.
        mask: tissue (h, w).
        downsample: pixels of level 0 per pixel of the mask.
        slide: the slide's name, for the ids.
        size: width and height of the slide; the last pixels of a mask may hang over.
    """
    pieces, factor = outlines(mask)
    edges = [
        [_number(min(at * factor * downsample, most)) for at in range(length // factor + 2)]
        for length, most in zip(mask.shape[::-1], size, strict=True)
    ]
    with atomic_write(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(_BEGIN)
        for number, piece in enumerate(pieces):
            file.write(",\n" if number else "")
            file.write(_tissue_feature(piece, edges, slide))
        file.write(_END)
    return len(pieces)


def object_ids(slide: str, what: str) -> Callable[[int, int], str]:
    """Make the UUID of an object from its position: version 5, as `uuid.uuid5` makes it, faster.

    The name is the slide's, a line end, what it is, and x and y.
    """
    begin = hashlib.sha1(_IDS.bytes, usedforsecurity=False)
    begin.update(f"{slide}\n{what} ".encode("utf-8", "backslashreplace"))

    def at(x: int, y: int) -> str:
        digest = begin.copy()
        digest.update(b"%d %d" % (x, y))
        text = digest.hexdigest()
        variant = "89ab"[int(text[16], 16) & 3]
        return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}"

    return at


def _tile_features(
    tiles: SlideTiles, rows: npt.NDArray[np.intp], slide: str
) -> Iterator[list[str]]:
    """The Features of some tiles, CHUNK at a time."""
    names = [f"{_template_text(f'prob_{name}')}:%.{DECIMALS}f" for name in tiles.classes]
    if tiles.ood is not None:
        names.append(f'"ood":%.{DECIMALS}f')
    template = (
        '{"type":"Feature","id":"%s","geometry":{"type":"Polygon","coordinates":'
        "[[[%d,%d],[%d,%d],[%d,%d],[%d,%d],[%d,%d]]]},"
        '"properties":{"objectType":"tile",%s"isLocked":true,"measurements":{'
        + ",".join(names)
        + "}}}"
    )
    kinds = [
        f'"classification":{_classification(name, class_colour(index))},'
        for index, name in enumerate(tiles.classes)
    ]
    kinds.append("")  # -1 is no label
    id_at = object_ids(slide, "tile")
    side, labels = tiles.side, tiles.labels
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        measured = tiles.probabilities[part]
        if tiles.ood is not None:
            measured = np.column_stack([measured, tiles.ood[part]])
        columns = (tiles.x[part], tiles.y[part], labels[part], measured)
        cells = zip(*(column.tolist() for column in columns), strict=True)
        yield [
            template
            % (
                id_at(x, y),
                *(x, y, x + side, y, x + side, y + side, x, y + side, x, y),
                kinds[label],
                *values,
            )
            for x, y, label, values in cells
        ]


def _tissue_feature(piece: Piece, edges: Sequence[Sequence[str]], slide: str) -> str:
    across, down = edges

    def ring(points: list[Point]) -> str:
        closed = [*points, points[0]]
        return "[" + ",".join(f"[{across[x]},{down[y]}]" for x, y in closed) + "]"

    rings = ",".join(map(ring, (piece.shell, *piece.holes)))
    return (
        f'{{"type":"Feature","id":"{object_ids(slide, "tissue")(*piece.shell[0])}",'
        f'"geometry":{{"type":"Polygon","coordinates":[{rings}]}},'
        f'"properties":{{"objectType":"annotation",'
        f'"classification":{_classification(TISSUE_CLASS, TISSUE)},"isLocked":true}}}}'
    )


def _classification(name: str, colour: Colour) -> str:
    red, green, blue = colour
    return f'{{"name":{_text(name)},"color":[{red},{green},{blue}]}}'


def _text(text: str) -> str:
    return json.dumps(text.encode("utf-8", "backslashreplace").decode(), ensure_ascii=False)


def _template_text(text: str) -> str:
    return _text(text).replace("%", "%%")


def _number(value: float) -> str:
    """A position with two decimals at most, as QuPath writes it."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
