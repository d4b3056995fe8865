"""Rows: one per file, its own, whatever the neighbours are."""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgelung.engines.base import Output
from edgelung.inference import reading
from edgelung.inference.pipeline import Row, predict_batches
from edgelung.inference.reading import FileReading
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.reader import ReaderSpec, read_decoded

SPEC = ReaderSpec(size=32)


class MeanColour:
    """A stand-in engine whose answer says which tile it saw."""

    name, concurrency = "mean", 1

    def __init__(self, seconds: float = 0, device: str = "GPU") -> None:
        self.batches: list[int] = []
        self.seconds = seconds
        self.device = device

    def infer(self, tiles: np.ndarray) -> Output:
        self.batches.append(len(tiles))
        time.sleep(self.seconds)
        return Output(tiles.mean(axis=(1, 2)).astype(np.float32) / 255)

    def close(self) -> None: ...


def predict(
    files: Iterable[FoundFile], engine: MeanColour, batch_size: int, threads: int = 2, **more: Any
) -> list[Row]:
    batches = predict_batches(
        files, FileReading(SPEC), engine, batch_size=batch_size, threads=threads, **more
    )
    return [row for rows in batches for row in rows]


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
@pytest.mark.parametrize("threads", [1, 3])
def test_each_row_is_its_own_files(folder: Path, batch_size: int, threads: int) -> None:
    engine = MeanColour()
    rows = predict(find_files(folder), engine, batch_size, threads)
    assert [row.item.path for row in rows] == sorted(p.name for p in folder.iterdir())
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
    rows = predict(find_files(tmp_path), engine, 2)
    assert [row.status for row in rows] == ["empty"] * 4
    assert engine.batches == []


def test_reference_probabilities_stay_with_their_row(folder: Path) -> None:
    for row in predict(find_files(folder), MeanColour(), 8, reference=MeanColour()):
        if row.status == "ok":
            np.testing.assert_array_equal(row.probabilities, row.reference)


def test_decoding_goes_on_while_the_engine_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine holds the first batch until a tile of the second has been decoded."""
    second_batch = threading.Event()

    def read(file: FoundFile, spec: ReaderSpec) -> object:
        if int(Path(file.path).stem) >= 5:
            second_batch.set()
        return read_decoded(file, spec)

    class Waiting(MeanColour):
        def infer(self, tiles: np.ndarray) -> Output:
            assert second_batch.wait(10), "nothing was decoded beside the engine"
            return super().infer(tiles)

    monkeypatch.setattr(reading, "read_decoded", read)
    assert len(predict(find_files(folder), Waiting(), 5, threads=1)) == 60


def test_no_more_than_a_window_is_read_ahead(folder: Path) -> None:
    taken = 0

    def files() -> Iterator[FoundFile]:
        nonlocal taken
        for file in find_files(folder):
            taken += 1
            yield file

    batches = predict_batches(files(), FileReading(SPEC), MeanColour(0.05), batch_size=5, threads=2)
    next(batches)
    assert 5 < taken <= 25
    batches.close()


def test_what_is_no_number_is_no_prediction(folder: Path) -> None:
    class HalfBroken(MeanColour):
        def infer(self, tiles: np.ndarray) -> Output:
            found = super().infer(tiles)
            found.probabilities[0] = np.nan
            return found

    rows = predict(find_files(folder), HalfBroken(), 6)
    assert {rows[i].status for i in range(0, 60, 6)} <= {"failed", "unsupported"}
    assert all(np.isfinite(r.probabilities).all() for r in rows if r.status == "ok")


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_files_that_vanish_have_their_row(folder: Path, device: str) -> None:
    files = list(find_files(folder))
    for i in (0, 8, 59):
        Path(files[i].location).unlink()
    rows = predict(files, MeanColour(device=device), 8)
    assert [row.item for row in rows] == files
    assert [i for i, row in enumerate(rows) if row.status == "unreadable"] == [0, 8, 59]


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_where_the_engine_threads_decode_rows_stay_in_order(folder: Path, concurrency: int) -> None:
    engine = MeanColour(0.002, "CPU")
    engine.concurrency = concurrency
    rows = predict(find_files(folder), engine, 7)
    assert [row.item.path for row in rows] == sorted(p.name for p in folder.iterdir())
    for i, row in enumerate(rows):
        if i % 7 != 3:
            np.testing.assert_allclose(row.probabilities * 255, colour(i), atol=0.01)


def test_a_decoder_that_breaks_costs_one_row(folder: Path, monkeypatch) -> None:
    def read(file: FoundFile, spec: ReaderSpec) -> object:
        if file.path.endswith("004.png"):
            raise KeyError("-1")
        return read_decoded(file, spec)

    monkeypatch.setattr(reading, "read_decoded", read)
    rows = predict(find_files(folder), MeanColour(), 8)
    assert rows[4].status == "corrupt"
    assert sum(row.status == "ok" for row in rows) == 50


def test_an_engine_error_ends_the_run(folder: Path) -> None:
    class Broken(MeanColour):
        def infer(self, tiles: np.ndarray) -> Output:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        predict(find_files(folder), Broken(), 4)
