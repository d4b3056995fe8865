"""Match names of tiles that other systems wrote to the files that exist.

Windows writes backslashes and drive letters. macOS decomposes letters with accents (NFD). Programs
add quotes or blanks, or change the case of an extension. The name is first tried unchanged; other
spellings are tried only if no such file exists.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
_QUOTES = ('"', "'")


def with_slashes(name: str) -> str:
    """Convert a Windows path to forward slashes, without its drive; leave other names unchanged."""
    if "/" in name and "\\" in name and not _DRIVE.match(name):
        return name  # the backslash is part of the name
    return _DRIVE.sub("/", name).replace("\\", "/") if "\\" in name or _DRIVE.match(name) else name


def unquoted(name: str) -> str:
    """Remove blanks around a name, and one pair of quotes."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in _QUOTES:
        return name[1:-1]
    return name


def match_key(name: str) -> str:
    """A key that is equal for all spellings of one name.

    Forward slashes, no `.` or `..`, no quotes, composed letters (NFC), lower-case extension.
    """
    plain = posixpath.normpath(with_slashes(unquoted(name)))
    stem, extension = posixpath.splitext(unicodedata.normalize("NFC", plain))
    return stem + extension.lower()


def spellings(name: str) -> Iterator[str]:
    """Yield the name unchanged, then its other spellings, each once."""
    seen = set()
    for text in (name, unquoted(name)):
        for path in (text, with_slashes(text)):
            stem, extension = os.path.splitext(path)
            for end in (extension, extension.lower(), extension.upper()):
                for form in ("NFC", "NFD"):
                    spelled = [path, unicodedata.normalize(form, stem + end)]
                    for candidate in spelled:
                        if candidate not in seen:
                            seen.add(candidate)
                            yield candidate


def resolve(folder: Path, name: str) -> str:
    """Find the file that `name` means: a path relative to `folder`, or an absolute path.

    Tried in this order, each in any spelling: relative to the folder; relative to the working
    folder; by its last parts, for a list from another machine (`D:\\data\\tiles\\a\\1.jpg` is
    `a/1.jpg` below `tiles`). If no file exists, returns `name`, and its row reports the error.
    """
    for candidate in spellings(name):
        if _exists(folder, candidate):
            return candidate
    for candidate in spellings(name):
        if _exists(Path(), candidate):
            return _below(folder, candidate)
    parts = PurePosixPath(with_slashes(unquoted(name))).parts
    for start in range(1, len(parts) - 1):  # at least the file and its folder
        tail = posixpath.join(*parts[start:])
        for candidate in spellings(tail):
            if _exists(folder, candidate):
                return candidate
    return name


def lookup(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Map the key of the last two parts of each name to the names, for `find`."""
    table: dict[str, list[str]] = {}
    for name in names:
        table.setdefault(_last_two(match_key(name)), []).append(name)
    return table


def find(path: str, table: Mapping[str, list[str]]) -> list[str]:
    """The names in a `lookup` that mean the tile at `path`.

    The keys are equal, or one path has more leading folders than the other
    (`lung_image_sets/lung_aca/1.jpeg`, `lung_aca/1.jpeg`). At least `<class>/<file>` must be equal.
    """
    key = match_key(path)
    candidates = table.get(_last_two(key), [])
    exact = [name for name in candidates if match_key(name) == key]
    if exact:
        return exact
    return [
        name
        for name in candidates
        if match_key(name).endswith(f"/{key}") or key.endswith(f"/{match_key(name)}")
    ]


def _last_two(key: str) -> str:
    return "/".join(PurePosixPath(key).parts[-2:])


def _exists(folder: Path, name: str) -> bool:
    try:
        return os.path.lexists(folder / name)
    except ValueError:  # a NUL in the name
        return False


def _below(folder: Path, name: str) -> str:
    """Convert a path from the working folder: relative to `folder` if inside it, else absolute."""
    absolute = os.path.abspath(name)
    inside = os.path.relpath(absolute, os.path.abspath(folder))
    return absolute if inside.startswith("..") else inside.replace(os.sep, "/")
