"""Predictions: one row per file, as CSV, JSON Lines or Parquet.

    path,status,label,confidence,p_<class>…,ood,set,stage,error

`FORMATS` holds one writer and one reader per format. A missing value is an empty cell in CSV and
null in the other two formats. CSV and JSON Lines hold probabilities with `DECIMALS` decimals,
Parquet holds the float32 values. `set` holds names of classes with a semicolon between them. Files
of an older edgelung without the columns `ood`, `set` and `stage` are read too.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from edgelung.artifacts.prediction_rows import (
    COLUMNS_AFTER,
    COLUMNS_BEFORE,
    DECIMALS,
    SEPARATOR,
    ByteWriter,
    Cell,
    Prediction,
    Predictions,
    VisibleWriter,
    cells_of,
    columns,
    probability_column,
    probability_columns,
    set_cell,
    visible_prediction,
)
from edgelung.core.csv_cells import raw_cell, safe_cell
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.folder import open_for_reading
from edgelung.core.typed_json import Json, parse

__all__ = [
    "CSV",
    "DECIMALS",
    "FORMATS",
    "JSON_LINES",
    "MADE_BY",
    "MAX_ROWS_BYTES",
    "PARQUET",
    "ROW_GROUP",
    "ByteWriter",
    "Prediction",
    "Predictions",
    "PredictionsFormat",
    "PredictionsWriter",
    "VisibleWriter",
    "columns",
    "decode_predictions",
    "format_of",
    "holds_predictions",
    "is_predictions",
    "probability_column",
    "probability_columns",
    "read_predictions",
    "visible_prediction",
]

MAX_ROWS_BYTES = 1 << 31  # of a file that is held in memory: about 20 million rows
ROW_GROUP = 8_192  # rows per Parquet row group; bounds the memory of the writer
MADE_BY = {"made by": "edgelung infer"}  # Parquet metadata that marks our files
_AFTER = (COLUMNS_AFTER, ("ood", "set", "error"), ("error",))  # newest first


class PredictionsWriter(Protocol):
    """Writes rows in one format."""

    def write(self, rows: Iterable[Prediction]) -> None:
        """Add rows."""
        ...

    def close(self) -> None:
        """Write the end of the format. Does not close the file."""
        ...


class CsvWriter:
    """RFC 4180 with a header line; text that a spreadsheet would compute is made safe."""

    def __init__(self, file: ByteWriter, classes: Sequence[str]) -> None:
        self._file = file
        self._no_numbers = [""] * (1 + len(classes))
        self._write_lines([[safe_cell(name) for name in columns(classes)]])

    def write(self, rows: Iterable[Prediction]) -> None:
        """See `PredictionsWriter`."""
        lines = []
        for row in rows:
            numbers = self._no_numbers
            if row.confidence is not None and row.probabilities is not None:
                numbers = [f"{p:.{DECIMALS}f}" for p in (row.confidence, *row.probabilities)]
            texts = (row.path, row.label or "", set_cell(row), row.error)
            path, label, names, error = map(safe_cell, texts)
            ood = "" if row.ood is None else f"{row.ood:.{DECIMALS}f}"
            stage = "" if row.stage is None else str(row.stage)
            lines.append([path, row.status, label, *numbers, ood, names, stage, error])
        self._write_lines(lines)

    def close(self) -> None:
        """See `PredictionsWriter`."""

    def _write_lines(self, lines: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        self._file.write(text.getvalue().encode())


class JsonLinesWriter:
    """One JSON object per line."""

    def __init__(self, file: ByteWriter, classes: Sequence[str]) -> None:
        self._file = file
        self._classes = classes
        self._names = columns(classes)

    def write(self, rows: Iterable[Prediction]) -> None:
        """See `PredictionsWriter`."""
        lines = []
        for row in rows:
            cells = [
                round(cell, DECIMALS) if isinstance(cell, float) else cell
                for cell in cells_of(row, self._classes)
            ]
            lines.append(json.dumps(dict(zip(self._names, cells, strict=True)), ensure_ascii=False))
        self._file.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """See `PredictionsWriter`."""


class ParquetWriter:
    """A Parquet table, written in row groups. Needs pyarrow."""

    def __init__(self, file: ByteWriter, classes: Sequence[str]) -> None:
        self._arrow, parquet = _import_pyarrow()
        self._classes = classes
        text, number = self._arrow.string(), self._arrow.float32()
        integer = self._arrow.int8()
        numbers = [number] * (1 + len(classes))
        types = [text, text, text, *numbers, number, text, integer, text]
        names = columns(classes)
        self._schema = self._arrow.schema(list(zip(names, types, strict=True)), MADE_BY)
        self._writer = parquet.ParquetWriter(file, self._schema)
        self._buffered: list[list[Cell]] = []

    def write(self, rows: Iterable[Prediction]) -> None:
        """See `PredictionsWriter`."""
        self._buffered.extend(cells_of(row, self._classes) for row in rows)
        if len(self._buffered) >= ROW_GROUP:
            self._write_group()

    def close(self) -> None:
        """See `PredictionsWriter`."""
        self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        if not self._buffered:
            return
        arrays = [
            self._arrow.array(values, kind)
            for values, kind in zip(
                zip(*self._buffered, strict=True), self._schema.types, strict=True
            )
        ]
        self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
        self._buffered = []


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise EdgelungError(
            f"Parquet needs pyarrow ({one_line(error)}); "
            "pip install 'edgelung[parquet]' or choose a name that ends in .csv or .jsonl"
        ) from error
    return pyarrow, pyarrow.parquet


def _read_csv(file: IO[bytes]) -> Predictions:
    with io.TextIOWrapper(file, newline="", encoding="utf-8") as text:
        lines = csv.reader(text)
        names = [raw_cell(name) for name in next(lines, [])]
        classes = _classes_from(names)
        width, after = len(names), _after(names)
        rows = []
        for cells in lines:
            if len(cells) != width:
                raise ValueError(f"line {lines.line_num} has {len(cells)} cells, expected {width}")
            end = width - len(after)
            numbers = [float(cell) if cell else None for cell in cells[3:end]]
            last = dict(zip(after, map(raw_cell, cells[end:]), strict=True))
            score = float(last["ood"]) if last.get("ood") else None
            stage = int(last["stage"]) if last.get("stage") else None
            ending = [score, last.get("set"), stage, last["error"]]
            rows.append(_prediction([*map(raw_cell, cells[:3]), *numbers, *ending], classes))
    return Predictions(classes, tuple(rows))


def _read_json_lines(file: IO[bytes]) -> Predictions:
    classes: tuple[str, ...] = ()
    names: list[str] = []
    rows = []
    for number, line in enumerate(file, 1):
        content = parse(line)
        if not isinstance(content, dict):
            raise ValueError(f"line {number} is not a JSON object")
        if number == 1:
            names = list(content)
            classes = _classes_from(names)
        if list(content) != names:
            raise ValueError(f"line {number} has other columns than line 1")
        rows.append(_prediction(_with_all_columns(content.values(), names), classes))
    return Predictions(classes, tuple(rows))


def _read_parquet(file: IO[bytes]) -> Predictions:
    arrow, parquet = _import_pyarrow()
    try:
        table = parquet.read_table(file)
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from error
    classes = _classes_from(table.column_names)
    cells = zip(*(column.to_pylist() for column in table.columns), strict=True)
    rows = (_with_all_columns(row, table.column_names) for row in cells)
    return Predictions(classes, tuple(_prediction(row, classes) for row in rows))


def _classes_from(names: Sequence[str]) -> tuple[str, ...]:
    """Derive the classes from the column names. Raises ValueError for other columns."""
    after = _after(names)
    probabilities = names[len(COLUMNS_BEFORE) : len(names) - len(after)]
    classes = tuple(name.removeprefix(probability_column("")) for name in probabilities)
    expected = [*COLUMNS_BEFORE, *probability_columns(classes), *after]
    if not classes or list(names) != expected:
        expected = [*COLUMNS_BEFORE, probability_column("<class>…"), *COLUMNS_AFTER]
        raise ValueError(
            f"its columns are {','.join(names) or 'missing'}, expected {','.join(expected)}"
        )
    return classes


def _after(names: Sequence[str]) -> Sequence[str]:
    """The columns behind the probabilities: those of this version or of an older one."""
    of_file = (after for after in _AFTER if tuple(names[-len(after) :]) == after)
    return next(of_file, COLUMNS_AFTER)


def _with_all_columns(cells: Iterable[Json], names: Sequence[str]) -> list[Json]:
    """The cells in the order of `columns`; None for the columns that an older file lacks."""
    by_name = dict(zip(names, cells, strict=True))
    after = [by_name.get(name) for name in COLUMNS_AFTER]
    return [*list(by_name.values())[: len(names) - len(_after(names))], *after]


def _prediction(cells: Sequence[Json], classes: Sequence[str]) -> Prediction:
    """Convert cells, in the order of `columns`, to a row. Raises ValueError for a wrong cell."""
    path, status, label, *numbers, ood, names, stage, error = cells
    if not (isinstance(path, str) and isinstance(status, str) and isinstance(error, str | None)):
        raise ValueError("a row has no path, no status, or an error that is not text")
    if label and label not in classes:
        raise ValueError(f"the label of {path} is {label}, which is not a class of the file")
    if numbers.count(None) == len(numbers):
        return Prediction(path, status, label or None, error=error or "")
    if not isinstance(ood, float | None) or not isinstance(names, str | None):
        raise ValueError(f"the score of {path} is no number, or its set is not text")
    if stage not in (None, 1, 2):
        raise ValueError(f"the stage of {path} is {stage}; expected 1 or 2")
    if not all(isinstance(number, float) and 0 <= number <= 1 for number in numbers):
        raise ValueError(f"the probabilities of {path} are not all in 0…1")
    return Prediction(
        path,
        status,
        label or None,
        numbers[0],
        tuple(numbers[1:]),
        error or "",
        ood,
        _set_from(names, classes) if names else None,
        stage,
    )


def _set_from(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes in a cell of `set`, which are in the order of `classes`."""
    found, rest = [], text + SEPARATOR
    for name in classes:
        if rest.startswith(name + SEPARATOR):
            found.append(name)
            rest = rest[len(name) + 1 :]
    if rest:
        raise ValueError(f"the set {text!r} is not made of the file's classes")
    return tuple(found)


