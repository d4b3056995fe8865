"""The private cache: GPU engines, compiled models and ranges that this machine computed for itself.

One entry format and one policy for all of them:

- An entry is one file: a JSON header line (key and SHA-256), then the data. It is replaced
  atomically, so no reader sees half an entry.
- An engine is executable code, and a hash is not a signature. An entry is trusted because only this
  user can write to the folder. A folder that others can enter, or replace by way of any folder
  above it, is never used. The folder is opened once (`edgelung.core.ownership`); entries are opened
  in it, and no link is followed.
- The SHA-256 is checked before the data is returned. A damaged entry is removed.
- A `Key` has an identity, which names the file, and dependencies, which must match. Where they do
  not, the entry is stale: the reason names what changed, and the next entry replaces it.
- The cache only saves time. A full disk never stops a run (`try_put`, `get_or_build`).
- EDGELUNG_CACHE names another folder, or is 'off'.

What differs between the kinds is an argument: whether the user must be told that there is no
private folder (`required`), and how many entries stay (`max_entries`). `get_or_build` adds a lock,
so that of several processes only one builds.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edgelung.core.errors import EdgelungError
from edgelung.core.files import replacing, sha256_bytes
from edgelung.core.folder import Folder
from edgelung.core.locks import wait_for_lock
from edgelung.core.ownership import open_private

ENVIRONMENT = "EDGELUNG_CACHE"
ENGINE_FOLDER = "engines"  # the folder of the GPU engines
MAX_ENTRIES = 16  # per folder of small entries; the least recently used are removed
MAX_HEADER_BYTES = 1 << 16
LOCK_SUFFIX = ".lock"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """What an entry is, and what it depends on.

    Attributes:
        kind: the word for messages and the start of the file name, such as 'engine'.
        identity: names the entry; one file per identity.
        depends_on: everything else that must match, such as versions.
    """

    kind: str
    identity: Mapping[str, str]
    depends_on: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        """The name of the entry's file."""
        identity = json.dumps([self.kind, *self.identity.values()])
        return f"{self.kind}-{sha256_bytes(identity.encode())[:32]}"

    def as_dict(self) -> dict[str, str]:
        """Return the whole key as it stands in the entry's header."""
        return {"kind": self.kind, **self.identity, **self.depends_on}


def content_key(kind: str, content: bytes) -> Key:
    """Return the key of an entry that depends on `content` alone, and so is never stale."""
    return Key(kind, {"content": sha256_bytes(content)})


class Lookup(NamedTuple):
    """The data of an entry, or None and the reason ('' if there is no entry)."""

    data: bytes | None
    reason: str = ""


