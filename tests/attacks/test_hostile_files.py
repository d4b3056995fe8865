"""More than 300 hostile files: no crash, no hang, no wrong row, neighbours untouched.

Bar 4 of 'The folder run'. A row is wrong when it is `ok` with pixels that its file does not hold:
those of a neighbour, or of a file that was cut off.
"""

import csv
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from samples import chunk, png, samples

from edgelung.artifacts.bundle import Bundle
from edgelung.core.precision import Precision
from edgelung.engines.base import Output
from edgelung.inference.destination import Destination
from edgelung.inference.pipeline import Row, predict_batches
from edgelung.inference.reading import FileReading
from edgelung.inference.session import Options, infer_folder
from edgelung.inference.source import Source
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile, read_tile

SPEC = ReaderSpec(size=64)
SAMPLES: dict[str, bytes] = samples()
CUTS = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 0.97)
ENDS = (1, 2, 5, 13)  # bytes missing at the end
STATUSES = {"unreadable", "empty", "unsupported", "corrupt", "truncated", "too-large", "skipped"}
STATUSES |= {"several-pages", "slide"}


class Fingerprint:
    """A stand-in engine whose answer is a checksum of the tile it saw."""

    name, device, concurrency = "fingerprint", "CPU", 2

    def infer(self, tiles: np.ndarray) -> Output:
        return Output(np.array([fingerprint(tile) for tile in tiles], np.float32))

    def close(self) -> None: ...


def fingerprint(tile: np.ndarray) -> list[float]:
    return [float(byte) for byte in struct.pack(">I", zlib.crc32(np.ascontiguousarray(tile)))]


def cut() -> Iterator[tuple[str, bytes]]:
    for name, data in SAMPLES.items():
        lengths = {int(len(data) * share) for share in CUTS} | {len(data) - n for n in ENDS}
        for length in sorted(lengths):
            yield f"cut-{length}-{name}", data[:length]


def mutated() -> Iterator[tuple[str, bytes]]:
    rng = random.Random(7)
    for name, data in SAMPLES.items():
        for i in range(8):
            changed = bytearray(data)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            yield f"mutated-{i}-{name}", bytes(changed)


def renamed() -> Iterator[tuple[str, bytes]]:
    suffixes = [".jpg", ".png", ".tif", ".bmp", ".webp"]
    for i, (name, data) in enumerate(SAMPLES.items()):
        yield f"wrong-{name.replace('.', '-')}{suffixes[(i + 2) % 5]}", data


def bombs() -> Iterator[tuple[str, bytes]]:
    yield "bomb-pixels.png", png(60_000, 60_000, 8, 2, b"")
    yield "bomb-grey.png", png(20_000, 20_000, 1, 0, bytes(2501 * 20_000))
    yield "bomb-tall.png", png(1, 90_000_000, 8, 0, b"")  # its first pass would take 80 GB
    yield "bomb-wide.png", png(90_000_000, 1, 8, 0, b"")
    scans = SAMPLES["progressive.jpg"]
    last = scans[scans.rindex(b"\xff\xda") : -2]
    yield "bomb-scans.jpg", scans[:-2] + 600 * last + scans[-2:]
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20 * 2**20), 9))
    plain = SAMPLES["plain.png"]
    yield "bomb-text.png", plain[:33] + text + plain[33:]
    for name in ("baseline.jpg", "progressive.jpg"):
        data = bytearray(SAMPLES[name])
        marker = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[marker + 5 : marker + 9] = b"\xff\xff\xff\xff"
        yield f"bomb-{name}", bytes(data)
    bmp = bytearray(SAMPLES["plain.bmp"])
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    yield "bomb.bmp", bytes(bmp)
    tiff = bytearray(SAMPLES["raw.tif"])
    at = tiff.find(struct.pack("<HHI", 256, 4, 1))  # ImageWidth, LONG, one value
    if at >= 0:
        tiff[at + 8 : at + 12] = struct.pack("<I", 2**31)
    yield "bomb.tif", bytes(tiff)
    yield "loop.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0"  # an empty directory that leads to itself
    yield "vp8x.webp", b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 6


