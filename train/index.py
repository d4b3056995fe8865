"""The tiles of a folder of class folders: path, class, size, hash."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from edgelung.core.class_names import check_class_names, composed
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.core.progress import SILENT, Advance
from edgelung.core.workers import Workers
from edgelung.tiles.find import LEADS_OUT, LEFTOVER_FOLDERS, FoundFile, class_of, find_files
from edgelung.tiles.groups import NO_GROUP, check_groups
from edgelung.tiles.lists import is_utf8, read_rows
from edgelung.tiles.names import find, lookup, plain_name, printable
from edgelung.tiles.reader import TileError, image_size, looks_like_image, read_found
from edgelung.tiles.status import Status

# Folders with one of these words in their names may hold the same classes each.
SUBSET_WORDS = frozenset(
    ["train", "training", "val", "valid", "validation", "test", "testing", "dev"]
)
SAY_CLASSES = """--set 'classes=["a", "b"]' (audit: --class a --class b)"""


@dataclass(frozen=True, slots=True)
class IndexedTile:
    """One labelled tile; `path` relative to the data folder, size in pixels."""

    path: str
    label: str
    width: int
    height: int
    sha256: str


def index_tiles(
    data: Path,
    classes: Sequence[str] = (),
    advance: Advance = SILENT,
    on_error: Callable[[str, str], None] | None = None,
    *,
    follow_links: bool = False,
) -> list[IndexedTile]:
    """Index every image below `data`, labelled by the folder it lies in, in path order.

    Hidden files and folders (`.ipynb_checkpoints`, `._1.jpeg`) and leftovers of operating systems
    are skipped. With `classes`, only folders of those names give a label, the nearest above a
    tile, as `infer` reads it.

    Args:
        data: folder of class folders.
        classes: names of the class folders; none: every folder that holds tiles is a class.
        advance: the progress bar of the files.
        on_error: called with path and reason of a file that cannot be read or lies in no class
            folder, which is then left out; a single class and empty ones are accepted then.
        follow_links: follow links that lead out of `data`; else they are files that cannot be read.

    Raises:
        EdgelungError: the folders do not say clearly what the classes are, a class is missing or
            empty, there are fewer than two, or (without `on_error`) a file cannot be read:
            training data is repaired, not skipped.
    """
    if not data.is_dir():
        raise EdgelungError(f"{data} is no folder; expected a folder of class folders")
    files = _readable(_find_images(data, follow_links), on_error)
    labels = {file.path: label_of(file.path, classes) for file in files}
    files = _labelled(data, files, labels, classes, on_error)
    _check_classes(data, files, labels, classes, complete=on_error is None)

    advance.set_total(len(files))

    def index(file: FoundFile) -> IndexedTile | None:
        advance(1)
        try:
            data_bytes = read_found(file)
            width, height = image_size(data_bytes)
        except TileError as error:
            if error.status == Status.SKIPPED:
                return None
            if on_error is None:
                raise EdgelungError(
                    f"cannot read the training tile {file.location}: {error.reason}; "
                    "repair or remove it (`edgelung audit` lists all such files)"
                ) from error
            on_error(printable(file.path), error.reason)
            return None
        label = labels[file.path]
        return IndexedTile(file.path, label, width, height, sha256_bytes(data_bytes))

    with Workers() as pool:
        return [tile for tile in pool.map(index, files) if tile is not None]


def _find_images(data: Path, follow_links: bool) -> list[FoundFile]:
    files = [
        replace(file, reason=reason) if (reason := _reason_against(file)) else file
        for file in find_files(data, follow_links=follow_links)
        if not _is_hidden(file.path)
        and not file.leftover_of
        and (file.reason or file.leads_out or file.is_image or looks_like_image(file))
    ]
    if not files:
        raise EdgelungError(f"{data} holds no image; expected class folders with tiles in them")
    return files


def _reason_against(file: FoundFile) -> str:
    """Why a file is not to be read; '' if nothing is known against it."""
    if file.reason or not file.leads_out:
        return file.reason or ("" if _is_utf8(file.path) else "its name is not UTF-8")
    return LEADS_OUT


def _readable(
    files: Sequence[FoundFile], on_error: Callable[[str, str], None] | None
) -> list[FoundFile]:
    """Those files that could be listed."""
    for file in (file for file in files if file.reason):
        if on_error is None:
            fault = f"cannot read {printable(file.location)}: {file.reason}"
            raise EdgelungError(fault if file.leads_out else f"{fault}; repair it or remove it")
        on_error(printable(file.path), file.reason)
    readable = [file for file in files if not file.reason]
    if not readable and any(file.leads_out for file in files):
        raise EdgelungError(
            "all that it holds are links that lead out of the folder; --follow-links follows them"
        )
    return readable


def _labelled(
    data: Path,
    files: Sequence[FoundFile],
    labels: dict[str, str],
    classes: Sequence[str],
    on_error: Callable[[str, str], None] | None,
) -> list[FoundFile]:
    """Those files that lie in a class folder."""
    loose = [path for path, label in labels.items() if not label]
    if loose and not classes and (on_error is None or len(loose) == len(files)):
        raise EdgelungError(
            f"{data / loose[0]} lies in no class folder; expected "
            f"{data.name}/<class>/<tile>: is it the folder above that you mean?"
        )
    if on_error:
        for path in loose:
            on_error(printable(path), "lies in no class folder")
    return [file for file in files if labels[file.path]]


def _check_classes(
    data: Path,
    files: Sequence[FoundFile],
    labels: dict[str, str],
    classes: Sequence[str],
    *,
    complete: bool,
) -> None:
    """Raise EdgelungError where the classes are not clear; `complete`: or where one is empty."""
    found = {labels[file.path] for file in files}
    if missing := [name for name in classes if name not in found]:
        folders = sorted({entry.name for entry in data.rglob("*") if entry.is_dir()})
        there = ", ".join(folders[:20]) + (", …" if len(folders) > 20 else "")
        raise EdgelungError(
            f"no tiles of class {missing[0]} below {data}; the folders there are {there or 'none'}"
        )
    if complete:
        try:
            check_class_names([composed(name) for name in sorted(found)])
        except ValueError as error:
            raise EdgelungError(f"{data}: {error}; rename the class folder") from error
    if not classes:
        _check_spelling(data, found)
        _check_folders(data, files)
        if complete:
            _check_none_is_empty(data, files)
    if len(found) < 2 and complete:
        raise EdgelungError(
            f"{data} holds one class ({', '.join(found)}); expected two or more class folders: "
            "is it the folder above that you mean?"
        )


def _check_spelling(data: Path, classes: Collection[str]) -> None:
    """Raise EdgelungError for two class folders that mean one name."""
    spelled: dict[str, str] = {}
    for name in sorted(classes):
        key = unicodedata.normalize("NFC", name).casefold().strip()
        other = spelled.setdefault(key, name)
        if other != name:
            form = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
            how = "only in how accents are stored (NFC, NFD)" if form else "only in case or blanks"
            raise EdgelungError(
                f"{data} has the class folders {other!a} and {name!a}, which differ {how}"
                "; move their tiles into one, or rename one"
            )


def label_of(path: str, classes: Sequence[str]) -> str:
    """The class that the folders above a tile name; '' for none."""
    if not classes:
        return PurePosixPath(path).parent.name
    place = class_of(path, classes)
    return "" if place is None else classes[place]


def _check_folders(data: Path, files: Sequence[FoundFile]) -> None:
    """Raise EdgelungError where the folders do not say plainly what the classes are."""
    folders = {PurePosixPath(file.path).parent for file in files}
    above: dict[PurePosixPath, set[str]] = {}  # folder → the class folders in it
    for folder in folders:
        above.setdefault(folder.parent, set()).add(folder.name)
    both = min(folders & set(above), default=None)
    if both is not None:
        inner = min(above[both])
        raise EdgelungError(
            f"{data / both} holds tiles and a folder of tiles, {inner}: which of the two is the "
            f"class? Move them into one, or say which are the classes: {SAY_CLASSES}"
        )
    # train/a, train/b, val/a, val/b is one set of classes twice; a/p1, b/p1 is not.
    if len(above) > 1 and all(_is_subset(folder.name) for folder in above):
        return
    named = Counter(name for names in above.values() for name in names)
    shared = min((name for name, count in named.items() if count > 1), default=None)
    if shared is not None:
        places = sorted(str(folder) for folder, names in above.items() if shared in names)
        raise EdgelungError(
            f"{data} has folders named {shared} in several places ({', '.join(places[:3])}"
            f"{', …' if len(places) > 3 else ''}): which are the classes, those or the ones above? "
            f"Say so: {SAY_CLASSES}"
        )


def _check_none_is_empty(data: Path, files: Sequence[FoundFile]) -> None:
    """Raise EdgelungError for an empty folder beside class folders: a class without tiles."""
    classes = {data / PurePosixPath(file.path).parent for file in files}
    for folder in sorted({place.parent for place in classes}):
        for entry in sorted(folder.iterdir()):
            made_by_us = entry in classes or entry.name in LEFTOVER_FOLDERS
            other = not made_by_us and not entry.name.startswith(".")
            if other and entry.is_dir() and not any(entry.iterdir()):
                raise EdgelungError(f"{entry} is empty: a class without tiles; fill or remove it")


def _is_subset(name: str) -> bool:
    """Whether a folder is one part of a split by its name: `val`, `Train and Validation Set`."""
    return not SUBSET_WORDS.isdisjoint(re.split(r"[\W_]+", name.lower()))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_groups(path: Path, tiles: Sequence[IndexedTile]) -> list[str]:
    """Read the group of each tile from a CSV with a path and a `group` or `cluster`.

    Paths are as in the data folder. Where one of them begins further up
    (`lung_image_sets/lung_aca/1.jpeg`, `lung_aca/1.jpeg`), `<class>/<file>` must be the same. See
    `edgelung.tiles.lists` for the forms that a list may have.

    Raises:
        EdgelungError: a tile has no group (`NO_GROUP` counts as none) or two, or two groups may be
            one that is written in two ways.
    """
    groups: dict[str, str] = {}
    not_utf8 = False
    for row in read_rows(path, ("group|cluster",)):
        group = (row.get("group") or row.get("cluster") or "").strip()  # "s1 " and "s1" are one
        if not is_utf8(group):
            raise EdgelungError(f"{path} is not UTF-8 (group {printable(group)}); save it as UTF-8")
        if group.lower() in NO_GROUP:
            group = ""
        key = plain_name(row["path"])
        not_utf8 = not_utf8 or not is_utf8(key)
        if groups.setdefault(key, group) != group:
            first, second = (name or "(none)" for name in (groups[key], group))
            raise EdgelungError(
                f"{path} puts {printable(key)} into two groups, {first} and {second}"
            )
    table = lookup(groups)

    def group_of(tile: IndexedTile) -> str | None:
        names = {groups[name] for name in find(tile.path, table)}
        return names.pop() if len(names) == 1 else None  # two: no answer

    found = [group_of(tile) for tile in tiles]
    without = [tile.path for tile, group in zip(tiles, found, strict=True) if not group]
    if without:
        remedy = "add them or leave those tiles out of the folder"
        raise EdgelungError(
            f"{path} names no group, or more than one, for {len(without)} of {len(tiles)} tiles, "
            f"{without[0]} for one; "
            + ("the list is not UTF-8: save it as UTF-8" if not_utf8 else remedy)
        )
    names = [str(group) for group in found]
    check_groups(path, names)  # of two that are one, a tile could be in train and test
    return names
