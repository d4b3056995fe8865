"""A bundle's folder: listed regular files alone, and nothing is loaded but what was hashed."""

import json
import os
import shutil
import socket
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from samples import chunk
from tiny import GRAPH, other_model, reseal, tiny_bundle, write_sealed

from edgelung.artifacts import bundle_files
from edgelung.artifacts.bundle import open_bundle
from edgelung.artifacts.bundle_files import open_folder
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file
from edgelung.engines.choose import ENGINES, open_engine

PARTS = [GRAPH, "golden/00.png", "report.html", "bundle.json", "bundle.json.sha256"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that opens."""
    return tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled models and verdicts are not kept."""
    monkeypatch.setenv("EDGELUNG_CACHE", "off")


def refused(folder: Path, match: str) -> None:
    with pytest.raises(EdgelungError, match=match) as error:
        open_bundle(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "w.bin",
        "golden/w.bin",
        "deep/er/w.bin",
        ".DS_Store",
        "._model.fp32.onnx",
        "Thumbs.db",
        "edgelung.toml",
        ".git/config",
        "golden/bundle.json",
        "golden/bundle.sig",
        "model.fp32.onnx ",
        "two\nlines",
        "\x1b[2Jscreen",
        "not\udcffutf8",
    ],
)
def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    refused(folder, "is not listed in bundle.json.*remove it")


@pytest.mark.parametrize("name", ["empty", "golden/empty", "a/b/c"])
def test_an_empty_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    refused(folder, "is an empty folder; remove it")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_in_the_place_of_a_file_is_refused(
    folder: Path, tmp_path: Path, name: str, absolute: bool
) -> None:
    """Even one to the right bytes: they may change after the hash."""
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(
        outside if absolute else os.path.relpath(outside, (folder / name).parent)
    )
    refused(folder, "link")


