"""Names of tiles as other systems write them, matched to the files that are there.

Windows writes backslashes and drive letters, macOS decomposes letters with accents (NFD), programs
quote names, add blanks, or change the case of an extension. The exact name is tried first, then
other spellings of it. A file of another folder is never taken for the one that was named.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

_WINDOWS_ROOT = re.compile(r"^([A-Za-z]:[\\/]|\\\\)")  # D:\, D:/ or \\server
_QUOTES = ('"', "'")


def with_slashes(name: str) -> str:
    """A name as Windows writes it, with forward slashes and without its drive."""
    if _WINDOWS_ROOT.match(name):
        return "/" + _WINDOWS_ROOT.sub("", name).replace("\\", "/")
    # A backslash beside slashes belongs to the name.
    return name if "/" in name else name.replace("\\", "/")


def unquoted(name: str) -> str:
    """A name without blanks around it and without a pair of quotes."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in _QUOTES:
        return name[1:-1]
    return name


def plain_name(name: str) -> str:
    """A name with forward slashes, without quotes, `.` and `..`."""
    return posixpath.normpath(with_slashes(unquoted(name)))


def match_key(name: str) -> str:
    """A key that all spellings of one name share: letters composed (NFC), extension lower-case."""
    stem, extension = posixpath.splitext(unicodedata.normalize("NFC", plain_name(name)))
    return stem + extension.lower()


def spellings(name: str) -> Iterator[str]:
    """Yield the name, then its alternative spellings, without repeats."""
    seen = set()
    for path in (name, unquoted(name), with_slashes(unquoted(name))):
        stem, extension = os.path.splitext(path)
        for end in (extension, extension.lower(), extension.upper()):
            for spelled in (stem + end, *_unicode_forms(stem + end)):
                if spelled not in seen:
                    seen.add(spelled)
                    yield spelled


def resolve(folder: Path, name: str) -> str:
    """The path below `folder`, or the absolute path, of the file that `name` means.

    Tried in this order: the name below the folder, in any spelling; the name without the folder's
    own path in front (`tiles/a/1.jpg` for the folder `data/tiles`); for an absolute Windows path,
    its last parts, since the list was written on another machine (`D:\\data\\tiles\\a\\1.jpg` is
    `a/1.jpg`; `<folder>/<file>` at least). If no file matches, `name`: its row then reports the
    missing file.
    """
    candidates = [name, *_without_folder(folder, name), *_tails(name)]
    for candidate in candidates:
        for spelled in spellings(candidate):
            if _exists(folder, spelled):
                return spelled
    return name


def lookup(names: Iterable[str]) -> Mapping[str, list[tuple[str, str]]]:
    """Plain names with their keys, by the last two parts of the key; for `find`."""
    table: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        key = match_key(name)
        table.setdefault(_last_two(key), []).append((name, key))
    return table


def find(path: str, table: Mapping[str, list[tuple[str, str]]]) -> list[str]:
    """Those names of a `lookup` that mean the tile at `path`.

    The same name, else the same key, else one that begins further up
    (`lung_image_sets/lung_aca/1.jpeg`, `lung_aca/1.jpeg`): `<class>/<file>` must be the same.
    """
    key = match_key(path)
    candidates = table.get(_last_two(key), [])
    if exact := [name for name, _ in candidates if name == path]:
        return exact
    if same := [name for name, other in candidates if other == key]:
        return same
    return [
        name for name, other in candidates if other.endswith(f"/{key}") or key.endswith(f"/{other}")
    ]


def _unicode_forms(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def _without_folder(folder: Path, name: str) -> Iterator[str]:
    """The name without leading parts that repeat the end of the folder's own path."""
    parts = PurePosixPath(plain_name(name)).parts
    ends = folder.absolute().parts
    for count in range(min(len(parts) - 1, len(ends)), 0, -1):
        if parts[:count] == ends[-count:]:
            yield posixpath.join(*parts[count:])


def _tails(name: str) -> Iterator[str]:
    """The ends of an absolute Windows path, longest first, of two parts at least."""
    if not _WINDOWS_ROOT.match(unquoted(name)):
        return
    parts = PurePosixPath(plain_name(name)).parts[1:]
    for start in range(len(parts) - 1):
        yield posixpath.join(*parts[start:])


def _last_two(key: str) -> str:
    return "/".join(PurePosixPath(key).parts[-2:])


def _exists(folder: Path, name: str) -> bool:
    try:
        return os.path.lexists(folder / name)
    except ValueError:  # a NUL in the name
        return False


def printable(path: str) -> str:
    r"""The path as valid UTF-8, different for different names.

    Bytes that are not UTF-8 are written \xNN; a backslash in the name is doubled.
    """
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def from_printable(path: str) -> str:
    """The file name that `printable` wrote as valid UTF-8."""

    def original(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], 16)]) if match[1] else b"\\"

    return os.fsdecode(re.sub(rb"\\\\|\\x([0-9a-f]{2})", original, path.encode()))
