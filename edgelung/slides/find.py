"""Which slides a command line names, and what the folders of their results are called."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgelung.core.errors import EdgelungError
from edgelung.core.files import OWN_SUFFIXES
from edgelung.report.slide_index import INDEX_PAGE
from edgelung.tiles.find import SLIDE_SUFFIXES

SUFFIXES = SLIDE_SUFFIXES | {".tif", ".tiff", ".btf", ".tf8"}
RUN_TABLE = "slides.csv"
OVERVIEWS = (INDEX_PAGE, RUN_TABLE)  # of all slides, beside the folders of their results
MOST_NAME = 235  # bytes; the journal's name is longer, and a file's name may have 255
_LONG_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.btf")


def find_slides(paths: Sequence[Path]) -> Iterator[Path]:
    """The named slides, and those in the named folders (not below), in the order of the names.

    A folder without a slide's file is taken for the folder of one DICOM slide.

    Raises EdgelungError if a folder cannot be listed.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise EdgelungError(f"cannot list {path}: {error.strerror}") from error
        inside = [
            path / name
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES and (path / name).is_file()
        ]
        yield from inside or [path]


def result_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Path → name of its results: the file's name without its suffix.

    Raises EdgelungError if two slides have the same name, or one has none that results can have.
    """
    names: dict[str, Path] = {}
    for path in paths:
        name = _stem(path)
        if not name or name in (".", ".."):
            raise EdgelungError(f"{str(path)!r} has no name; expected the file of a slide")
        if name.lower() in OVERVIEWS or name.lower().endswith(OWN_SUFFIXES):
            raise EdgelungError(
                f"{path}: results {name} would be in the way of edgelung's own files; rename the "
                "slide"
            )
        if len(os.fsencode(name)) > MOST_NAME:
            raise EdgelungError(
                f"the name of {path} is longer than {MOST_NAME} bytes, too long for its results; "
                "rename the slide"
            )
        if name in names:
            raise EdgelungError(
                f"{names[name]} and {path} would both write results {name}; give each its own --out"
            )
        names[name] = path
    return {path: name for name, path in names.items()}


def _stem(path: Path) -> str:
    name = path.absolute().name
    for suffix in _LONG_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.absolute().stem if os.path.splitext(name)[1].lower() in SUFFIXES else name
