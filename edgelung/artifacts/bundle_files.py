"""The files of a bundle's folder: opened without following links, read and hashed.

What is loaded later is what was hashed here: `BundleFile.read` hashes the very bytes that it
returns, so a file that was exchanged meanwhile is refused, however and whenever that was done.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.core.folder import KINDS, open_inside
from edgelung.core.own_folders import BUNDLE_MANIFEST, BUNDLE_SEAL

MANIFEST, SEAL = BUNDLE_MANIFEST, BUNDLE_SEAL
SIGNATURE = "bundle.sig"
UNLISTED = frozenset({MANIFEST, SEAL, SIGNATURE})  # all that bundle.json does not list

MAX_MANIFEST_BYTES = 1 << 24
MAX_SEAL_BYTES = 1 << 10
MAX_SIGNATURE_BYTES = 1 << 24
MAX_FILE_BYTES = (1 << 31) - 1  # protobuf's limit for a graph
MAX_TOTAL_BYTES = 1 << 33
MAX_ENTRIES = 4096
MAX_DEPTH = 4  # of folders; the writer makes one level
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class BundleFiles:
    """What was read when the bundle was opened.

    Attributes:
        digests: POSIX path in the bundle → SHA-256 in hexadecimal of the bytes that were read, for
            every file of the folder, bundle.json and its seal included, the signature excluded.
        signature: the bytes of bundle.sig; None if there is no such file.
    """

    digests: Mapping[str, str]
    signature: bytes | None = None


@dataclass(frozen=True)
class BundleFile:
    """A file of an opened bundle, by its hash.

    Attributes:
        folder: the bundle's folder.
        name: POSIX path in the bundle.
        sha256: SHA-256 in hexadecimal of the bytes that `read` returns.
        size: size in bytes.
    """

    folder: Path
    name: str
    sha256: str
    size: int

    @property
    def path(self) -> Path:
        """Where the file lies, for messages. Use `read` to load it."""
        return self.folder / self.name

    def read(self) -> bytes:
        """Read the file again; the result has the hash `sha256`.

        Raises:
            EdgelungError: if the file is gone, is a link, or was changed after the bundle was
                opened.
        """
        with open_folder(self.folder, None) as folder:
            data = folder.read(self.name, self.size)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise EdgelungError(
                f"{self.path} was changed after the bundle was opened; expected the bytes that "
                "were verified. Copy or export the bundle again"
            )
        return data


def verified_bytes(source: Path, files: BundleFiles) -> Iterator[tuple[str, bytes]]:
    """Yield the POSIX path and the content of each file of an opened bundle, as it was verified.

    Raises:
        EdgelungError: if a file was changed after the bundle was opened.
    """
    for name, digest in files.digests.items():
        yield name, BundleFile(source, name, digest, MAX_FILE_BYTES).read()
    if files.signature is not None:
        yield SIGNATURE, files.signature


def copy_files(source: Path, files: BundleFiles, target: Path) -> None:
    """Copy an opened bundle into the new folder `target`. Raises as `verified_bytes`."""
    target.mkdir()
    for name, data in verified_bytes(source, files):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)


@dataclass(frozen=True)
class BundleFolder:
    """An open folder; see `open_folder`. Names are resolved below its descriptor."""

    path: Path
    descriptor: int

    def holds(self, name: str) -> bool:
        """True if the folder has an entry of this name, of any kind."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def names(self) -> list[str]:
        """POSIX paths of all regular files, sorted. Reads no file.

        Raises:
            EdgelungError: for a link, a device, a FIFO, a socket, an empty folder, or too many
                files or levels.
        """
        try:
            names = sorted(self._walk(self.descriptor, "", MAX_DEPTH))
        except OSError as error:
            raise EdgelungError(
                f"cannot read the bundle {self.path}: {error.strerror}; copy it again"
            ) from error
        if len(names) > MAX_ENTRIES:
            raise self._too_large()
        return names

    def read(self, name: str, limit: int) -> bytes:
        """Read a regular file of at most `limit` bytes.

        Raises:
            EdgelungError: if it is missing, larger, not a regular file, or behind a link.
        """
        with self._file(name, limit) as (descriptor, size):
            parts, count = [], 0
            while count <= size and (part := os.read(descriptor, size + 1 - count)):
                parts.append(part)
                count += len(part)
        if count != size:
            raise self._changed(name)
        return b"".join(parts)

    def hash(self, name: str, limit: int) -> tuple[str, int]:
        """Return the SHA-256 in hexadecimal and the size of a regular file; as `read`."""
        digest, count = hashlib.sha256(), 0
        with self._file(name, limit) as (descriptor, size):
            while count <= size and (part := os.read(descriptor, CHUNK_BYTES)):
                digest.update(part)
                count += len(part)
        if count != size:
            raise self._changed(name)
        return digest.hexdigest(), size

    @contextmanager
    def _file(self, name: str, limit: int) -> Iterator[tuple[int, int]]:
        """Open a regular file: its descriptor and its size. No part of `name` may be a link."""
        descriptor = -1
        try:
            descriptor = open_inside(self.descriptor, name.split("/"))
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise self._not_regular(name, info.st_mode)
            if info.st_size > limit:
                raise EdgelungError(
                    f"{self.path / name} has {info.st_size:,} bytes; expected at most {limit:,}. "
                    "Copy or export the bundle again"
                )
            yield descriptor, info.st_size
        except FileNotFoundError as error:
            raise EdgelungError(
                f"{self.path / name} is missing; copy or export the bundle again"
            ) from error
        except OSError as error:
            raise EdgelungError(
                f"cannot read {self.path / name}: {error.strerror}; a bundle holds regular files "
                "only, no links. Copy the bundle again"
            ) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _walk(self, descriptor: int, prefix: str, depth: int) -> Iterator[str]:
        with os.scandir(descriptor) as entries:
            listed = []
            for entry in entries:
                listed.append(entry)
                if len(listed) > MAX_ENTRIES:
                    raise self._too_large()
        if prefix and not listed:
            raise EdgelungError(f"{self.path / prefix} is an empty folder; remove it")
        for entry in listed:
            name = prefix + entry.name
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(info.st_mode):
                yield name
            elif not stat.S_ISDIR(info.st_mode):
                raise self._not_regular(name, info.st_mode)
            elif depth == 0:
                raise self._too_large()
            else:
                child = open_inside(descriptor, [entry.name])
                try:
                    yield from self._walk(child, f"{name}/", depth - 1)
                finally:
                    os.close(child)

    def _not_regular(self, name: str, mode: int) -> EdgelungError:
        kind = KINDS.get(stat.S_IFMT(mode), "no file")
        return EdgelungError(
            f"{str(self.path / name)!r} is {kind}; a bundle holds regular files only: remove it, "
            "or copy the bundle again"
        )

    def _too_large(self) -> EdgelungError:
        return EdgelungError(
            f"{self.path} holds more than {MAX_ENTRIES} files or {MAX_DEPTH} levels of folders; "
            "expected a folder that `edgelung export` wrote"
        )

    def _changed(self, name: str) -> EdgelungError:
        return EdgelungError(
            f"{self.path / name} changed while it was read; wait until it is copied, then run the "
            "same command again"
        )


@contextmanager
def open_folder(path: Path, manifest: str | None = MANIFEST) -> Iterator[BundleFolder]:
    """Open a bundle's folder. The folder may be a link; what it holds may not.

    `manifest`: the file that it has to hold; None: any folder.

    Raises:
        EdgelungError: if `path` is no folder, does not hold `manifest`, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _no_bundle(path) from error
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; copy it again") from error
    try:
        folder = BundleFolder(path, descriptor)
        if manifest is not None and not folder.holds(manifest):
            raise _no_bundle(path)
        yield folder
    finally:
        os.close(descriptor)


def _no_bundle(path: Path) -> EdgelungError:
    return EdgelungError(
        f"{path} is no bundle (no {MANIFEST} in it); expected a folder that `edgelung export` wrote"
    )
