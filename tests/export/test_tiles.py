"""The tiles of an export: decoded once within the memory bound, always checked, in order."""

import threading
from pathlib import Path

import numpy as np
import pytest

from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file
from edgelung.export.parallel import map_in_order
from edgelung.export.tiles import LabelledTile, TileReader, TileSet
from edgelung.tiles.reader import ReaderSpec, read_tile

SPEC = ReaderSpec(size=64)
TILE_BYTES = 64 * 64 * 3


@pytest.fixture
def twelve(tiles: Path) -> TileSet:
    paths = [path.relative_to(tiles).as_posix() for path in sorted(tiles.rglob("*.jpeg"))][:12]
    assert len(paths) == 12
    return TileSet(
        tiles, tuple(LabelledTile(path, 0, "g", sha256_file(tiles / path)) for path in paths)
    )


def by_hand(tiles: TileSet) -> np.ndarray:
    return np.stack([read_tile(tiles.data / path, SPEC) for path in tiles.paths])


def test_a_set_that_fits_is_decoded_once(twelve: TileSet) -> None:
    reader = TileReader(SPEC, memory_limit=12 * TILE_BYTES)
    assert reader.keep(twelve, "")
    for _ in range(3):
        np.testing.assert_array_equal(reader.read(twelve), by_hand(twelve))
    assert reader.decodes == reader.distinct_tiles == 12


def test_a_set_that_does_not_fit_is_decoded_in_each_pass(twelve: TileSet) -> None:
    reader = TileReader(SPEC, memory_limit=12 * TILE_BYTES - 1)
    assert not reader.keep(twelve, "")
    for _ in range(3):
        np.testing.assert_array_equal(reader.read(twelve), by_hand(twelve))
    assert reader.decodes == 36
    assert reader.distinct_tiles == 12


def test_the_memory_limit_holds_for_all_sets_together(twelve: TileSet) -> None:
    reader = TileReader(SPEC, memory_limit=10 * TILE_BYTES)
    assert reader.keep(twelve.take(range(8)), "")
    assert not reader.keep(twelve.take(range(8, 12)), "")


@pytest.mark.parametrize("size", [1, 5, 12])
def test_batches_keep_the_order_of_the_tiles(twelve: TileSet, size: int) -> None:
    reader = TileReader(SPEC)
    reader.keep(twelve.every(3), "")  # some from memory, some decoded
    batches = list(reader.batches(twelve, size))
    assert max(map(len, batches)) == size
    np.testing.assert_array_equal(np.concatenate(batches), by_hand(twelve))


def test_a_changed_file_is_refused(twelve: TileSet) -> None:
    tile = twelve.tiles[0]
    changed = LabelledTile(tile.path, tile.label, tile.group, "0" * 64)
    with pytest.raises(EdgelungError, match="its SHA-256 changed"):
        TileReader(SPEC).read(TileSet(twelve.data, (changed,)))


def test_results_come_in_the_order_of_the_items() -> None:
    """The first item ends last: it waits for the second."""
    second_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_is_done.wait(60)
        if item == 1:
            second_is_done.set()
        return item * item

    assert list(map_in_order(work, range(20), 2)) == [item * item for item in range(20)]


def test_no_more_items_are_read_than_can_be_worked_on() -> None:
    read = 0

    def items():
        nonlocal read
        for item in range(100):
            read += 1
            yield item

    results = map_in_order(lambda item: item, items(), 2)
    assert next(results) == 0
    assert read <= 4


def test_an_error_in_the_work_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda item: 1 // item, [1, 0, 1], 2))