class Cache:
    """Entries in one private folder. Without a folder it is always empty.

    Args:
        folder: created if it is missing; None switches the cache off.
        max_entries: how many entries stay; None keeps all of them.

    Raises:
        EdgelungError: if other users can enter or replace the folder, or it cannot be created.
    """

    def __init__(self, folder: Path | None, *, max_entries: int | None = None) -> None:
        self._opened = None if folder is None else make_private(folder)
        self.folder = folder
        self._max_entries = max_entries

    @property
    def enabled(self) -> bool:
        """True if entries are kept."""
        return self._opened is not None

    def get(self, key: Key) -> Lookup:
        """Return the entry's data, checked; or None with the reason."""
        if self._opened is None:
            return Lookup(None)
        try:
            handle = self._opened.open_regular(key.file_name, owned=True)
            with os.fdopen(handle, "rb") as file:
                header = file.readline(MAX_HEADER_BYTES)
                data = file.read()
                if self._max_entries is not None and os.utime in os.supports_fd:
                    with suppress(OSError):
                        os.utime(file.fileno())  # the time of the last use, for `_prune`
        except FileNotFoundError:
            return Lookup(None)
        except OSError as error:
            return Lookup(None, f"cannot be read ({error.strerror})")
        except EdgelungError as error:  # a link, another user's file
            return Lookup(None, f"cannot be used: {error}")
        try:
            fields = json.loads(header)
            cached_key, expected_hash = dict(fields["key"]), str(fields["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            self.remove(key)
            return Lookup(None, f"cannot be read ({type(error).__name__})")
        if any(cached_key.get(name) != value for name, value in key.identity.items()):
            self.remove(key)  # the identity names the file: the header was damaged
            return Lookup(None, "is damaged (its header is of another entry)")
        if changes := _changes(cached_key, key.as_dict()):
            return Lookup(None, f"is stale ({changes})")
        if sha256_bytes(data) != expected_hash:
            self.remove(key)
            return Lookup(None, "is damaged (its SHA-256 does not match)")
        return Lookup(data)

    def put(self, key: Key, data: bytes) -> None:
        """Write an entry; one of the same identity is replaced.

        Raises:
            EdgelungError, OSError: if the disk is full or the folder is gone.
        """
        if self._opened is None:
            return
        header = {"key": key.as_dict(), "sha256": sha256_bytes(data)}
        with (
            replacing(self._opened, key.file_name, mode=0o600) as descriptor,
            open(descriptor, "wb", closefd=False) as file,
        ):
            file.write(json.dumps(header, sort_keys=True).encode() + b"\n")
            file.write(data)
        self._prune(self._opened)

    def try_put(self, key: Key, data: bytes) -> None:
        """Write an entry if there is room: a full disk only costs the time to compute it again."""
        with suppress(OSError, EdgelungError):
            self.put(key, data)

    def get_or_build(self, key: Key, build: Callable[[], bytes]) -> bytes:
        """Return the cached entry. On a miss, call `build` and cache its result.

        Concurrent processes build it only once; the others wait. Why an entry was not used, and
        that a result could not be cached, is logged.
        """
        data, reason = self.get(key)
        if data is not None:
            return data
        with self._lock(key):
            data, reason_now = self.get(key)  # another process may have built it meanwhile
            if data is not None:
                return data
            if reason := reason_now or reason:
                logger.info("the cached %s of this graph %s; building it again", key.kind, reason)
            data = build()
            try:
                self.put(key, data)
            except (OSError, EdgelungError) as error:
                logger.info("the %s was built but could not be cached: %s", key.kind, error)
            return data

    def remove(self, key: Key) -> None:
        """Remove the entry, if there is one."""
        if self._opened is not None:
            with suppress(OSError):
                self._opened.unlink(key.file_name)

    def _lock(self, key: Key) -> AbstractContextManager[None]:
        if self._opened is None:
            return nullcontext()
        name = f"{key.file_name}{LOCK_SUFFIX}"
        message = f"another process is building this {key.kind}; waiting for it"
        return wait_for_lock(self._opened, name, lambda: logger.info(message))

    def _prune(self, folder: Folder) -> None:
        if self._max_entries is None:
            return
        last_use = {
            name: folder.stat(name).st_mtime_ns for name in filter(_is_entry, folder.names())
        }
        for name in sorted(last_use, key=last_use.__getitem__)[: -self._max_entries]:
            folder.unlink(name)


def engine_cache() -> Cache:
    """Open the cache of the GPU engines; it keeps all entries.

    Raises:
        EdgelungError: if the folder is not private. To build an engine at every start takes
            minutes, so the user must be told.
    """
    return open_cache(ENGINE_FOLDER, required=True, max_entries=None)


def open_cache(
    name: str, *, required: bool = False, max_entries: int | None = MAX_ENTRIES
) -> Cache:
    """Open the folder `name` of the user's cache.

    Without a private folder the cache is switched off, or, with `required`, EdgelungError says why.
    """
    try:
        return Cache(cache_folder(name), max_entries=max_entries)
    except EdgelungError:
        if required:
            raise
        return Cache(None)


def cache_folder(name: str) -> Path | None:
    """Return the path of the folder `name` in the user's cache; None if EDGELUNG_CACHE is 'off'.

    Raises:
        EdgelungError: if the user has no home folder.
    """
    root = os.environ.get(ENVIRONMENT)
    if root == "off":
        return None
    try:
        return (Path(root) if root else _user_cache() / "edgelung") / name
    except RuntimeError as error:
        raise EdgelungError(f"no home folder; set {ENVIRONMENT}") from error


def make_private(folder: Path) -> Folder:
    """Open the folder, created if it is missing; only this user and root can change what it holds.

    Raises:
        EdgelungError: if others can enter it or replace it or a folder above it, or it cannot be
            created.
    """
    try:
        return open_private(
            folder, "cache of programs", f"set {ENVIRONMENT} to a new folder in one of yours"
        )
    except OSError as error:
        raise EdgelungError(
            f"cannot create the cache {folder}: {error.strerror}; set {ENVIRONMENT}"
        ) from error


def list_entries(folder: Path) -> list[Path]:
    """List the files of the entries in a cache folder, without locks and temporary files."""
    return [path for path in folder.iterdir() if _is_entry(path.name)]


def _is_entry(name: str) -> bool:
    return not name.endswith(LOCK_SUFFIX) and not name.startswith(".")


def _changes(cached: Mapping[str, str], current: Mapping[str, str]) -> str:
    """Name the fields that differ, as 'driver: 5 → 6; …'; '' if none does."""
    return "; ".join(
        f"{name}: {cached.get(name, 'none')} → {current.get(name, 'none')}"
        for name in sorted({*cached, *current})
        if cached.get(name) != current.get(name)
    )


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
