"""Rows as CSV: `path,status,label,confidence,p_<class>…,error`."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from edgelung.errors import EdgelungError
from edgelung.files import atomic_write
from edgelung.folder.pipeline import Row

HEAD = b"path,status,label,"


class _CsvWriter(Protocol):
    def writerow(self, row: Sequence[Any], /) -> Any: ...


class RowWriter:
    """Writes rows for a fixed list of classes."""

    def __init__(self, writer: _CsvWriter, classes: Sequence[str]) -> None:
        self._writer = writer
        self._classes = classes
        names = [f"p_{name}" for name in classes]
        writer.writerow(["path", "status", "label", "confidence", *names, "error"])

    def write(self, row: Row) -> None:
        """Add one row; what was not predicted is empty."""
        path = printable(row.file.path)
        if row.probabilities is None:
            blanks = [""] * (2 + len(self._classes))
            self._writer.writerow([path, row.status, *blanks, row.error])
            return
        best = int(row.probabilities.argmax())
        numbers = [f"{p:.6f}" for p in row.probabilities]
        self._writer.writerow(
            [path, row.status, self._classes[best], numbers[best], *numbers, row.error]
        )


@contextmanager
def csv_rows(path: Path, classes: Sequence[str]) -> Iterator[RowWriter]:
    """Open `path` for rows; it takes its final name only when every row is in it."""
    if path.suffix.lower() != ".csv":
        raise EdgelungError(f"cannot write {path.name}: expected a name that ends in .csv")
    if path.is_dir():
        raise EdgelungError(f"{path} is a folder; expected the name of a CSV file to write")
    if _is_something_else(path):
        raise EdgelungError(
            f"{path} exists and is no list of predictions; it was left alone: choose another name"
        )
    with atomic_write(path, "w", encoding="utf-8", newline="") as file:
        yield RowWriter(csv.writer(file), classes)


def _is_something_else(path: Path) -> bool:
    """Whether the name is taken by a file that no earlier run can have written."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        return file.read(len(HEAD)) != HEAD


def printable(path: str) -> str:
    r"""The path as valid UTF-8, different for different names.

    Bytes that are not UTF-8 are written \xNN, and a backslash of the name's own is doubled.
    """
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
