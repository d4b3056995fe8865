"""The cache: an entry is code, so nobody else may place one, whatever is renamed meanwhile."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from plants import PLANTS, SECRET, exchange, root_only

from edgelung.core import ownership
from edgelung.core.cache import Cache, Key, make_private, open_cache
from edgelung.core.errors import EdgelungError

KEY = Key("engine", {"graph": "abc"})
OTHER = 12345


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def evil(folder: Path) -> Path:
    """A folder with an entry that passes every check but the owner's."""
    folder.mkdir(parents=True, mode=0o700)
    cache = Cache(folder)
    cache.put(KEY, b"attack")
    return folder


OPENINGS: dict[str, Callable[[Path], object]] = {
    "writable by all": lambda path: path.chmod(0o777),
    "writable by the group": lambda path: path.chmod(0o770),
    "of another user": lambda path: os.chown(path, OTHER, OTHER),
    "sticky, but of another user": lambda path: (path.chmod(0o1777), os.chown(path, OTHER, OTHER)),
}


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("above", [1, 2, 3])
def test_every_folder_above_the_cache_must_be_out_of_reach_of_others(
    home: Path, opening: str, above: int
) -> None:
    if "another user" in opening and os.geteuid() != 0:
        pytest.skip("only root gives a folder to another user")
    cache = home / "a" / "b" / "c" / "cache"
    Cache(cache).put(KEY, b"plan")
    OPENINGS[opening](list(cache.parents)[above - 1])
    with pytest.raises(EdgelungError, match=r"the cache of programs .* set EDGELUNG_CACHE"):
        Cache(cache)


def test_a_sticky_folder_above_is_safe_if_what_is_in_it_is_ours(home: Path) -> None:
    home.chmod(0o1777)  # as /tmp
    Cache(home / "cache" / "engines").put(KEY, b"plan")
    assert Cache(home / "cache" / "engines").get(KEY).data == b"plan"


@root_only
@pytest.mark.parametrize("name", ["cache", "cache/engines"])
def test_a_folder_that_another_user_made_in_a_sticky_one_is_refused(home: Path, name: str) -> None:
    home.chmod(0o1777)
    evil(home / "cache" / "engines")
    os.chown(home / name, OTHER, OTHER)
    with pytest.raises(EdgelungError, match=r"belongs to the user \d+|only you can enter"):
        Cache(home / "cache" / "engines")


def test_our_own_link_above_the_cache_is_followed(home: Path) -> None:
    (home / "disk").mkdir(mode=0o700)
    (home / "link").symlink_to("disk")
    (home / "absolute").symlink_to(home / "link")
    Cache(home / "absolute" / "cache").put(KEY, b"plan")
    assert Cache(home / "disk" / "cache").get(KEY).data == b"plan"


def test_a_link_is_only_as_good_as_the_folders_that_it_leads_through(home: Path) -> None:
    (home / "open").mkdir()
    (home / "open").chmod(0o777)
    (home / "open" / "mine").mkdir(mode=0o700)
    (home / "link").symlink_to(home / "open" / "mine")
    with pytest.raises(EdgelungError, match="others can write"):
        Cache(home / "link" / "cache")


