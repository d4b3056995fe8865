"""Decoded tiles: a batch is the same wherever the tiles are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgelung.artifacts.run import RunFolder
from edgelung.engines.base import GraphBytes
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.export.graph import build_graph
from edgelung.export.student import read_student
from edgelung.tiles.reader import ReaderSpec, read_tile
from edgelung.train.index import index_tiles
from edgelung.train.prepare import decode_tiles
from edgelung.train.recipe import load_recipe
from edgelung.train.run import train_run
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
    assert (store._on_device is not None) == bool(free)
    store._pixels = None if free else store._pixels  # what is there comes from the device
    store._paths = []
    found = store.batch(indices)
    assert found.shape == (4, 3, 32, 32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("teacher", "student", "sizes"),
    [(96, 64, (96, 64)), (288, 64, (96, 64)), (64, 64, (64, None)), (32, 160, (160, None))],
)
def test_tiles_are_decoded_for_the_largest_model_and_for_the_student(
    tiles: Path, teacher: int, student: int, sizes: tuple[int, int | None]
) -> None:
    """The tiles have 96 px: they are not enlarged for a teacher."""
    settings = [f"teacher.size={teacher}", f"student.size={student}", "student.low_epochs=0"]
    recipe = load_recipe("demo", settings)
    decoded = decode_tiles(tiles, index_tiles(tiles)[:4], recipe)
    in_use = decoded.as_in_use
    assert (decoded.store.size, in_use.size if in_use else None) == sizes
    assert decoded.shown_at(student).batch(np.array([0])).shape[-1] == student
    assert decoded.shown_at(teacher).size == sizes[0]


def test_a_student_is_measured_on_what_it_is_shown_in_use(
    tiles: Path, small: list[str], tmp_path: Path
) -> None:
    """Not on larger tiles, decoded for its teacher, that were reduced in another way."""
    settings = [*small, "teacher.size=96", "student.size=32", "student.low_size=16"]
    train_run(tiles, tmp_path / "run", load_recipe("demo", settings), groups=tiles / "groups.csv")
    run = RunFolder(tmp_path / "run")
    saved = run.read_predictions().subset("test")
    student = read_student(run)
    graph = GraphBytes(build_graph(student).SerializeToString())
    shown = np.stack([read_tile(tiles / path, ReaderSpec(size=32)) for path in saved.paths])
    found = OnnxRuntimeEngine(graph, 1).infer(shown).probabilities
    np.testing.assert_allclose(found, saved.probabilities, atol=2e-6)
