"""Decoded tiles: a batch is the same wherever the tiles are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelung.tiles.reader import ReaderSpec
from edgelung.train.tiles import TileStore


@pytest.fixture
def store(tiles: Path) -> TileStore:
    return TileStore(sorted(tiles.rglob("*.jpeg"))[:12], ReaderSpec(size=32))


@pytest.mark.parametrize("free", [1 << 30, 0])
def test_tiles_are_copied_to_a_device_if_they_fit(
    store: TileStore, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    indices = np.array([7, 3, 3, 11])
    expected = store.batch(indices)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 30))
    store.copy_to(torch.device("cpu"))
    store._pixels = None if free else store._pixels  # what is there comes from the device
    store._paths = []
    found = store.batch(indices)
    assert found.shape == (4, 3, 32, 32)
    assert torch.equal(found, expected)
