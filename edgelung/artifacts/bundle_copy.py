"""A bundle as bytes, to be opened on another machine.

The other machine opens it as any bundle: every check is made again there.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.bundle_files import verified_bytes
from edgelung.core.errors import EdgelungError


@dataclass(frozen=True)
class BundleCopy:
    """The bytes of all files of a bundle, by their POSIX paths in it."""

    files: Mapping[str, bytes]


def pack(bundle: Bundle) -> BundleCopy:
    """Read an opened bundle. Raises EdgelungError if a file has changed since it was opened."""
    return BundleCopy(dict(verified_bytes(bundle.folder, bundle.files)))


def unpack(copy: BundleCopy, folder: Path) -> None:
    """Write the files into an empty folder of this process. Raises EdgelungError."""
    for name, data in copy.files.items():
        path = folder / name
        if os.path.isabs(name) or ".." in path.parts:
            raise EdgelungError(f"a file of the bundle leads out of its folder: {name!r}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise EdgelungError(
                f"cannot write the bundle into {folder}: {error.strerror}; set TMPDIR on this node "
                "to a folder with room"
            ) from error
