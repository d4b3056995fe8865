"""The private cache: checked, stale by name, trusted only where nobody else can write."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgelung.artifacts.bundle import Bundle
from edgelung.core.cache import Cache, Key, content_key, engine_cache, list_entries, open_cache
from edgelung.core.errors import EdgelungError
from edgelung.engines.openvino import OpenVinoEngine

IDENTITY = {"graph": "abc", "gpu": "Fake"}
KEY = Key("engine", IDENTITY, {"driver": "5"})
CONTENT = content_key("model", b"content")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's cache; nothing in it yet."""
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Cache:
    caplog.set_level(logging.INFO)
    return Cache(tmp_path / "cache")


def test_entries_come_back_and_are_private(store: Cache) -> None:
    assert store.get(KEY) == (None, "")
    store.put(KEY, b"plan\n\0more")
    assert store.get(KEY) == (b"plan\n\0more", "")
    assert store.folder
    for path in (store.folder, *store.folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_is_written_is_read_and_another_key_is_another_entry(root: Path) -> None:
    open_cache("kind").put(CONTENT, b"data")
    assert open_cache("kind").get(CONTENT).data == b"data"
    assert open_cache("kind").get(content_key("model", b"other")).data is None
    assert open_cache("kind").get(content_key("plan", b"content")).data is None
    assert open_cache("other").get(CONTENT).data is None
    assert (root / "kind").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", [0, 40, -1])
def test_an_entry_with_a_changed_byte_is_removed(root: Path, place: int) -> None:
    open_cache("kind").put(CONTENT, b"content" * 10)
    (path,) = (root / "kind").iterdir()
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert open_cache("kind").get(CONTENT).data is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "damaged"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"[1]\nplan"), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_a_damaged_entry_is_built_again_and_says_why(
    store: Cache,
    change: Callable[[Path], object],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.put(KEY, b"plan")
    assert store.folder
    (path,) = store.folder.iterdir()
    change(path)
    assert store.get_or_build(KEY, lambda: b"new") == b"new"
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]
    assert store.get(KEY) == (b"new", "")


def test_a_stale_entry_says_what_changed(store: Cache, caplog: pytest.LogCaptureFixture) -> None:
    store.put(KEY, b"old")
    newer = Key("engine", IDENTITY, {"driver": "6"})
    assert store.get_or_build(newer, lambda: b"new") == b"new"
    assert "driver: 5 → 6" in caplog.messages[0]
    assert store.folder
    assert len(list_entries(store.folder)) == 1  # replaced
    other = Key("engine", IDENTITY | {"graph": "other"}, {"driver": "6"})
    assert store.get_or_build(other, lambda: b"2") == b"2"
    assert len(caplog.messages) == 1  # another graph is another entry, not a stale one
    assert store.get(newer) == (b"new", "")


def test_without_a_private_folder_an_optional_cache_is_off(root: Path) -> None:
    open_cache("kind").put(CONTENT, b"data")
    (root / "kind").chmod(0o777)
    assert open_cache("kind").get(CONTENT).data is None
    assert not open_cache("kind").enabled


def test_a_link_in_its_place_is_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.mkdir(mode=0o700)
    (root / "kind").symlink_to(tmp_path / "elsewhere")
    assert not open_cache("kind").enabled


def test_without_a_private_folder_a_required_cache_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(EdgelungError, match="chmod 700"):
        Cache(folder)
    folder.chmod(0o770)
    with pytest.raises(EdgelungError, match="chmod 700"):
        Cache(folder)
    (folder / "engines").mkdir(mode=0o700)
    with pytest.raises(EdgelungError, match="chmod go-w"):
        Cache(folder / "engines")


def test_the_engine_cache_is_required(root: Path) -> None:
    engine_cache()
    (root / "engines").chmod(0o755)
    with pytest.raises(EdgelungError, match="chmod 700"):
        engine_cache()


def test_only_the_last_used_entries_stay(root: Path) -> None:
    cache = open_cache("kind", max_entries=2)
    keys = [content_key("model", b"%d" % i) for i in range(4)]
    for age, key in zip((30, 20), keys, strict=False):  # seconds since the last use
        cache.put(key, b"x")
        past = (root / "kind" / key.file_name).stat().st_mtime - age
        os.utime(root / "kind" / key.file_name, (past, past))
    assert cache.get(keys[0]).data  # used now
    cache.put(keys[2], b"x")
    assert cache.get(keys[1]).data is None
    assert cache.get(keys[0]).data
    assert len(list((root / "kind").iterdir())) == 2


def test_engines_are_never_pruned(root: Path) -> None:
    for i in range(20):
        engine_cache().put(Key("engine", {"graph": str(i)}), b"x")
    assert len(list((root / "engines").iterdir())) == 20


def test_switched_off_it_keeps_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_cache("kind").put(CONTENT, b"data")
    monkeypatch.setenv("EDGELUNG_CACHE", "off")
    assert open_cache("kind").get(CONTENT).data is None
    cache = engine_cache()
    assert cache.folder is None
    assert cache.get_or_build(KEY, lambda: b"1") == b"1"
    assert cache.get_or_build(KEY, lambda: b"2") == b"2"


RACE = """
import sys, time
from pathlib import Path
from edgelung.core.cache import Cache, Key

def build():
    print("built", flush=True)
    time.sleep(1)
    return b"plan" * 1000

data = Cache(Path(sys.argv[1])).get_or_build(Key("engine", {"graph": "abc"}), build)
print("got", data == b"plan" * 1000)
"""


def test_of_several_processes_one_builds(store: Cache) -> None:
    command = [sys.executable, "-c", RACE, str(store.folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    output = "".join(process.communicate(timeout=300)[0] for process in processes)
    assert output.count("built") == 1
    assert output.count("got True") == 3


def test_a_builder_that_fails_lets_the_next_one_build(store: Cache) -> None:
    def fail() -> bytes:
        raise EdgelungError("no space")

    with pytest.raises(EdgelungError):
        store.get_or_build(KEY, fail)
    done = threading.Event()

    def second() -> None:
        store.get_or_build(KEY, lambda: b"plan")
        done.set()

    threading.Thread(target=second, daemon=True).start()
    assert done.wait(10)


def test_a_full_disk_costs_the_cache_and_not_the_run(
    store: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(key: Key, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "put", full)
    assert store.get_or_build(KEY, lambda: b"plan") == b"plan"
    assert "No space left" in caplog.messages[-1]
    store.try_put(KEY, b"plan")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.vnni)])
def test_a_cached_model_gives_the_same_bits(bundle: Bundle, root: Path, precision: str) -> None:
    graph = bundle.variants[precision].graph
    tiles = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    compiled = OpenVinoEngine(graph, 1).infer(tiles).probabilities
    (entry,) = (root / "openvino").iterdir()
    before = entry.read_bytes()
    np.testing.assert_array_equal(OpenVinoEngine(graph, 1).infer(tiles).probabilities, compiled)
    entry.write_bytes(before[:1000])  # damaged: compiled and written anew
    np.testing.assert_array_equal(OpenVinoEngine(graph, 1).infer(tiles).probabilities, compiled)
    assert len(list((root / "openvino").iterdir())) == 1
