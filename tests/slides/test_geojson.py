"""GeoJSON, read back by the rules of QuPath 0.4 and later (`QuPathTypeAdapters`)."""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgelung.artifacts.slide_tiles import read_tiles, write_tiles
from edgelung.slides import geojson, outlines
from edgelung.slides.geojson import write_tile_features, write_tissue_features
from edgelung.slides.outlines import area

TYPES = {"tile", "cell", "detection", "annotation", "tmaCore", "root"}


class PathObject(NamedTuple):
    """What QuPath makes of a Feature."""

    id: uuid.UUID
    type: str
    rings: list[list[tuple[float, float]]]
    classification: tuple[str, tuple[int, ...]] | None
    locked: bool
    measurements: dict[str, float]

    @property
    def area(self) -> float:
        return sum(area(ring[:-1]) for ring in self.rings)


def read_as_qupath(path: Path) -> list[PathObject]:
    """As `PathObjectTypeAdapter.parseObject` and `ROITypeAdapter.parseGeometry` do."""
    collection = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    assert collection["type"] == "FeatureCollection"
    return [_parse(feature) for feature in collection["features"]]


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _parse(feature: dict[str, Any]) -> PathObject:
    assert feature["type"] == "Feature"
    geometry, properties = feature["geometry"], feature["properties"]
    assert geometry["type"] == "Polygon"
    rings = [[(x, y) for x, y in ring] for ring in geometry["coordinates"]]
    for ring in rings:  # JTS: LinearRing must be closed, with 0 or at least 4 points
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
    assert properties["objectType"] in TYPES  # before 'object_type' and 'type', within properties
    classification = None
    if "classification" in properties:  # PathClassProxy needs a name and a colour
        proxy = properties["classification"]
        assert len(proxy["color"]) == 3
        assert all(isinstance(value, int) and 0 <= value <= 255 for value in proxy["color"])
        classification = proxy["name"], tuple(proxy["color"])
    measurements = properties.get("measurements", {})
    assert isinstance(measurements, dict)  # a map: Map<String, Double>
    assert all(isinstance(value, float) for value in measurements.values())
    return PathObject(
        id=uuid.UUID(feature["id"]),
        type=properties["objectType"],
        rings=rings,
        classification=classification,
        locked=properties.get("isLocked", False),
        measurements=measurements,
    )


def test_tiles_agree_with_the_parquet(tmp_path: Path, make_slide) -> None:
    slide = make_slide(12_000, 9_000)
    write_tiles(tmp_path / "tiles.parquet", slide.tiles)
    written = write_tile_features(tmp_path / "tiles.geojson", slide.tiles, slide.name)
    objects, tiles = (
        read_as_qupath(tmp_path / "tiles.geojson"),
        read_tiles(tmp_path / "tiles.parquet"),
    )
    predicted = np.flatnonzero(tiles.predicted)
    assert written == len(objects) == len(predicted) < len(tiles)
    assert sum(one.area for one in objects) == len(predicted) * tiles.side**2
    for index, one in zip(predicted, objects, strict=True):
        assert one.type == "tile"
        assert one.locked
        assert one.rings[0][0] == (tiles.x[index], tiles.y[index])
        assert one.rings[0][2] == (tiles.x[index] + tiles.side, tiles.y[index] + tiles.side)
        label = int(tiles.labels[index])
        assert (one.classification is None) == (label < 0)
        assert one.classification is None or one.classification[0] == tiles.classes[label]
        assert list(one.measurements) == [f"prob_{name}" for name in tiles.classes]
        np.testing.assert_allclose(
            list(one.measurements.values()), tiles.probabilities[index], rtol=0, atol=5.1e-7
        )