def foreign() -> Iterator[tuple[str, bytes]]:
    yield "empty.jpg", b""
    yield from {
        "text.jpg": b"no picture\n",
        "page.png": b"<html></html>",
        "archive.tif": b"PK\3\4" + bytes(60),
        "program.jpg": b"\x7fELF" + bytes(60),
        "start.jpg": b"\xff\xd8\xff",
        "markers.jpg": b"\xff\xd8" + b"\xff\xe0\0\2" * 5000,
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBP",
        "zeros.jpg": bytes(5000),
        "ones.tif": b"\xff" * 5000,
    }.items()


HOSTILE = dict([*cut(), *mutated(), *renamed(), *bombs(), *foreign()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hostile files with a good one between any two."""
    folder = tmp_path_factory.mktemp("hostile")
    good = list(SAMPLES.items())
    for i, (name, data) in enumerate(HOSTILE.items()):
        (folder / f"{i:04d}-a-{name}").write_bytes(data)
        kind, whole = good[i % len(good)]
        (folder / f"{i:04d}-b-good-{kind}").write_bytes(whole)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, Row]:
    batches = predict_batches(
        find_files(folder), FileReading(SPEC), Fingerprint(), batch_size=16, threads=2
    )
    return {row.item.path: row for batch in batches for row in batch}


def test_there_are_enough_of_them_and_each_has_its_row(folder: Path, rows: dict[str, Row]) -> None:
    assert len(HOSTILE) >= 300
    assert sorted(rows) == sorted(path.name for path in folder.iterdir())
    assert len(rows) == 2 * len(HOSTILE)


def test_good_neighbours_have_the_row_that_they_have_alone(rows: dict[str, Row]) -> None:
    alone = {name: fingerprint(decode_tile(data, SPEC)) for name, data in SAMPLES.items()}
    for path, row in rows.items():
        if "-b-good-" in path:
            assert row.status == "ok", path
            assert row.probabilities.tolist() == alone[path.split("-b-good-")[1]], path


def test_every_row_is_its_own_files(folder: Path, rows: dict[str, Row]) -> None:
    for path, row in rows.items():
        status, tile = "ok", None
        try:
            tile = fingerprint(read_tile(folder / path, SPEC))
        except TileError as error:
            status = error.status
        assert row.status == status, path
        assert (row.probabilities is None) == (tile is None), path
        if tile is None:
            assert status in STATUSES
            assert row.error
        else:
            assert row.probabilities.tolist() == tile, path


def test_what_is_cut_off_is_never_predicted_from_half_its_pixels(
    rows: dict[str, Row],
) -> None:
    failed = 0
    for path, row in rows.items():
        if "-a-cut-" not in path:
            continue
        if row.status == "ok":  # nothing of the pixels was missing
            name = path.split("-", 4)[-1]
            assert row.probabilities.tolist() == fingerprint(decode_tile(SAMPLES[name], SPEC)), path
        else:
            failed += 1
            assert row.status in ("truncated", "corrupt", "unsupported", "empty"), path
    assert failed > 180


def test_bombs_do_not_go_off(rows: dict[str, Row]) -> None:
    for path, row in rows.items():
        if "-a-bomb" in path and "bomb-text" not in path:
            assert row.status in ("too-large", "corrupt", "truncated"), (path, row.status)


def test_a_wrong_name_costs_nothing(rows: dict[str, Row]) -> None:
    assert {row.status for path, row in rows.items() if "-a-wrong-" in path} == {"ok"}


def test_through_the_engine_neighbours_rows_do_not_change(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """The same with a real model: alone, and between hostile files."""
    clean = tmp_path / "clean"
    clean.mkdir()
    for path in list(folder.iterdir())[:: max(1, len(HOSTILE) // 60)]:
        if "-b-good-" in path.name:
            (clean / path.name).write_bytes(path.read_bytes())

    def infer(source: Path, name: str) -> dict[str, list[str]]:
        out = tmp_path / name
        options = Options(precision=Precision.INT8)
        infer_folder(Source((source,)), bundle, Destination.parse(out), options)
        with out.open(newline="") as file:
            return {line[0]: line for line in csv.reader(file)}

    alone, mixed = infer(clean, "alone.csv"), infer(folder, "mixed.csv")
    assert len(mixed) == 1 + 2 * len(HOSTILE)
    assert {path: mixed[path] for path in alone} == alone