@dataclass(frozen=True)
class PredictionsFormat:
    """A file format of predictions.

    Attributes:
        suffix: the suffix of file names.
        first_bytes: the bytes at the start of every file.
        appendable: True if rows can be added to a file while other programs read it.
        writer: opens a writer for a binary file and the classes.
        read: reads an open binary file; raises ValueError for content that is not predictions.
    """

    suffix: str
    first_bytes: bytes
    appendable: bool
    writer: Callable[[ByteWriter, Sequence[str]], PredictionsWriter]
    read: Callable[[IO[bytes]], Predictions]


CSV = PredictionsFormat(".csv", b"path,status,label,", True, CsvWriter, _read_csv)
JSON_LINES = PredictionsFormat(".jsonl", b'{"path": ', True, JsonLinesWriter, _read_json_lines)
PARQUET = PredictionsFormat(".parquet", b"PAR1", False, ParquetWriter, _read_parquet)
FORMATS = {kind.suffix: kind for kind in (CSV, JSON_LINES, PARQUET)}


def format_of(path: Path) -> PredictionsFormat:
    """Choose the format by the suffix of the file name.

    Raises EdgelungError for another suffix, and for Parquet if pyarrow is not installed.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        *names, last = FORMATS
        raise EdgelungError(
            f"{path.name} is no name for predictions: expected one that ends in "
            f"{', '.join(names)} or {last}"
        )
    if kind is PARQUET:
        _import_pyarrow()
    return kind


def is_predictions(path: Path) -> bool:
    """True if the first bytes, or the Parquet metadata, are those of `edgelung infer`."""
    with os.fdopen(open_for_reading(path), "rb") as file:
        return holds_predictions(file, format_of(path))


def holds_predictions(file: IO[bytes], kind: PredictionsFormat) -> bool:
    """As `is_predictions`, for an open file of a format."""
    if file.read(len(kind.first_bytes)) != kind.first_bytes:
        return False
    if kind is not PARQUET:
        return True
    try:
        metadata = _import_pyarrow()[1].read_schema(file).metadata or {}
    except Exception:  # damaged: its writer is unknown
        return False
    return all(metadata.get(key.encode()) == text.encode() for key, text in MADE_BY.items())


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read the rows that `edgelung infer` wrote: CSV, JSON Lines or Parquet, by the file's name.

    Raises EdgelungError for a file that cannot be read or does not hold predictions.
    """
    path = Path(path)
    kind = format_of(path)
    try:
        with path.open("rb") as file:
            return _read(kind, path, file)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror or one_line(error)}") from error


def decode_predictions(path: Path, data: bytes) -> Predictions:
    """As `read_predictions`, of bytes that were read before; `path` names the format."""
    return _read(format_of(path), path, io.BytesIO(data))


def _read(kind: PredictionsFormat, path: Path, file: IO[bytes]) -> Predictions:
    try:
        return kind.read(file)
    except (ValueError, csv.Error) as error:
        raise EdgelungError(
            f"{path} holds no predictions: {one_line(error)}; expected a file that "
            "`edgelung infer` wrote"
        ) from error
