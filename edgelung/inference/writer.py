"""Rows as CSV, JSON Lines or Parquet: `path,status,label,confidence,p_<class>…,error`."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgelung.core.errors import EdgelungError, one_line
from edgelung.inference.record import Record

STANDARD_OUTPUT = Path("-")
DECIMALS = 6  # of a probability in CSV and JSON Lines; Parquet holds the float32 itself


class Sink(Protocol):
    """What takes bytes: a binary file, or standard output."""

    def write(self, data: bytes, /) -> int:
        """Take all of them."""
        ...


class RowWriter(Protocol):
    """Writes the rows of a fixed list of classes into a binary file; what is not known is empty."""

    def __init__(self, file: Sink, classes: Sequence[str]) -> None: ...

    def write(self, records: Iterable[Record]) -> None:
        """Add rows."""
        ...

    def close(self) -> None:
        """Write what belongs at the end; the file itself stays open."""
        ...


def columns(classes: Sequence[str]) -> list[str]:
    """The names of the columns."""
    return ["path", "status", "label", "confidence", *(f"p_{name}" for name in classes), "error"]


def _fields(record: Record, classes: Sequence[str]) -> tuple[str | None, list[float] | None]:
    """Label, and confidence with the probabilities behind it."""
    if record.probabilities is None:
        return None, None
    decided = record.decided
    label = None if decided is None else classes[decided]
    return label, [max(record.probabilities), *record.probabilities]


class CsvRows:
    """RFC 4180 with a header line."""

    begins = b"path,status,label,"

    def __init__(self, file: Sink, classes: Sequence[str]) -> None:
        self._file = file
        self._classes = classes
        self._blanks = [""] * (1 + len(classes))
        self._put([columns(classes)])

    def write(self, records: Iterable[Record]) -> None:
        """See `RowWriter`."""
        lines = []
        for record in records:
            label, numbers = _fields(record, self._classes)
            text = [f"{p:.{DECIMALS}f}" for p in numbers] if numbers else self._blanks
            lines.append([record.path, record.status, label or "", *text, record.error])
        self._put(lines)

    def _put(self, lines: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        self._file.write(text.getvalue().encode())

    def close(self) -> None:
        """See `RowWriter`."""


class JsonRows:
    """One JSON object a line, with the CSV's names; null where the CSV is empty."""

    begins = b'{"path": '

    def __init__(self, file: Sink, classes: Sequence[str]) -> None:
        self._file = file
        self._classes = classes
        self._names = columns(classes)

    def write(self, records: Iterable[Record]) -> None:
        """See `RowWriter`."""
        lines = []
        for record in records:
            label, numbers = _fields(record, self._classes)
            rounded: list[Any] = [None] * (1 + len(self._classes))
            if numbers:
                rounded = [round(p, DECIMALS) for p in numbers]
            row = [record.path, record.status, label, *rounded, record.error or None]
            lines.append(json.dumps(dict(zip(self._names, row, strict=True)), ensure_ascii=False))
        self._file.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """See `RowWriter`."""


class ParquetRows:
    """A Parquet table in row groups, so that memory does not grow with it; needs pyarrow."""

    begins = b"PAR1"
    GROUP = 8_192

    def __init__(self, file: Sink, classes: Sequence[str]) -> None:
        self._arrow, parquet = _arrow()
        self._classes = classes
        text, number = self._arrow.string(), self._arrow.float32()
        kinds = [text, text, text, number, *[number] * len(classes), text]
        self._schema = self._arrow.schema(
            list(zip(columns(classes), kinds, strict=True)), {"made by": "edgelung infer"}
        )
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._waiting: list[list[Any]] = []

    def write(self, records: Iterable[Record]) -> None:
        """See `RowWriter`."""
        for record in records:
            label, numbers = _fields(record, self._classes)
            known: Sequence[Any] = numbers or [None] * (1 + len(self._classes))
            row = [record.path, record.status, label, *known, record.error or None]
            self._waiting.append(row)
        if len(self._waiting) >= self.GROUP:
            self._put()

    def _put(self) -> None:
        if self._waiting:
            arrays = [
                self._arrow.array(values, kind)
                for values, kind in zip(
                    zip(*self._waiting, strict=True), self._schema.types, strict=True
                )
            ]
            self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
            self._waiting = []

    def close(self) -> None:
        """See `RowWriter`."""
        self._put()
        self._writer.close()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EdgelungError(
            f"writing Parquet needs pyarrow ({one_line(error)}); "
            "pip install 'edgelung[parquet]' or choose a name that ends in .csv or .jsonl"
        ) from error
    return pyarrow, pyarrow.parquet


FORMATS: dict[str, type[CsvRows | JsonRows | ParquetRows]] = {
    ".csv": CsvRows,
    ".jsonl": JsonRows,
    ".parquet": ParquetRows,
}


def format_of(out: Path) -> type[CsvRows | JsonRows | ParquetRows]:
    """The writer for a name, checked before hours of work: its library is there, nothing of the
    user's own is in its place. Standard output (`-`) gets CSV.
    """
    if out == STANDARD_OUTPUT:
        return CsvRows
    chosen = FORMATS.get(out.suffix.lower())
    if chosen is None:
        *names, last = FORMATS
        raise EdgelungError(
            f"cannot write {out.name}: expected a name that ends in {', '.join(names)} or {last}, "
            "or - for standard output"
        )
    if chosen is ParquetRows:
        _arrow()
    if out.is_dir():
        raise EdgelungError(f"{out} is a folder; expected the name of a file to write")
    if not out.absolute().parent.is_dir():
        raise EdgelungError(f"cannot write {out}: {out.parent} is no folder")
    if _is_something_else(out, chosen.begins):
        raise EdgelungError(
            f"{out} exists and is no list of predictions; it was left alone: choose another name"
        )
    return chosen


def _is_something_else(path: Path, begins: bytes) -> bool:
    """Whether the name is taken by a file that no earlier run can have written."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        if file.read(len(begins)) != begins:
            return True
    if begins != ParquetRows.begins:
        return False
    try:
        made_by = (_arrow()[1].read_schema(path).metadata or {}).get(b"made by")
    except Exception:  # damaged; whose it was cannot be told
        return True
    return bool(made_by != b"edgelung infer")
