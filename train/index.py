"""The tiles of a folder of class folders: path, class, size, hash."""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from edgelung.errors import EdgelungError
from edgelung.files import sha256_bytes
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.reader import FORMATS, TileError, read_bytes


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
    on_tile: Callable[[int], None] = lambda n: None,
    on_error: Callable[[str, str], None] | None = None,
) -> list[IndexedTile]:
    """Every image below `data`, labelled by the folder it lies in, in path order.

    `classes` restricts to those folder names. Raises EdgelungError where there are fewer than two
    classes, where a class is missing, or where a file cannot be read: training data is mended, not
    skipped over. With `on_error` such a file is told to it, by path and reason, and left out.
    """
    if not data.is_dir():
        raise EdgelungError(f"{data} is no folder; expected a folder of class folders")
    files = [file for file in find_files(data) if file.is_image or file.reason]
    if not files:
        raise EdgelungError(f"{data} holds no image; expected class folders with tiles in them")
    labels = {file.path: PurePosixPath(file.path).parent.name for file in files}
    loose = [path for path, label in labels.items() if not label]
    if loose:
        raise EdgelungError(
            f"{data / loose[0]} lies in no class folder; expected "
            f"{data.name}/<class>/<tile>: is it the folder above that you mean?"
        )
    found = Counter(labels.values())
    missing = [name for name in classes if name not in found]
    if missing:
        raise EdgelungError(
            f"no tiles of class {missing[0]} below {data}; found {', '.join(sorted(found))}"
        )
    wanted = set(classes) or set(found)
    if len(wanted) < 2:
        raise EdgelungError(
            f"{data} holds one class ({', '.join(wanted)}); expected two or more class folders: "
            "is it the folder above that you mean?"
        )
    files = [file for file in files if labels[file.path] in wanted]

    def index(file: FoundFile) -> IndexedTile | None:
        on_tile(1)
        try:
            width, height, digest = _inspect(file)
        except TileError as error:
            if on_error is None:
                raise EdgelungError(
                    f"cannot read the training tile {file.location}: {error.reason}; "
                    "mend or remove it"
                ) from error
            on_error(file.path, error.reason)
            return None
        return IndexedTile(file.path, labels[file.path], width, height, digest)

    with ThreadPoolExecutor() as pool:
        return [tile for tile in pool.map(index, files) if tile is not None]


def _inspect(file: FoundFile) -> tuple[int, int, str]:
    try:
        if file.reason:
            raise TileError("unreadable", file.reason)
        data = read_bytes(file.location)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return *image.size, sha256_bytes(data)
    except TileError:
        raise
    except Exception as error:  # Pillow's plugins raise types of their own
        raise TileError("corrupt", "not an image") from error


def read_groups(path: Path, tiles: Sequence[IndexedTile]) -> list[str]:
    """The group of each tile from a CSV `path,…,cluster` (or `group`), paths as in the data folder.

    Where DATA nests the class folders deeper than the CSV does, `<class>/<file>` is matched.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel puts a mark in front
            rows = csv.DictReader(file)
            fields = rows.fieldnames or []
            column = next((name for name in ("group", "cluster") if name in fields), None)
            if "path" not in fields or column is None:
                raise EdgelungError(
                    f"{path} has the columns {', '.join(fields) or '(none)'}; "
                    "expected path and group (or cluster)"
                )
            groups = {posixpath.normpath(row["path"] or ""): row[column] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EdgelungError(f"cannot read the groups in {path}: {error}") from error
    short: dict[str, str] = {}
    for key, group in groups.items():
        if short.setdefault(_last_two(key), group) != group:
            short[_last_two(key)] = ""  # two files of that name in two groups: no answer
    found = [groups.get(tile.path) or short.get(_last_two(tile.path)) for tile in tiles]
    without = [tile.path for tile, group in zip(tiles, found, strict=True) if not group]
    if without:
        raise EdgelungError(
            f"{path} names no group, or more than one, for {len(without)} of {len(tiles)} tiles, "
            f"{without[0]} for one; add them or leave those tiles out of the folder"
        )
    return [str(group) for group in found]


def _last_two(path: str) -> str:
    return "/".join(PurePosixPath(path).parts[-2:])
