"""The index of a folder of class folders: path, class, size and hash of each tile."""

import csv
import io
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.inference.record import printable
from edgelung.tiles.find import FoundFile, class_of, find_files
from edgelung.tiles.reader import FORMATS, TileError, looks_like_image, read_bytes

# Folders with one of these words in their names are parts of a split: each holds all classes.
SUBSET_WORDS = frozenset(
    ["train", "training", "val", "valid", "validation", "test", "testing", "dev"]
)
CLASSES_OPTION = """--set 'classes=["a", "b"]' (audit: --class a --class b)"""


@dataclass(frozen=True, slots=True)
class IndexedTile:
    """One labelled tile: path relative to the data folder, size in pixels, hash of the file."""

    path: str
    label: str
    width: int
    height: int
    sha256: str


def index_tiles(
    data: Path,
    classes: Sequence[str] = (),
    on_tile: Callable[[int], None] = lambda n: None,
    on_error: Callable[[str, str], None] | None = None,
) -> list[IndexedTile]:
    """List every image below `data` in path order, labelled by the folder that contains it.

    Hidden files and folders (`.ipynb_checkpoints`, `._1.jpeg`) are ignored.

    Args:
        data: the folder.
        classes: if given, only folders of these names are classes; a tile's label is the nearest
            one above it, as in `infer`.
        on_tile: called with 1 for each file.
        on_error: if given, files that cannot be read or lie in no class folder are reported to it,
            by path and reason, and left out. A single class and empty ones are accepted then.

    Raises:
        EdgelungError: if it is not clear from the folders what the classes are, if there are fewer
            than two, if one is missing or empty, or if a file cannot be read (without `on_error`:
            training data is corrected, not skipped).
    """
    if not data.is_dir():
        raise EdgelungError(f"{data} is no folder; expected a folder of class folders")
    files = [
        file
        if file.reason or _is_utf8(file.path)
        else replace(file, reason="its name is not UTF-8")
        for file in find_files(data)
        if not _is_hidden(file.path)
        and (file.reason or file.is_image or looks_like_image(file.location))
    ]
    if not files:
        raise EdgelungError(f"{data} holds no image; expected class folders with tiles in them")
    for file in (file for file in files if file.reason):
        if on_error is None:
            raise EdgelungError(f"cannot read {printable(file.location)}: {file.reason}; mend it")
        on_error(printable(file.path), file.reason)
    files = [file for file in files if not file.reason]
    labels = {file.path: label_of(file.path, classes) for file in files}
    loose = [path for path, label in labels.items() if not label]
    if loose and not classes and (on_error is None or len(loose) == len(files)):
        raise EdgelungError(
            f"{data / loose[0]} lies in no class folder; expected "
            f"{data.name}/<class>/<tile>: is it the folder above that you mean?"
        )
    if on_error:
        for path in loose:
            on_error(printable(path), "lies in no class folder")
    files = [file for file in files if labels[file.path]]
    tiles_of = Counter(labels[file.path] for file in files)
    missing = [name for name in classes if name not in tiles_of]
    if missing:
        raise EdgelungError(
            f"no tiles of class {missing[0]} below {data}; found "
            f"{', '.join(sorted(tiles_of)) or 'none of these classes'}"
        )
    if not classes:
        _check_folders(data, files)
        if on_error is None:
            _check_none_is_empty(data, files)
    if len(tiles_of) < 2 and on_error is None:
        raise EdgelungError(
            f"{data} holds one class ({', '.join(tiles_of)}); expected two or more class folders: "
            "is it the folder above that you mean?"
        )

    def index(file: FoundFile) -> IndexedTile | None:
        on_tile(1)
        try:
            width, height, digest = _inspect(file)
        except TileError as error:
            if on_error is None:
                raise EdgelungError(
                    f"cannot read the training tile {file.location}: {error.reason}; "
                    "mend or remove it (`edgelung audit` lists all such)"
                ) from error
            on_error(printable(file.path), error.reason)
            return None
        return IndexedTile(file.path, labels[file.path], width, height, digest)

    with ThreadPoolExecutor() as pool:
        return [tile for tile in pool.map(index, files) if tile is not None]


def label_of(path: str, classes: Sequence[str]) -> str:
    """The class that the folders above a tile name; '' if none does."""
    if not classes:
        return PurePosixPath(path).parent.name
    index = class_of(path, classes)
    return "" if index is None else classes[index]


