"""What was built on this machine for this machine: a private folder, keyed by content.

An engine is executable code and a hash is no signature: what lies here is trusted because only this
user can have written it. Where that cannot be made sure there is no cache.
"""

import os
import stat
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write

ENVIRONMENT = "EDGELUNG_CACHE"  # another folder, or 'off'
KEEP = 16  # of one kind, the last used
_DIGEST = sha256().digest_size


class Cache:
    """One entry: bytes under the hash of all that they follow from (`key`)."""

    def __init__(self, kind: str, key: bytes) -> None:
        self._folder = _private_folder(kind)
        self._name = f"{sha256(key).hexdigest()}.bin"

    @property
    def wanted(self) -> bool:
        """Whether there is a place to write to."""
        return self._folder is not None

    def read(self) -> bytes | None:
        """The bytes, or None where there are none or a disk has changed them."""
        if self._folder is None:
            return None
        path = self._folder / self._name
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content = memoryview(data)[_DIGEST:]
        if sha256(content).digest() != data[:_DIGEST]:
            self.drop()
            return None
        with suppress(OSError):
            os.utime(path)
        return bytes(content)

    def write(self, content: bytes) -> None:
        """Keep the bytes; a full disk is no error."""
        if self._folder is None:
            return
        with suppress(Exception):
            with atomic_write(self._folder / self._name) as file:
                file.write(sha256(content).digest())
                file.write(content)
            kept = sorted(self._folder.glob("*.bin"), key=lambda p: p.stat().st_mtime)
            for path in kept[:-KEEP]:
                path.unlink()

    def drop(self) -> None:
        """Forget the entry."""
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / self._name).unlink()


def cache_folder(kind: str) -> Path | None:
    """Where entries of this kind are kept; None where EDGELUNG_CACHE is 'off'.

    Raises EdgelungError where the user has no home folder.
    """
    named = os.environ.get(ENVIRONMENT)
    if named == "off":
        return None
    try:
        return (Path(named) if named else _user_cache() / "edgelung") / kind
    except RuntimeError as error:
        raise EdgelungError(f"no home folder; set {ENVIRONMENT}") from error


def make_private(folder: Path) -> None:
    """Make the folder. Raises EdgelungError where it cannot be, or others could change it."""
    try:
        for place in (folder.parent, folder):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        info, above = folder.stat(follow_symlinks=False), folder.parent.stat().st_mode
    except OSError as error:
        raise EdgelungError(
            f"cannot make the cache {folder}: {error.strerror}; set {ENVIRONMENT}"
        ) from error
    if not hasattr(os, "getuid"):  # Windows: the profile folder is the user's by its access list
        return
    mode = stat.S_IMODE(info.st_mode)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or mode & 0o077:
        raise EdgelungError(
            f"the cache {folder} is no folder that only you can enter (mode {mode:o}, owner "
            f"{info.st_uid}), and engines are executable code; empty it and run: "
            f"chmod 700 '{folder}', or set {ENVIRONMENT} to a new folder"
        )
    if above & 0o022 and not above & stat.S_ISVTX:  # who can write there can swap the folder
        raise EdgelungError(
            f"others can write to {folder.parent} (mode {stat.S_IMODE(above):o}), and engines are "
            f"executable code; run: chmod go-w '{folder.parent}', or set {ENVIRONMENT} to a new "
            "folder"
        )


def _private_folder(kind: str) -> Path | None:
    try:
        if folder := cache_folder(kind):
            make_private(folder)
        return folder
    except EdgelungError:
        return None


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
