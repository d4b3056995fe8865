"""The tiles of a slide with their predictions: one row per tile, columns as arrays.

    x,y,width,height,p_<class>…,label,confidence,ood,stage,status,error

`write_tiles` writes them as Parquet or CSV, `read_tiles` reads both. `write_wsinfer` writes the CSV
of WSInfer 0.6 for scripts that read it. Positions are pixels of level 0.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.predictions import DECIMALS, ROW_GROUP, probability_column
from edgelung.core.csv_cells import raw_cell, safe_cell
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.extras import load_extra
from edgelung.core.files import atomic_write
from edgelung.tiles.status import Status

MADE_BY = {"made by": "edgelung slide"}  # Parquet metadata that marks our files
SCHEMA_VERSION = 1
_POSITION = ("x", "y", "width", "height")
_REST = ("label", "confidence", "ood", "stage", "status", "error")
_WSINFER_POSITION = ("minx", "miny", "width", "height")
REMEDY = "expected the tiles that `edgelung slide` wrote"


@dataclass(frozen=True)
class SlideTiles:
    """All tiles of a slide in the order of the grid, row by row.

    Attributes:
        classes: names of the model's classes.
        x, y: upper left corner, int64 (N,); pixels of level 0, from the bounds of the slide.
        side: side of every tile, pixels of level 0.
        step: from a tile's corner to its neighbour's, pixels of level 0 (less than `side` where
            tiles overlap).
        probabilities: float32 (N, C); NaN where a tile has none.
        statuses: one status per tile.
        errors: the reasons; '' for 'ok'.
        ood: how far each tile is from the training tiles, float32 (N,); NaN where there is no
            score. None: the bundle has none.
        stage: 1 for a tile that left the model at its early exit, 2 for one that went through all
            of it, 0 for one that was not predicted, uint8 (N,). None: the model has no early exit.
    """

    classes: Sequence[str]
    x: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    side: int
    step: float
    probabilities: npt.NDArray[np.float32]
    statuses: Sequence[str]
    errors: Sequence[str]
    ood: npt.NDArray[np.float32] | None = None
    stage: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Which tiles have probabilities (N,)."""
        return np.asarray(np.isfinite(self.probabilities).all(axis=1), bool)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Index of the class (N,); -1 where the tile has no label."""
        return self._most_probable([status == Status.OK for status in self.statuses])

    @property
    def shown_labels(self) -> npt.NDArray[np.int64]:
        """As `labels`, and for unknown tissue too the most probable class, for maps."""
        shown = (Status.OK, Status.UNKNOWN)
        return self._most_probable([status in shown for status in self.statuses])

    @property
    def unknown(self) -> npt.NDArray[np.bool_]:
        """Which tiles are unlike the training tiles (N,)."""
        return np.asarray([status == Status.UNKNOWN for status in self.statuses], bool)

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """`ood`, all NaN if there is none."""
        return np.full(len(self), np.nan, np.float32) if self.ood is None else self.ood

    @property
    def stages(self) -> npt.NDArray[np.uint8]:
        """`stage`, all 0 if there is no early exit."""
        return np.zeros(len(self), np.uint8) if self.stage is None else self.stage

    def _most_probable(self, where: Sequence[bool]) -> npt.NDArray[np.int64]:
        """Index of the most probable class (N,); -1 where `where` is False."""
        filled = np.nan_to_num(self.probabilities, nan=-1.0)
        return np.where(np.asarray(where, bool), filled.argmax(1) if len(self) else 0, -1)

    @property
    def confidences(self) -> npt.NDArray[np.float32]:
        """Largest probability (N,); NaN where a tile has none."""
        largest: npt.NDArray[np.float32] = self.probabilities.max(1)
        return largest


def columns(classes: Sequence[str]) -> list[str]:
    """Names of all columns, in their order."""
    return [*_POSITION, *map(probability_column, classes), *_REST]


def write_tiles(path: Path, tiles: SlideTiles) -> None:
    """Write the tiles as Parquet or CSV, by the suffix of the name, atomically.

    Raises EdgelungError for another suffix, and for Parquet if pyarrow is not installed.
    """
    write = {".parquet": _write_parquet, ".csv": _write_csv}.get(path.suffix.lower())
    if write is None:
        raise EdgelungError(f"{path.name}: expected a name that ends in .parquet or .csv")
    write(path, tiles)


def read_tiles(path: Path) -> SlideTiles:
    """Read the tiles that `write_tiles` wrote.

    CSV does not hold the step: it is the smallest distance of two columns or rows of tiles.

    Raises EdgelungError for a file that cannot be read or does not hold tiles.
    """
    read = {".parquet": _read_parquet, ".csv": _read_csv}.get(path.suffix.lower())
    if read is None:
        raise EdgelungError(f"{path.name}: expected a name that ends in .parquet or .csv")
    try:
        return read(path)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror or one_line(error)}") from error
    except (ValueError, csv.Error) as error:
        raise EdgelungError(f"{path} holds no tiles: {one_line(error)}; {REMEDY}") from error


def write_wsinfer(path: Path, tiles: SlideTiles) -> None:
    """Write the CSV of WSInfer 0.6: minx,miny,width,height,prob_<class>…; predicted tiles only."""
    names = [*_WSINFER_POSITION, *(f"prob_{name}" for name in tiles.classes)]
    rows = np.flatnonzero(tiles.predicted)
    with atomic_write(path) as file:
        file.write(_lines([list(map(safe_cell, names))], "\n"))
        for part in _parts(len(rows)):
            file.write(_lines(_numbers(tiles, rows[part]), "\n"))


def _parts(count: int) -> Iterator[slice]:
    """Ranges of at most ROW_GROUP rows; they bound the memory of the writers."""
    for start in range(0, count, ROW_GROUP):
        yield slice(start, min(start + ROW_GROUP, count))


def _lines(rows: Sequence[Sequence[object]], end: str = "\r\n") -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _numbers(tiles: SlideTiles, rows: npt.NDArray[np.intp]) -> list[list[object]]:
    """Position and probabilities of some rows, as cells; empty where there is no probability."""
    positions = zip(tiles.x[rows].tolist(), tiles.y[rows].tolist(), strict=True)
    values = tiles.probabilities[rows].tolist()
    return [
        [x, y, tiles.side, tiles.side, *(_cell(value) for value in probabilities)]
        for (x, y), probabilities in zip(positions, values, strict=True)
    ]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.{DECIMALS}f}"


def _write_csv(path: Path, tiles: SlideTiles) -> None:
    labels, confidences, scores = tiles.labels.tolist(), tiles.confidences, tiles.scores
    stages = tiles.stages.tolist()
    names = [*map(safe_cell, tiles.classes), ""]  # -1 is no label
    with atomic_write(path) as file:
        file.write(_lines([list(map(safe_cell, columns(tiles.classes)))]))
        for part in _parts(len(tiles)):
            rows = _numbers(tiles, np.arange(part.start, part.stop))
            for offset, confidence in enumerate(confidences[part].tolist()):
                index = part.start + offset
                rows[offset] += [
                    names[labels[index]],
                    _cell(confidence),
                    _cell(float(scores[index])),
                    stages[index] or "",
                    tiles.statuses[index],
                    safe_cell(tiles.errors[index]),
                ]
            file.write(_lines(rows))


def _write_parquet(path: Path, tiles: SlideTiles) -> None:
    arrow = load_extra("pyarrow", "tiles.parquet")
    parquet = load_extra("pyarrow.parquet", "tiles.parquet")
    text, number = arrow.string(), arrow.float32()
    types = [arrow.int64()] * 2 + [arrow.int32()] * 2 + [number] * len(tiles.classes)
    types += [text, number, number, arrow.uint8(), text, text]
    metadata = MADE_BY | {
        "schema_version": str(SCHEMA_VERSION),
        "side": str(tiles.side),
        "step": repr(float(tiles.step)),
    }
    fields = list(zip(columns(tiles.classes), types, strict=True))
    schema = arrow.schema(fields, metadata)
    names: list[str | None] = [*tiles.classes, None]  # -1 is no label
    labels, confidences, scores = tiles.labels, tiles.confidences, tiles.scores
    stages = tiles.stages
    with atomic_write(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for part in _parts(len(tiles)):
            side = np.full(part.stop - part.start, tiles.side, np.int32)
            values = [
                *(tiles.x[part], tiles.y[part], side, side),
                *tiles.probabilities[part].T,
                [names[label] for label in labels[part].tolist()],
                confidences[part],
                scores[part],
                [stage or None for stage in stages[part].tolist()],
                list(map(str, tiles.statuses[part])),
                [error or None for error in tiles.errors[part]],
            ]
            arrays = [
                arrow.array(value, kind, from_pandas=True)  # NaN becomes null
                for value, kind in zip(values, types, strict=True)
            ]
            writer.write_table(arrow.table(arrays, schema=schema))


def _read_parquet(path: Path) -> SlideTiles:
    arrow = load_extra("pyarrow", "tiles.parquet")
    parquet = load_extra("pyarrow.parquet", "tiles.parquet")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowException as error:
        raise ValueError(str(error)) from error
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    classes = _classes_of(table.column_names)
    if int(metadata.get("schema_version", "0")) > SCHEMA_VERSION:
        raise ValueError(f"its schema version is newer than {SCHEMA_VERSION}; update edgelung")
    cells = {name: table[name].to_numpy() for name in columns(classes)}
    probabilities = [cells[probability_column(name)] for name in classes]
    return SlideTiles(
        classes=classes,
        x=cells["x"].astype(np.int64),
        y=cells["y"].astype(np.int64),
        side=int(metadata["side"]) if "side" in metadata else _side(cells["width"]),
        step=float(metadata.get("step", "nan")),
        probabilities=np.stack(probabilities, axis=1).astype(np.float32),
        statuses=table["status"].to_pylist(),
        errors=[error or "" for error in table["error"].to_pylist()],
        ood=_scores(cells["ood"]),
        stage=_stages([stage or 0 for stage in table["stage"].to_pylist()]),
    )


def _read_csv(path: Path) -> SlideTiles:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        classes = _classes_of([raw_cell(name) for name in next(lines, [])])
        width = len(columns(classes))
        positions: list[list[int]] = []
        numbers: list[list[float]] = []
        scores: list[float] = []
        stages: list[int] = []
        texts: list[tuple[str, str]] = []
        for cells in lines:
            if len(cells) != width:
                raise ValueError(f"line {lines.line_num} has {len(cells)} cells, expected {width}")
            positions.append([int(cell) for cell in cells[:4]])
            numbers.append([float(cell) if cell else math.nan for cell in cells[4 : -len(_REST)]])
            scores.append(float(cells[-4]) if cells[-4] else math.nan)
            stages.append(int(cells[-3] or 0))
            texts.append((cells[-2], raw_cell(cells[-1])))
    corners = np.array(positions, np.int64).reshape(-1, 4)
    side = _side(corners[:, 2])
    gaps = [np.diff(np.unique(values)) for values in corners[:, :2].T]
    return SlideTiles(
        classes=classes,
        x=corners[:, 0],
        y=corners[:, 1],
        side=side,
        step=float(min((int(gap.min()) for gap in gaps if len(gap)), default=side)),
        probabilities=np.array(numbers, np.float32).reshape(-1, len(classes)),
        statuses=[status for status, _ in texts],
        errors=[error for _, error in texts],
        ood=_scores(np.array(scores)),
        stage=_stages(stages),
    )


def _scores(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32] | None:
    """The column of scores; None if it is empty."""
    scores = values.astype(np.float32)
    return scores if np.isfinite(scores).any() else None


def _stages(values: Sequence[int]) -> npt.NDArray[np.uint8] | None:
    """The column of stages; None if it is empty. Raises ValueError for other values."""
    if not {*values} <= {0, 1, 2}:
        raise ValueError(f"found the stage {max(values)}; expected 1 or 2")
    return np.array(values, np.uint8) if any(values) else None


def _classes_of(names: Sequence[str]) -> tuple[str, ...]:
    """Derive the classes from the column names. Raises ValueError for other columns."""
    found = names[len(_POSITION) : -len(_REST)]
    classes = tuple(name.removeprefix(probability_column("")) for name in found)
    if not classes or list(names) != columns(classes):
        raise ValueError(f"its columns are {','.join(names) or 'missing'}")
    return classes


def _side(widths: npt.NDArray[np.int64]) -> int:
    sides = np.unique(widths)
    if len(sides) > 1:
        raise ValueError("its tiles have several sizes")
    return int(sides[0]) if len(sides) else 0