@pytest.mark.parametrize(
    "target", ["golden", "model.fp32.onnx", "/dev/zero", "/etc/passwd", "nowhere", ".", "link"]
)
def test_a_link_beside_the_files_is_refused(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    refused(folder, "link' is a symbolic link")


def test_a_folder_that_is_a_link_is_refused_inside_a_bundle(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "golden", tmp_path / "elsewhere")
    (folder / "golden").symlink_to(tmp_path / "elsewhere")
    refused(folder, "golden' is a symbolic link")


@pytest.mark.parametrize("name", [GRAPH, "golden/00.png", "golden"])
def test_nothing_is_read_through_a_link_that_appears_after_the_listing(
    folder: Path, tmp_path: Path, name: str
) -> None:
    with open_folder(folder) as opened:
        assert opened.names()
        shutil.move(folder / name, tmp_path / "outside")
        (folder / name).symlink_to(tmp_path / "outside")
        with pytest.raises(EdgelungError, match="no links"):
            opened.read("golden/00.png" if name == "golden" else name, 1 << 20)


def test_a_folder_that_is_exchanged_while_it_is_open_is_not_followed(
    folder: Path, tmp_path: Path
) -> None:
    with open_folder(folder) as opened:
        before = opened.read(GRAPH, 1 << 20)
        folder.rename(tmp_path / "old")
        tiny_bundle(folder, other_model())
        assert opened.read(GRAPH, 1 << 20) == before


def test_the_bundles_own_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    bundle = open_bundle(tmp_path / "current")
    assert bundle.variants["fp32"].graph.read() == (folder / GRAPH).read_bytes()


def test_hard_links_are_files(folder: Path, tmp_path: Path) -> None:
    os.link(folder / GRAPH, tmp_path / "same")
    open_bundle(folder)


@pytest.mark.parametrize("name", [*PARTS, "bundle.sig", "extra"])
def test_a_fifo_is_refused_at_once(folder: Path, name: str) -> None:
    """Opening one waits for somebody who writes."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, "is a FIFO")


@pytest.mark.parametrize("name", [GRAPH, "bundle.json", "extra"])
def test_a_socket_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).unlink(missing_ok=True)
    monkeypatch.chdir(folder)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        refused(folder, "socket|No such device or address")


@pytest.mark.parametrize("name", PARTS)
def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "folder")


def test_many_files_and_deep_folders_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_files, "MAX_ENTRIES", 20)
    for kind in ("wide", "deep"):
        folder = tiny_bundle(tmp_path / kind)
        inner = folder / ("/".join("abcdefgh") if kind == "deep" else "many")
        inner.mkdir(parents=True)
        for i in range(1 if kind == "deep" else 30):
            (inner / str(i)).write_bytes(b"")
        refused(folder, "holds more than 20 files or 4 levels")


def test_a_manifest_of_a_gigabyte_is_refused_by_its_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(folder / "bundle.json", 1 << 30)
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("the file was read"))
    refused(folder, r"bundle.json has 1,073,741,824 bytes; expected at most 16,777,216")


@pytest.mark.parametrize("name", ["bundle.json.sha256", "bundle.sig"])
def test_a_large_seal_or_signature_is_refused_by_its_size(folder: Path, name: str) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 1 << 30)
    refused(folder, "has 1,073,741,824 bytes; expected at most")


def test_files_of_terabytes_are_refused_by_their_size(folder: Path) -> None:
    """A hole in a file costs nothing on the disk."""
    for size in ((1 << 31), (1 << 40)):
        os.truncate(folder / "report.html", size)
        manifest = json.loads((folder / "bundle.json").read_text())
        manifest["files"]["report.html"] = {"sha256": "0" * 64, "bytes": size}
        write_sealed(folder, json.dumps(manifest).encode())
        refused(folder, "report.html has .* bytes; expected at most|more than .* bytes")


def test_many_large_files_are_refused_by_their_sum(folder: Path) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    for i in range(5):
        (folder / f"hole{i}").touch()
        os.truncate(folder / f"hole{i}", (1 << 31) - 1)
        manifest["files"][f"hole{i}"] = {"sha256": "0" * 64, "bytes": (1 << 31) - 1}
    write_sealed(folder, json.dumps(manifest).encode())
    refused(folder, "lists more than 8,589,934,592 bytes")


@pytest.mark.parametrize(
    "name",
    [
        "nul\0byte",
        "./report.html",
        "golden//00.png",
        "golden/",
        "report.html/",
        "",
        "bundle.sig",
        "bundle.json",
        "line\nbreak",
        "\x1b[2J",
        "a" * 100_000,
        "../" + "a" * 100_000,
        "\ud800",
        "/etc/passwd",
        "../x",
        "golden/../report.html",
    ],
    ids=lambda name: repr(name[:20]),
)
def test_a_manifest_cannot_name_what_is_no_file_of_the_bundle(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"][name] = manifest["files"]["report.html"]
    write_sealed(folder, json.dumps(manifest).encode())
    refused(folder, "is missing|outside the bundle")


def test_a_file_listed_under_a_negative_size_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["report.html"]["bytes"] = -(1 << 62)
    write_sealed(folder, json.dumps(manifest).encode())
    refused(folder, "report.html is damaged")


@pytest.mark.parametrize("depth", [40, 900, 100_000])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_a_manifest_that_is_nested_deeply_is_refused(
    folder: Path, depth: int, brackets: str
) -> None:
    before, after = brackets[:-1], brackets[-1]
    recipe = before * depth + "0" + after * depth
    text = (folder / "bundle.json").read_text().replace('"classes"', f'"x": {recipe}, "classes"')
    write_sealed(folder, text.encode())
    refused(folder, "is not a bundle manifest")


@pytest.mark.parametrize(
    "classes",
    [
        ["benign", "malignant\u200b"],
        ["benign", "\u202emalignant"],
        ["benign", "malignant\x1b[2J"],
        ["benign", "malignant\n"],
        ["benign", "be\u200dnign"],
        ["benign", "b\u0435nign"],  # a Cyrillic letter
        ["benign", "\uff42enign"],  # a wide letter
        ["benign", "Benign"],
        ["benign", "e\u0301"],
        ["benign", " "],
        ["benign", "\u3164"],
        ["benign", "m" * 1_000_000],
        ["benign", "\ud800"],
    ],
    ids=lambda classes: ascii(classes[1])[:20],
)
def test_class_names_that_deceive_are_refused(folder: Path, classes: list[str]) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    write_sealed(folder, json.dumps(manifest | {"classes": classes}).encode())
    refused(folder, "class name|different names")


def test_a_hundred_thousand_classes_are_refused(folder: Path) -> None:
    names = [f"class {i}" for i in range(100_000)]

    def change(manifest: dict) -> None:
        manifest["classes"] = names
        manifest["golden"][0]["probabilities"]["fp32"] = [0.0] * len(names)

    reseal(folder, change)
    refused(folder, "100,000 classes; expected at most 256")


def test_golden_tiles_that_fill_the_memory_are_refused(folder: Path) -> None:
    def change(manifest: dict) -> None:
        manifest["preprocessing"]["size"] = 4096
        manifest["golden"] *= 1000

    reseal(folder, change)
    refused(folder, "golden tiles of 16,777,216,000 pixels")


def test_a_golden_tile_that_is_a_bomb_is_one_line(folder: Path) -> None:
    """A PNG of 100,000 × 100,000 pixels in a few bytes."""
    side = (100_000).to_bytes(4, "big")
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", side + side + b"\x08\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    (folder / "golden" / "00.png").write_bytes(bomb)
    reseal(folder)
    with pytest.raises(EdgelungError, match="a golden tile cannot be read here"):
        open_engine(open_bundle(folder), "onnxruntime", "fp32")


def test_every_file_has_a_digest_and_the_signature_has_none(folder: Path) -> None:
    assert open_bundle(folder).files.signature is None
    (folder / "bundle.sig").write_bytes(b"signature")
    files = open_bundle(folder).files
    assert files.signature == b"signature"
    assert files.digests == {name: sha256_file(folder / name) for name in PARTS}


def by_write(folder: Path) -> None:
    (folder / GRAPH).write_bytes(other_model())


def by_rename(folder: Path) -> None:
    (folder / "new").write_bytes(other_model())
    (folder / "new").rename(folder / GRAPH)


def by_link(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    outside.write_bytes(other_model())
    (folder / GRAPH).unlink()
    (folder / GRAPH).symlink_to(outside)


def by_fifo(folder: Path) -> None:
    (folder / GRAPH).unlink()
    os.mkfifo(folder / GRAPH)


def by_folder(folder: Path) -> None:
    folder.rename(folder.parent / "old")
    tiny_bundle(folder, other_model())


def by_removal(folder: Path) -> None:
    (folder / GRAPH).unlink()


def by_growth(folder: Path) -> None:
    with (folder / GRAPH).open("ab") as file:
        file.write(b"\x08\x09")


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "swap", [by_write, by_rename, by_link, by_fifo, by_folder, by_removal, by_growth]
)
def test_a_graph_that_was_exchanged_after_opening_is_never_loaded(
    folder: Path, engine: str, swap: Callable[[Path], None]
) -> None:
    bundle = open_bundle(folder)
    swap(folder)
    with pytest.raises(EdgelungError, match=r"model\.fp32\.onnx"):
        ENGINES[engine](bundle.variants["fp32"].graph, 1)


@pytest.mark.usefixtures("no_cache")
def test_a_golden_tile_that_was_exchanged_after_opening_is_never_used(folder: Path) -> None:
    bundle = open_bundle(folder)
    (folder / "golden" / "00.png").write_bytes(b"other")
    with pytest.raises(EdgelungError, match=r"00\.png"):
        open_engine(bundle, "onnxruntime", "fp32")


def test_a_compiled_model_is_kept_under_the_hash_of_its_graph(folder: Path, tmp_path: Path) -> None:
    """Another graph of the same name never gets it."""
    other = open_bundle(tiny_bundle(tmp_path / "other", other_model()))
    first = open_bundle(folder)
    tiles = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    engines = [ENGINES["openvino"](b.variants["fp32"].graph, 1) for b in (first, other)]
    found = [engine.infer(tiles).probabilities for engine in engines]
    np.testing.assert_allclose(found[0], found[1][:, ::-1], atol=1e-5)


class Swapper(threading.Thread):
    """Exchanges a name of the bundle between two states, again and again, until it is stopped."""

    def __init__(self, path: Path, bad: Path, as_link: bool) -> None:
        super().__init__(daemon=True)
        self.path, self.bad, self.as_link = path, bad, as_link
        self.good = path.read_bytes()
        self.stopped = threading.Event()

    def run(self) -> None:
        new = self.path.parent.parent / f"{self.path.name}.new"
        while not self.stopped.is_set():
            if self.as_link:
                new.symlink_to(self.bad)
            else:
                shutil.copyfile(self.bad, new)
            new.rename(self.path)
            new.write_bytes(self.good)
            new.rename(self.path)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("as_link", [True, False])
def test_a_race_for_the_graph_is_never_won(folder: Path, tmp_path: Path, as_link: bool) -> None:
    good, bad = (folder / GRAPH).read_bytes(), tmp_path / "bad.onnx"
    bad.write_bytes(other_model())
    swapper = Swapper(folder / GRAPH, bad, as_link)
    swapper.start()
    try:
        for _ in range(200):
            try:
                bundle = open_bundle(folder)
                data = bundle.variants["fp32"].graph.read()
            except EdgelungError:
                continue
            assert data == good
    finally:
        swapper.stopped.set()
        swapper.join()
    assert open_bundle(folder).variants["fp32"].graph.read() == good
