"""The private cache: keyed by content, checked, trusted only where nobody else can write."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgelung.artifacts.bundle import Bundle
from edgelung.core import cache as cache_module
from edgelung.core.cache import Cache
from edgelung.engines.openvino import OpenVinoEngine


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_written_is_read_and_another_key_is_another_entry(base: Path) -> None:
    Cache("kind", b"key").write(b"content")
    assert Cache("kind", b"key").read() == b"content"
    assert Cache("kind", b"other").read() is None
    assert Cache("other", b"key").read() is None
    assert (base / "kind").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_changed_byte_is_no_entry(base: Path, place: int) -> None:
    Cache("kind", b"key").write(b"content" * 10)
    (path,) = (base / "kind").iterdir()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert Cache("kind", b"key").read() is None
    assert not path.exists()


def test_a_folder_that_others_can_write_to_is_not_used(base: Path) -> None:
    Cache("kind", b"key").write(b"content")
    (base / "kind").chmod(0o777)
    assert Cache("kind", b"key").read() is None
    assert not Cache("kind", b"key").wanted


def test_a_link_in_its_place_is_not_followed(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    base.mkdir(mode=0o700)
    (base / "kind").symlink_to(tmp_path / "elsewhere")
    assert not Cache("kind", b"key").wanted


def test_it_can_be_switched_off_and_does_not_grow(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "KEEP", 2)
    for i in range(5):
        Cache("kind", b"%d" % i).write(b"x")
        os.utime(next(iter(base.glob("kind/*"))))
    assert len(list(base.glob("kind/*"))) == 2
    monkeypatch.setenv("EDGELUNG_CACHE", "off")
    assert Cache("kind", b"4").read() is None


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_cached_model_gives_the_same_bits(bundle: Bundle, base: Path, precision: str) -> None:
    graph = bundle.variants[precision].path
    tiles = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    compiled = OpenVinoEngine(graph, 1).infer(tiles)
    (entry,) = (base / "openvino").iterdir()
    before = entry.read_bytes()
    np.testing.assert_array_equal(OpenVinoEngine(graph, 1).infer(tiles), compiled)
    entry.write_bytes(before[:1000])  # damaged: compiled and written anew
    np.testing.assert_array_equal(OpenVinoEngine(graph, 1).infer(tiles), compiled)
    assert len(list((base / "openvino").iterdir())) == 1
