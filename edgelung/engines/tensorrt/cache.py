"""Built engines, kept where only their user can write.

A serialized engine is executable code, and TensorRT's own check of it is no check for tampering.
So: a private folder (`edgelung.cache`), one file an entry, its hash checked before anything is
handed out. One file holds the key and the data, and is replaced
whole, so no reader meets half an entry; a lock lets one process build while the others wait.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edgelung.core.cache import cache_folder, make_private
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write

KIND = "engines"
# What an entry is; the rest of its key is what it must match to be used.
IDENTITY = ("kind", "graph", "gpu", "flavour", "profile")
MAX_HEADER = 1 << 16

Key = Mapping[str, str]
Say = Callable[[str], None]


class EngineCache:
    """Entries of bytes by key; none where EDGELUNG_CACHE is 'off'.

    Raises EdgelungError where the folder is not the user's alone: building an engine at each start
    is too slow to be done in silence.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder(KIND)
        if self.folder:
            make_private(self.folder)

    def get(self, key: Key) -> tuple[bytes | None, str]:
        """The entry's bytes, or None with the reason ('' where there simply is none)."""
        if self.folder is None:
            return None, ""
        try:
            with self._path(self.folder, key).open("rb") as file:
                header = json.loads(file.readline(MAX_HEADER))
                data = file.read()
            kept, expected = dict(header["key"]), str(header["sha256"])
        except FileNotFoundError:
            return None, ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"cannot be read ({type(error).__name__})"
        if kept != dict(key):
            changed = [
                f"{name}: {kept.get(name, 'none')} → {key.get(name, 'none')}"
                for name in sorted({*kept, *key})
                if kept.get(name) != key.get(name)
            ]
            return None, f"is stale ({'; '.join(changed)})"
        if hashlib.sha256(data).hexdigest() != expected:
            return None, "is damaged (its SHA-256 does not match)"
        return data, ""

    def put(self, key: Key, data: bytes) -> None:
        """Keep `data`; an entry of the same identity is replaced."""
        if self.folder is None:
            return
        header = {"key": dict(key), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        path = self._path(self.folder, key)
        with atomic_write(path) as file:
            file.write(json.dumps(header, sort_keys=True).encode() + b"\n" + data)
        path.chmod(0o600)

    def get_or_build(self, key: Key, build: Callable[[], bytes], say: Say) -> bytes:
        """The entry, or what `build` returns, kept; of several processes at once, one builds."""
        data, _ = self.get(key)
        if data is not None:
            return data
        with self._locked(key, say):
            data, reason = self.get(key)  # another process may have built it meanwhile
            if data is not None:
                return data
            if reason:
                say(f"the cached {key['kind']} of this graph {reason}; building it again")
            data = build()
            try:
                self.put(key, data)
            except (OSError, EdgelungError) as error:  # a full disk costs time, not the run
                say(f"the {key['kind']} was built but not kept: {error}")
            return data

    def put_if_possible(self, key: Key, data: bytes) -> None:
        """Keep what only saves time: where a disk is full, it is made again."""
        with suppress(OSError, EdgelungError):
            self.put(key, data)

    def forget(self, key: Key) -> None:
        """Remove the entry, if there is one."""
        if self.folder is not None:
            self._path(self.folder, key).unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, key: Key) -> Path:
        identity = json.dumps([key.get(name, "") for name in IDENTITY])
        return folder / f"{key['kind']}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"

    @contextmanager
    def _locked(self, key: Key, say: Say) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        path = self._path(self.folder, key).with_suffix(".lock")
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        with os.fdopen(handle, "r+b") as file:
            _lock(file, lambda: say(f"another process builds this {key['kind']}; waiting for it"))
            yield  # closing the file lets go


def _lock(file: IO[bytes], waiting: Callable[[], None]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: both build, and the last to finish replaces an equal entry
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
