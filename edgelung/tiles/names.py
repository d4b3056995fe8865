"""Names of tiles as other systems write them, matched to the files that are there.

Windows writes backslashes and drive letters, macOS decomposes letters with accents (NFD), programs
quote names, add blanks, or change the case of an extension. A name is taken as it stands first; the
other readings are tried only where no file has that name.
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
    """A name as Windows writes it, with forward slashes and without its drive."""
    if "/" in name and "\\" in name and not _DRIVE.match(name):
        return name  # a backslash of the name's own
    return _DRIVE.sub("/", name).replace("\\", "/") if "\\" in name or _DRIVE.match(name) else name


def unquoted(name: str) -> str:
    """A name without blanks around it and without a pair of quotes."""
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
    """The name as it stands, then its other readings, each once."""
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
    """The path below `folder`, or the absolute one, that `name` stands for.

    Tried in this order: below the folder, in any spelling; from the working folder; by its last
    parts, where the list was written on another machine (`D:\\data\\tiles\\a\\1.jpg` is `a/1.jpg`
    below `tiles`). Where no file has such a name, `name` itself, so that its row says so.
    """
    for candidate in spellings(name):
        if _exists(folder, candidate):
            return candidate
    for candidate in spellings(name):
        if _exists(Path(), candidate):
            return _below(folder, candidate)
    parts = PurePosixPath(with_slashes(unquoted(name))).parts
    for start in range(1, len(parts) - 1):  # at least the file and the folder it lies in
        tail = posixpath.join(*parts[start:])
        for candidate in spellings(tail):
            if _exists(folder, candidate):
                return candidate
    return name


def lookup(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by the key of their last two parts, for `find`."""
    table: dict[str, list[str]] = {}
    for name in names:
        table.setdefault(_last_two(match_key(name)), []).append(name)
    return table


def find(path: str, table: Mapping[str, list[str]]) -> list[str]:
    """Those names of a `lookup` that mean the tile at `path`.

    Equal as keys, or one of the two begins further up (`lung_image_sets/lung_aca/1.jpeg`,
    `lung_aca/1.jpeg`): `<class>/<file>` must be the same at least.
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
    """A path of the working folder as one below `folder` where it lies there, else absolute."""
    absolute = os.path.abspath(name)
    inside = os.path.relpath(absolute, os.path.abspath(folder))
    return absolute if inside.startswith("..") else inside.replace(os.sep, "/")