def test_ids_are_unique_and_the_same_every_time(tmp_path: Path, make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    for name in ("a", "b"):
        write_tile_features(tmp_path / name, slide.tiles, "one.svs")
    write_tile_features(tmp_path / "c", slide.tiles, "two.svs")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    one, two = ({o.id for o in read_as_qupath(tmp_path / name)} for name in ("a", "c"))
    assert len(one) == int(slide.tiles.predicted.sum())
    assert not one & two


def test_chunks_are_joined_to_one_list(
    tmp_path: Path, make_slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geojson, "CHUNK", 7)
    tiles = make_slide(6_000, 4_000).tiles
    write_tile_features(tmp_path / "a", tiles, "s")
    assert len(read_as_qupath(tmp_path / "a")) == int(tiles.predicted.sum())


def test_hostile_names_stay_names(tmp_path: Path, make_slide) -> None:
    names = ('a"},{"b', "100 %s %d", "back\\slash", "läng 肺")
    slide = make_slide(6_000, 4_000, classes=names, name='x"\udcff%s.svs')
    write_tile_features(tmp_path / "a", slide.tiles, slide.name)
    objects = read_as_qupath(tmp_path / "a")
    assert list(objects[0].measurements) == [f"prob_{name}" for name in names]
    assert {one.classification[0] for one in objects if one.classification} <= set(names)


def test_a_slide_without_tiles_gives_an_empty_collection(tmp_path: Path, make_slide) -> None:
    tiles = make_slide(6_000, 4_000).tiles
    none = dataclasses.replace(
        tiles, x=tiles.x[:0], y=tiles.y[:0], probabilities=tiles.probabilities[:0], statuses=[]
    )
    assert write_tile_features(tmp_path / "a", none, "s") == 0
    assert read_as_qupath(tmp_path / "a") == []


def masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ring = np.zeros((9, 9), bool)
    ring[1:8, 1:8], ring[3:6, 3:6] = True, False
    island = ring.copy()
    island[4, 4] = True
    eight = np.zeros((5, 5), bool)
    eight[1:3, 1:3] = eight[3:5, 3:5] = True
    pocket = np.ones((4, 4), bool)
    pocket[1, 1] = pocket[2, 2] = False
    bay = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    return {
        "full": np.ones((3, 5), bool),
        "empty": np.zeros((3, 5), bool),
        "ring": ring,
        "island in a hole": island,
        "two squares that touch at a corner": eight,
        "two holes that touch at a corner": pocket,
        "a bay that closes at a corner": bay,
        "noise": rng.random((40, 50)) < 0.5,
        "dense noise": rng.random((40, 50)) < 0.7,
    }


@pytest.mark.parametrize("name", masks())
def test_tissue_has_the_area_of_the_mask_in_valid_polygons(tmp_path: Path, name: str) -> None:
    mask = masks()[name]
    height, width = mask.shape
    pieces = write_tissue_features(tmp_path / "t", mask, 8.0, "s", (width * 8, height * 8))
    objects = read_as_qupath(tmp_path / "t")
    assert len(objects) == pieces
    assert len({one.id for one in objects}) == pieces
    assert sum(one.area for one in objects) == mask.sum() * 64
    for one in objects:
        assert one.type == "annotation"
        assert one.classification is not None
        assert one.classification[0] == "Tissue"
        assert (
            area(one.rings[0][:-1]) > 0 > max([area(ring[:-1]) for ring in one.rings[1:]] or [-1])
        )
        for ring in one.rings:  # a ring that touches itself is no valid polygon
            assert len(set(ring)) == len(ring) - 1


def test_every_pixel_of_a_noisy_mask_lies_in_its_polygon(tmp_path: Path) -> None:
    mask = masks()["noise"]
    drawn = np.zeros(mask.shape, int)
    centres_y, centres_x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    for piece in outlines.outlines(mask)[0]:
        for ring in (piece.shell, *piece.holes):
            inside = np.zeros(mask.shape, bool)
            for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if x0 == x1:  # even-odd rule, a ray to the left
                    inside ^= (
                        (centres_x > x0) & (centres_y > min(y0, y1)) & (centres_y < max(y0, y1))
                    )
            drawn += inside if area(ring) > 0 else -inside.astype(int)
    np.testing.assert_array_equal(drawn, mask.astype(int))


def test_a_mask_that_hangs_over_is_cut_at_the_edge_of_the_slide(tmp_path: Path) -> None:
    write_tissue_features(tmp_path / "t", np.ones((2, 2), bool), 10.5, "s", (20, 19))
    (one,) = read_as_qupath(tmp_path / "t")
    assert one.area == 20 * 19


def test_a_mask_of_too_many_corners_is_reduced_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlines, "MAX_CORNERS", 300)
    mask = masks()["dense noise"]
    write_tissue_features(tmp_path / "t", mask, 2.0, "s", (100, 80))
    objects = read_as_qupath(tmp_path / "t")
    assert sum(len(ring) - 1 for one in objects for ring in one.rings) <= 600
    assert 0.5 < sum(one.area for one in objects) / (100 * 80) <= 1


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_outlines_do_not_depend_on_the_bands_in_which_corners_are_found(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    for mask in masks().values():
        whole = outlines.outlines(mask)
        with monkeypatch.context() as patched:
            patched.setattr(outlines, "BAND", rows)
            assert outlines.outlines(mask) == whole


def test_an_id_is_a_uuid_of_version_5() -> None:
    for x in range(300):  # all variants of the changed digits
        name = f"läng.svs\ntile {x} 7"
        assert geojson.object_ids("läng.svs", "tile")(x, 7) == str(uuid.uuid5(geojson._IDS, name))
