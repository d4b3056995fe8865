"""A folder full of trouble: as many rows as files, each its own, good neighbours untouched.

Bar 4 of 'From a labelled folder to one row per tile'.
"""

import csv
import os
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.summary import Summary
from edgelung.core.precision import Precision
from edgelung.engines.names import CPU_ENGINES, EngineName
from edgelung.inference.destination import Destination
from edgelung.inference.session import Options, infer_folder
from edgelung.inference.source import Source

GOOD_ODD = {"alpha.png", "grey.jpg", "cmyk.jpg", "a,b\nc.jpg"}
BAD = {
    "empty.jpg": "empty",
    "text.jpg": "unsupported",
    "half.jpg": "truncated",
    "bomb.png": "too-large",
    "unreadable.jpg": "unreadable",
}


def plant(folder: Path, sample: Path) -> None:
    """The ten trouble-makers, made from one good tile."""
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("this is no picture\n")
    data = sample.read_bytes()
    (folder / "half.jpg").write_bytes(data[: len(data) // 2])
    image = Image.open(sample).convert("RGB")
    alpha = image.convert("RGBA")
    alpha.putalpha(200)
    alpha.save(folder / "alpha.png")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "bomb.png").write_bytes(png_header(20_000, 20_000))
    if os.geteuid() == 0:  # root reads whatever its mode is
        (folder / "unreadable.jpg").symlink_to(folder / "gone")
    else:
        shutil.copy(sample, folder / "unreadable.jpg")
        (folder / "unreadable.jpg").chmod(0)
    shutil.copy(sample, folder / "a,b\nc.jpg")
    (folder / "folder.jpg").mkdir()


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def check(bundle_folder: Path, clean: Path, sample: Path, tmp_path: Path, options: Options) -> None:
    bundle = open_bundle(bundle_folder)
    dirty = tmp_path / "dirty"
    shutil.copytree(clean, dirty)
    plant(dirty, sample)

    def infer(folder: Path, out: Path) -> Summary:
        kept = replace(options, keep_unknown=True)  # grey tissue is unknown
        return infer_folder(Source((folder,)), bundle, Destination.parse(out), kept)

    before = infer(clean, tmp_path / "clean.csv")
    after = infer(dirty, tmp_path / "dirty.csv")
    assert before.exit_code == 0
    assert after.exit_code == 3
    alone, mixed = rows_of(tmp_path / "clean.csv"), rows_of(tmp_path / "dirty.csv")
    files = [p for p in dirty.rglob("*") if not p.is_dir()]
    assert set(mixed) == {p.relative_to(dirty).as_posix() for p in files}
    for name, status in BAD.items():
        assert mixed[name]["status"] == status, mixed[name]
        assert mixed[name]["label"] == ""
        assert mixed[name]["error"]
    for name in GOOD_ODD:
        assert mixed[name]["status"] == "ok", mixed[name]
        assert mixed[name]["label"] in bundle.classes
    assert {path: mixed[path] for path in alone} == alone


INT8_ENGINES = [
    EngineName.ONNXRUNTIME,
    pytest.param(EngineName.OPENVINO, marks=pytest.mark.vnni),
]


@pytest.mark.parametrize("engine", INT8_ENGINES)
def test_trouble_among_synthetic_tiles(
    bundle_folder: Path, tiles: Path, tmp_path: Path, engine: EngineName
) -> None:
    clean = tmp_path / "clean"
    clean.mkdir()
    for path in sorted(tiles.glob("*/*.jpeg"))[::3]:
        shutil.copy(path, clean)
    sample = next(iter(sorted(clean.iterdir())))
    check(bundle_folder, clean, sample, tmp_path, Options(engine, Precision.INT8, batch_size=8))


@pytest.mark.data
@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        *((engine, Precision.FP32) for engine in CPU_ENGINES),
        (EngineName.ONNXRUNTIME, Precision.INT8),
        pytest.param(EngineName.OPENVINO, Precision.INT8, marks=pytest.mark.vnni),
    ],
)
def test_trouble_among_real_tiles(
    real_tiles: Path, tmp_path: Path, engine: EngineName, precision: Precision
) -> None:
    """Bar 4: whatever shares a tile's batch, its row is the same to the last digit."""
    clean = tmp_path / "clean"
    shutil.copytree(real_tiles / "lc25000_768", clean)
    sample = next(iter(sorted(clean.glob("lung_aca/*"))))
    check(starter_bundle(), clean, sample, tmp_path, Options(engine, precision))