def _check_folders(data: Path, files: Sequence[FoundFile]) -> None:
    """Raise EdgelungError if it is not clear from the folders what the classes are."""
    folders = {PurePosixPath(file.path).parent for file in files}
    above: dict[PurePosixPath, set[str]] = {}  # folder → the class folders in it
    for folder in folders:
        above.setdefault(folder.parent, set()).add(folder.name)
    ambiguous = min(folders & set(above), default=None)
    if ambiguous is not None:
        inner = min(above[ambiguous])
        raise EdgelungError(
            f"{data / ambiguous} holds tiles and a folder of tiles, {inner}: which of the two is "
            f"the class? Move them into one, or say which are the classes: {CLASSES_OPTION}"
        )
    # train/a, train/b, val/a, val/b hold the same classes twice; a/p1, b/p1 do not.
    if len(above) > 1 and all(_is_subset(folder.name) for folder in above):
        return
    named = Counter(name for names in above.values() for name in names)
    shared = min((name for name, count in named.items() if count > 1), default=None)
    if shared is not None:
        parents = sorted(str(folder) for folder, names in above.items() if shared in names)
        more = ", …" if len(parents) > 3 else ""
        raise EdgelungError(
            f"{data} has folders named {shared} in several places "
            f"({', '.join(parents[:3])}{more}): "
            "which are the classes, those or the ones above? "
            f"Say so: {CLASSES_OPTION}"
        )


def _check_none_is_empty(data: Path, files: Sequence[FoundFile]) -> None:
    """Raise EdgelungError for an empty folder next to class folders: a class without tiles."""
    classes = {data / PurePosixPath(file.path).parent for file in files}
    for folder in sorted({path.parent for path in classes}):
        for entry in sorted(folder.iterdir()):
            other = entry not in classes and not entry.name.startswith(".")
            if other and entry.is_dir() and not any(entry.iterdir()):
                raise EdgelungError(f"{entry} is empty: a class without tiles; fill or remove it")


def _is_subset(name: str) -> bool:
    """True if the name is that of a part of a split: `val`, `Train and Validation Set`."""
    return not SUBSET_WORDS.isdisjoint(re.split(r"[\W_]+", name.lower()))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inspect(file: FoundFile) -> tuple[int, int, str]:
    try:
        data = read_bytes(file.location)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return *image.size, sha256_bytes(data)
    except TileError:
        raise
    except Exception as error:  # Pillow's plugins raise their own exception types
        raise TileError("corrupt", "not an image") from error


def read_groups(path: Path, tiles: Sequence[IndexedTile]) -> list[str]:
    """Read the group of each tile from a CSV with the columns `path` and `group` (or `cluster`).

    Paths are relative to the data folder. If the CSV's paths or the tiles' paths start further up
    (`lung_image_sets/lung_aca/1.jpeg` and `lung_aca/1.jpeg`), their common end is matched, at least
    `<class>/<file>`. Raises EdgelungError for a CSV that cannot be read, has other columns, puts a
    tile into two groups, or names none for a tile.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            rows = csv.DictReader(file)
            fields = rows.fieldnames or []
            column = next((name for name in ("group", "cluster") if name in fields), None)
            if "path" not in fields or column is None:
                raise EdgelungError(
                    f"{path} has the columns {', '.join(fields) or '(none)'}; "
                    "expected path and group (or cluster)"
                )
            groups: dict[str, str] = {}
            for row in rows:
                key = posixpath.normpath(_with_slashes(row["path"] or ""))
                group = (row[column] or "").strip()  # "s1 " and "s1" are one group
                if groups.setdefault(key, group) != group:
                    raise EdgelungError(
                        f"{path} puts {key} into two groups, {groups[key]} and {group}"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EdgelungError(f"cannot read the groups in {path}: {error}") from error
    short: dict[str, list[str]] = {}
    for key in groups:
        short.setdefault(_last_two(key), []).append(key)

    def group_of(path: str) -> str | None:
        if path in groups:
            return groups[path]
        # One of the two paths starts further up.
        keys = [
            key
            for key in short.get(_last_two(path), [])
            if key.endswith(f"/{path}") or path.endswith(f"/{key}")
        ]
        names = {groups[key] for key in keys}
        return names.pop() if len(names) == 1 else None  # ambiguous if several

    group_names = [group_of(tile.path) for tile in tiles]
    without = [tile.path for tile, group in zip(tiles, group_names, strict=True) if not group]
    if without:
        raise EdgelungError(
            f"{path} names no group, or more than one, for {len(without)} of {len(tiles)} tiles, "
            f"{without[0]} for one; add them or leave those tiles out of the folder"
        )
    return [str(group) for group in group_names]


def _with_slashes(path: str) -> str:
    """Replace the backslashes of a Windows path."""
    return path if "/" in path else path.replace("\\", "/")


def _last_two(path: str) -> str:
    return "/".join(PurePosixPath(path).parts[-2:])