@root_only
def test_a_link_of_another_user_above_the_cache_is_refused(home: Path) -> None:
    (home / "disk").mkdir(mode=0o700)
    (home / "link").symlink_to("disk")
    os.chown(home / "link", OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(EdgelungError, match=r"/link belongs to the user \d+"):
        Cache(home / "link" / "cache")


def test_links_in_a_circle_end(home: Path) -> None:
    (home / "a").symlink_to("b")
    (home / "b").symlink_to("a")
    with pytest.raises(EdgelungError, match="more than 40 links"):
        Cache(home / "a" / "cache")


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_as_an_entry_is_never_used(home: Path, tmp_path: Path, plant: str) -> None:
    victim = evil(tmp_path / "evil") / KEY.file_name
    content = victim.read_bytes()
    cache = Cache(home / "cache")
    PLANTS[plant](home / "cache" / KEY.file_name, victim)
    data, reason = cache.get(KEY)
    assert data is None
    assert "cannot be used" in reason
    assert victim.read_bytes() == content
    if plant in ("folder", "fifo", "unix_socket", "symlink", "dangling", "endless"):
        cache.try_put(KEY, b"plan")  # no more than a cache that does not help
    assert victim.read_bytes() == content


@root_only
def test_an_entry_of_another_user_is_never_used(home: Path) -> None:
    cache = Cache(home / "cache")
    cache.put(KEY, b"plan")
    os.chown(home / "cache" / KEY.file_name, OTHER, OTHER)
    assert "another user" in cache.get(KEY).reason


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_lock_hangs_nothing_and_changes_no_file(
    home: Path, tmp_path: Path, plant: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(SECRET)
    cache = Cache(home / "cache")
    PLANTS[plant](home / "cache" / f"{KEY.file_name}.lock", victim)
    with pytest.raises(EdgelungError, match="it was left alone"):
        cache.get_or_build(KEY, lambda: b"plan")
    assert victim.read_bytes() == SECRET


def test_a_folder_that_is_swapped_after_it_was_opened_gives_and_takes_nothing(
    home: Path, tmp_path: Path
) -> None:
    cache = Cache(home / "cache")
    cache.put(KEY, b"plan")
    (home / "cache").rename(home / "moved")
    evil(tmp_path / "evil")
    (home / "cache").symlink_to(tmp_path / "evil")
    assert cache.get(KEY).data == b"plan"
    cache.put(KEY, b"newer")
    cache.remove(Key("engine", {"graph": "other"}))
    assert Cache(tmp_path / "evil").get(KEY).data == b"attack"
    assert Cache(home / "moved").get(KEY).data == b"newer"


def test_a_swap_at_every_step_of_the_walk_gives_no_foreign_entry(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two steps, a folder above becomes a link to the attacker's."""
    evil(tmp_path / "evil" / "b" / "cache")
    (tmp_path / "evil").chmod(0o777)
    real = ownership._check
    seen = []
    for moment in range(12):
        root = home / str(moment)
        Cache(root / "a" / "b" / "cache").put(KEY, b"plan")
        steps = iter(range(100))

        def check(*step, root=root, moment=moment, steps=steps, **options):
            real(*step, **options)
            if next(steps) == moment:
                (root / "a").rename(root / "moved")
                (root / "a").symlink_to(tmp_path / "evil")

        monkeypatch.setattr(ownership, "_check", check)
        try:
            seen.append(Cache(root / "a" / "b" / "cache").get(KEY).data)
        except EdgelungError:
            seen.append(None)
        monkeypatch.undo()
    assert set(seen) == {b"plan", None}


def test_hundreds_of_swaps_give_no_foreign_entry(home: Path) -> None:
    """`benchmarks/races.py` tries 100,000."""
    Cache(home / "a" / "cache").put(KEY, b"plan")
    evil(home / "b" / "cache")
    (home / "b").chmod(0o777)
    exchange(home / "a", home / "b")
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            exchange(home / "a", home / "b")

    thread = threading.Thread(target=attack)
    thread.start()
    found = set()
    try:
        for _ in range(300):
            try:
                found.add(Cache(home / "a" / "cache").get(KEY).data)
            except EdgelungError:
                found.add(None)
    finally:
        stop.set()
        thread.join()
    assert found == {b"plan", None}


def test_a_cache_that_is_created_is_private_whatever_the_umask(home: Path) -> None:
    mask = os.umask(0)
    try:
        make_private(home / "x" / "y" / "engines").close()
    finally:
        os.umask(mask)
    for name in ("x", "x/y", "x/y/engines"):
        assert (home / name).stat().st_mode & 0o777 == 0o700


def test_an_optional_cache_below_a_foreign_folder_is_off(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "shared").mkdir()
    (home / "shared").chmod(0o777)
    monkeypatch.setenv("EDGELUNG_CACHE", str(home / "shared" / "mine"))
    assert not open_cache("openvino").enabled
