"""Digests of the files of a folder; replaced by `BundleFiles` when a bundle is read once."""

import os
from pathlib import Path

from edgelung.artifacts.signature import MAX_BYTES, SIGNATURE_FILE
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file


def read_digests(folder: Path) -> tuple[dict[str, str], bytes | None]:
    """POSIX path → SHA-256 of every file but bundle.sig, and the bytes of bundle.sig.

    Raises EdgelungError for a link, an empty folder, or anything that is no regular file.
    """
    digests: dict[str, str] = {}
    signature: bytes | None = None
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise EdgelungError(f"{path} is a link or a device; expected files only: remove it")
        if not folders and not files:
            raise EdgelungError(f"{place} is an empty folder; remove it")
        for name in files:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if relative == SIGNATURE_FILE:
                with path.open("rb") as file:
                    signature = file.read(MAX_BYTES + 1)
            else:
                digests[relative] = sha256_file(path)
    return digests, signature
