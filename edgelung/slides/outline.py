"""Outlines that a user drew, from a GeoJSON file such as QuPath exports, as a tissue mask."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.extras import load_extra
from edgelung.core.folder import read_regular
from edgelung.core.typed_json import Json
from edgelung.slides.mask import MOST_PIXELS, Mask, TissueMask

MAX_BYTES = 1 << 28
MOST_DRAWN = 400 * MOST_PIXELS  # in the boxes around all polygons; bounds the time
EXPECTED = "expected GeoJSON with polygons, such as QuPath exports"

Rings = list[npt.NDArray[np.float64]]  # of one polygon, (N, 2) each; the first is its outside


def read_outline(path: Path, width: int, height: int) -> TissueMask:
    """Rasterize the polygons of a GeoJSON file; positions are pixels of level 0.

    Args:
        path: the file.
        width, height: of the slide, pixels of level 0.

    Raises:
        EdgelungError: the file cannot be read, holds no polygon, or none that lies on the slide.
    """
    try:
        data = read_regular(path, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        polygons = list(_polygons(typed_json.parse(data)))
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; {EXPECTED}") from error
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise EdgelungError(f"cannot read {path}: {one_line(error)}; {EXPECTED}") from error
    if not polygons:
        raise EdgelungError(f"{path} holds no polygon; {EXPECTED}")
    downsample = max(1.0, math.sqrt(width * height / MOST_PIXELS))
    shape = (math.ceil(height / downsample), math.ceil(width / downsample))
    pixels = _fill(polygons, shape, downsample)
    if not pixels.any():
        raise EdgelungError(
            f"the polygons of {path} cover nothing of the slide ({width}×{height} pixels); "
            "expected positions in pixels of the full resolution"
        )
    return TissueMask(pixels, downsample, f"the outlines of {path.name}")


def _polygons(value: Json) -> Iterator[Rings]:
    """The polygons in a FeatureCollection, a Feature, a geometry, or a list of those."""
    if isinstance(value, list):
        for one in value:
            yield from _polygons(one)
        return
    kind = value["type"]
    if kind == "FeatureCollection":
        yield from _polygons(value["features"])
    elif kind == "Feature":
        if value["geometry"] is not None:
            yield from _polygons(value["geometry"])
    elif kind == "GeometryCollection":
        yield from _polygons(value["geometries"])
    elif kind == "Polygon":
        yield _rings(value["coordinates"])
    elif kind == "MultiPolygon":
        for polygon in value["coordinates"]:
            yield _rings(polygon)


def _rings(coordinates: Sequence[Json]) -> Rings:
    if not coordinates:
        raise ValueError("a polygon without an outline")
    rings = [np.array([point[:2] for point in ring], np.float64) for ring in coordinates]
    for ring in rings:
        if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
            raise ValueError("a polygon needs at least three points of two numbers")
    return rings


def _fill(polygons: Sequence[Rings], shape: tuple[int, int], downsample: float) -> Mask:
    cv2 = load_extra("cv2", "the outline of the user")
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    left = MOST_DRAWN
    for rings in polygons:
        # Half a pixel: OpenCV's points lie in the middle of a pixel, GeoJSON's on its corner.
        scaled = [ring / downsample - 0.5 for ring in rings]
        first = np.floor(np.clip(scaled[0].min(0), 0, (width, height))).astype(int)
        last = np.ceil(np.clip(scaled[0].max(0) + 1, 0, (width, height))).astype(int)
        part = np.zeros((last - first)[::-1], np.uint8)
        left -= part.size
        if left < 0:
            raise EdgelungError(
                "too many large polygons lie over each other in the mask; expected outlines of "
                "tissue in GeoJSON: merge them"
            )
        if part.size:
            far = 1 << 20  # OpenCV draws in 32-bit numbers
            points = [np.rint(np.clip(ring - first, -far, far)).astype(np.int32) for ring in scaled]
            cv2.fillPoly(part, points, 1)  # holes by the even-odd rule
            mask[first[1] : last[1], first[0] : last[0]] |= part
    return mask.astype(bool)
