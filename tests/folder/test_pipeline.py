"""Rows: one per file, its own, whatever the neighbours are."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.folder.pipeline import predict
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.reader import ReaderSpec

SPEC = ReaderSpec(size=32)


class MeanColour:
    """A stand-in engine whose answer says which tile it saw."""

    name, device, concurrency = "mean", "CPU", 1

    def __init__(self, seconds: float = 0) -> None:
        self.batches: list[int] = []
        self.seconds = seconds

    def infer(self, tiles: np.ndarray) -> np.ndarray:
        self.batches.append(len(tiles))
        time.sleep(self.seconds)
        return tiles.mean(axis=(1, 2)).astype(np.float32) / 255

    def close(self) -> None: ...


def colour(i: int) -> tuple[int, int, int]:
    return (i * 7 % 256, i * 13 % 256, i * 29 % 256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """60 one-colour tiles with every seventh file broken."""
    for i in range(60):
        path = tmp_path / f"{i:03d}.png"
        if i % 7 == 3:
            path.write_text("broken")
        else:
            Image.new("RGB", (40, 40), colour(i)).save(path)
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 8, 60, 64])
@pytest.mark.parametrize("decoders", [1, 3])
def test_each_row_is_its_own_files(folder: Path, batch_size: int, decoders: int) -> None:
    engine = MeanColour()
    rows = list(predict(find_files(folder), SPEC, engine, batch_size=batch_size, decoders=decoders))
    assert [row.file.path for row in rows] == sorted(p.name for p in folder.iterdir())
    for i, row in enumerate(rows):
        if i % 7 == 3:
            assert row.status == "unsupported"
            assert row.probabilities is None
        else:
            np.testing.assert_allclose(row.probabilities * 255, colour(i), atol=0.01)
    assert sum(engine.batches) == sum(i % 7 != 3 for i in range(60))


def test_a_batch_of_only_broken_files_reaches_no_engine(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").touch()
    engine = MeanColour()
    rows = list(predict(find_files(tmp_path), SPEC, engine, batch_size=2, decoders=2))
    assert [row.status for row in rows] == ["empty"] * 4
    assert engine.batches == []


def test_reference_probabilities_stay_with_their_row(folder: Path) -> None:
    rows = predict(
        find_files(folder), SPEC, MeanColour(), batch_size=8, decoders=2, reference=MeanColour()
    )
    for row in rows:
        if row.status == "ok":
            np.testing.assert_array_equal(row.probabilities, row.reference)


def test_decoding_goes_on_while_the_engine_works(folder: Path) -> None:
    """The list is read ahead of the rows, but only by the bounded window."""
    taken = 0

    def files() -> Iterator[FoundFile]:
        nonlocal taken
        for file in find_files(folder):
            taken += 1
            yield file

    rows = predict(files(), SPEC, MeanColour(0.05), batch_size=5, decoders=2)
    next(rows)
    assert 5 < taken <= 25
    rows.close()


def test_an_engine_error_ends_the_run(folder: Path) -> None:
    class Broken(MeanColour):
        def infer(self, tiles: np.ndarray) -> np.ndarray:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        list(predict(find_files(folder), SPEC, Broken(), batch_size=4, decoders=2))
