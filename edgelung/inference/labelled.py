"""The labelled tiles of a site: a folder of class folders, or a list with groups and columns.

One reader for `evaluate` and `export --recalibrate`. A tile that cannot be read stays in the set:
its row says so.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgelung.core.class_names import composed
from edgelung.core.errors import EdgelungError
from edgelung.tiles.find import FoundFile, class_of, find_files
from edgelung.tiles.groups import NO_GROUP, check_groups
from edgelung.tiles.lists import is_utf8, read_rows, split_header
from edgelung.tiles.names import find, lookup, plain_name, printable
from edgelung.tiles.reader import looks_like_image

CLASS = "class"  # the column of the list that may name the class
NO_CLASS = "lie in no folder named after a class"
NOT_LISTED = "are not in the list"
NO_VALUE = "(none)"  # of an empty cell


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """One labelled tile. `truth`: index of its class; `columns`: values in the order asked for."""

    file: FoundFile
    truth: int
    group: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledFiles:
    """The labelled tiles below a folder.

    Attributes:
        files: the tiles, in path order.
        columns: names of their columns.
        grouped: False: no list gave groups, so every tile is one.
        left_out: reason → images below the folder that are not among the tiles.
    """

    files: list[LabelledFile]
    columns: tuple[str, ...]
    grouped: bool
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a list says about a tile; an empty `label`: nothing about its class."""

    group: str
    label: str
    columns: tuple[str, ...]


def labelled_files(
    folder: Path,
    classes: Sequence[str],
    groups: Path | None = None,
    columns: Sequence[str] = (),
    *,
    follow_links: bool = False,
) -> LabelledFiles:
    """Find the labelled tiles below a folder.

    Without a list, the tiles are the images in folders named after classes (the nearest one
    counts). With a list, they are its rows, and a row without a file is a tile that cannot be read.
    Hidden files and leftovers of operating systems are no images.

    Args:
        folder: what the paths of the list are relative to.
        classes: names of the classes that the model knows.
        groups: CSV with a path and `group` or `cluster`; its column `class`, if there is one,
            names the class.
        columns: further columns of the list, such as `site`.
        follow_links: follow links that lead out of the folder.

    Raises:
        EdgelungError: the folder or the list cannot be read, a column is missing, a row has no
            group or an unknown class, two rows contradict each other, or no tile is left.
    """
    if not folder.is_dir():
        raise EdgelungError(f"{folder} is no folder; expected a folder of labelled tiles")
    if columns and groups is None:
        raise EdgelungError(f"the column {columns[0]} is read from a list; name it with --groups")
    asked = tuple(dict.fromkeys(split_header(name)[0] if name else "" for name in columns))
    entries = _read_entries(groups, classes, asked) if groups else None
    files = find_files(folder, follow_links=follow_links)
    matched = _matched(files, entries) if entries else _images(files)
    left_out: Counter[str] = Counter()
    found = []
    for file, entry in matched:
        if entries is not None and entry is None:
            left_out[NOT_LISTED] += 1
            continue
        truth = _truth(file, entry, classes)
        if truth is None:
            left_out[NO_CLASS] += 1
            continue
        group = entry.group if entry else file.path
        found.append(LabelledFile(file, truth, group, entry.columns if entry else ()))
    if not any(one.file.reason == "" for one in found):
        raise EdgelungError(_nothing(folder, groups, classes, left_out.total()))
    found.sort(key=lambda one: one.file.path)
    return LabelledFiles(found, asked, groups is not None, dict(left_out))


def _is_image(file: FoundFile) -> bool:
    hidden = any(part.startswith(".") for part in PurePosixPath(file.path).parts)
    if hidden or file.leftover_of:
        return False
    return bool(file.reason or file.leads_out or file.is_image or looks_like_image(file))


def _images(files: Iterable[FoundFile]) -> Iterator[tuple[FoundFile, None]]:
    return ((file, None) for file in files if _is_image(file))


def _truth(file: FoundFile, entry: _Entry | None, classes: Sequence[str]) -> int | None:
    """Index of the class that the list names, else the nearest folder; None for none."""
    if entry and entry.label:
        return [composed(name) for name in classes].index(entry.label)
    return class_of(file.path, classes)


def _read_entries(
    path: Path, classes: Sequence[str], columns: tuple[str, ...]
) -> dict[str, _Entry]:
    """The rows of a list by their plain names. Raises EdgelungError as `labelled_files` does."""
    known = {composed(name) for name in classes}
    entries: dict[str, _Entry] = {}
    for row in read_rows(path, ("group|cluster", *columns)):
        shown = printable(row["path"])
        values = [row.get("group") or row.get("cluster") or "", row.get(CLASS) or ""]
        values += [row[name] for name in columns]
        if not all(map(is_utf8, values)):
            raise EdgelungError(f"{path} is not UTF-8 ({shown}); save it as UTF-8")
        group, label, *rest = (value.strip() for value in values)
        if group.lower() in NO_GROUP:
            raise EdgelungError(f"{path} names no group for {shown}; add it or remove the row")
        if CLASS in row and composed(label) not in known:
            raise EdgelungError(
                f"{path} has the class {label!r} ({shown}); the bundle knows {', '.join(classes)}: "
                "rename it or remove the row"
            )
        entry = _Entry(group, composed(label), tuple(value or NO_VALUE for value in rest))
        if entries.setdefault(plain_name(row["path"]), entry) != entry:
            raise EdgelungError(f"{path} has two rows for {shown} that differ; remove one")
    check_groups(path, (entry.group for entry in entries.values()))
    return entries


def _matched(
    files: Iterable[FoundFile], entries: Mapping[str, _Entry]
) -> Iterator[tuple[FoundFile, _Entry | None]]:
    """Each file with its row, and images without one; then a missing file for each other row.

    Raises EdgelungError if two rows that differ may mean one image.
    """
    table = lookup(entries)
    used: set[str] = set()
    for file in files:
        names = find(file.path, table)
        if len({entries[name] for name in names}) > 1:
            raise EdgelungError(
                f"{len(names)} rows that differ may mean {printable(file.path)}, "
                f"{printable(names[0])} for one; write its path as it is below the folder"
            )
        used.update(names)
        if names:
            yield replace(file, listed=True), entries[names[0]]
        elif _is_image(file):
            yield file, None
    for name in sorted(entries.keys() - used):
        yield (
            FoundFile(name, name, "the list names it, but the folder has no such file"),
            (entries[name]),
        )


def _nothing(folder: Path, groups: Path | None, classes: Sequence[str], images: int) -> str:
    """Why there is no tile. `images`: how many there are without a class or a row."""
    names = ", ".join(classes)
    if groups:
        return (
            f"no row of {groups} is an image below {folder} with a class ({images} other images "
            f"are there); expected paths relative to {folder}, and a column {CLASS} or folders "
            f"named {names}"
        )
    if not images:
        return f"{folder} holds no image; expected labelled tiles"
    return (
        f"none of the {images} images below {folder} lies in a class folder; expected folders "
        f"named {names}, or --groups with a column {CLASS}"
    )
