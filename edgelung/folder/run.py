"""`edgelung infer`: a folder, a bundle, a CSV, and a summary of what happened."""

import contextlib
import csv
import io
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edgelung.bundle import FULL_PRECISION, Bundle
from edgelung.engines.choose import Chosen, available_cores, open_engine
from edgelung.errors import EdgelungError, ExitCode
from edgelung.evidence.gate import LIMITS
from edgelung.evidence.metrics import labelled_metrics
from edgelung.folder.pipeline import Row, predict
from edgelung.folder.writer import csv_rows
from edgelung.tiles.find import FoundFile, class_of, find_files

# Statuses that are no failure: the file was never meant to be a tile.
HARMLESS = ("ok", "skipped")


@dataclass
class Tally:
    """What is kept of the rows while they stream by; a few numbers a class, nothing per file."""

    classes: Sequence[str]
    statuses: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    agreed: int = 0
    largest_difference: float = 0.0

    def __post_init__(self) -> None:
        shape = (len(self.classes), len(self.classes))
        self.confusion = np.zeros(shape, np.int64)
        self.reference_confusion = np.zeros(shape, np.int64)

    def add(self, row: Row) -> None:
        """Count one row."""
        self.statuses[row.status] += 1
        if row.probabilities is None:
            return
        label = int(row.probabilities.argmax())
        self.labels[self.classes[label]] += 1
        truth = class_of(row.file.location, self.classes)
        if truth is not None:
            self.confusion[truth, label] += 1
        if row.reference is not None:
            reference = int(row.reference.argmax())
            self.compared += 1
            self.agreed += reference == label
            difference = float(np.abs(row.reference - row.probabilities).max())
            self.largest_difference = max(self.largest_difference, difference)
            if truth is not None:
                self.reference_confusion[truth, reference] += 1


def gather(
    inputs: Sequence[Path], listing: Path | None, subset: str | None, out: Path
) -> Iterable[FoundFile]:
    """The files to predict: all below the folders, or those that `listing` names.

    Rows are named relative to the folder, or to what several folders have in common.
    """
    if subset is not None and not listing:
        raise EdgelungError("--subset needs --files with a CSV that has a `subset` column")
    if listing:
        if out.exists() and out.samefile(listing):
            raise EdgelungError(f"--out {out} is the list of --files; choose another name")
        if len(inputs) != 1 or not inputs[0].is_dir():
            raise EdgelungError(
                "--files expects exactly one FOLDER, which its paths are relative to"
            )
        return _listed(inputs[0], listing, subset)
    for folder in inputs:
        if not folder.exists():
            raise EdgelungError(f"{folder} does not exist; expected a folder of tiles")
    _refuse_overlap(inputs)
    return (file for file in _found(inputs) if not _is_output(file, out))


def _is_output(file: FoundFile, out: Path) -> bool:
    """Whether the file is the CSV that will be written, left there by an earlier run."""
    path = Path(file.location)
    return path.name == out.name and path.parent.resolve() == out.absolute().parent.resolve()


def _refuse_overlap(inputs: Sequence[Path]) -> None:
    folders = [folder.resolve() for folder in inputs]
    for i, folder in enumerate(folders):
        for j, other in enumerate(folders):
            if i != j and (folder == other or other in folder.parents):
                raise EdgelungError(
                    f"{inputs[i]} is {inputs[j]} or lies in it; its files would have two rows each"
                )


def infer_folder(
    files: Iterable[FoundFile],
    bundle: Bundle,
    out: Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    batch_size: int = 32,
    threads: int | None = None,
    prebuilt: Path | None = None,
    verify: bool = False,
    verify_every: int = 1,
    on_row: Callable[[Row], None] = lambda row: None,
) -> dict[str, Any]:
    """Predict `files` into the CSV `out`; returns the run's summary with its exit code.

    With `verify` the full-precision model runs beside the chosen variant, on all tiles or on every
    `verify_every`-th batch.
    """
    cores = threads or available_cores()
    chosen = open_engine(bundle, engine, precision, cores, prebuilt)
    reference = (
        open_engine(bundle, engine, FULL_PRECISION, cores, prebuilt).engine if verify else None
    )
    tally = Tally(bundle.classes)
    start = time.perf_counter()
    try:
        with csv_rows(out, bundle.classes) as rows:
            for row in predict(
                files,
                bundle.reader,
                chosen.engine,
                batch_size=batch_size,
                decoders=cores,
                reference=reference,
                reference_every=verify_every,
            ):
                rows.write(row)
                tally.add(row)
                on_row(row)
            if not tally.statuses:
                raise EdgelungError("found no file at all; expected a folder with tiles in it")
            if set(tally.statuses) == {"skipped"}:
                raise EdgelungError(
                    f"found {tally.statuses.total()} files and no image among them; expected tiles"
                )
    finally:
        chosen.engine.close()
        if reference:
            reference.close()
    return _summary(bundle, chosen, tally, out, time.perf_counter() - start)


def _summary(
    bundle: Bundle, chosen: Chosen, tally: Tally, out: Path, seconds: float
) -> dict[str, Any]:
    total = tally.statuses.total()
    failed = sum(n for status, n in tally.statuses.items() if status not in HARMLESS)
    summary: dict[str, Any] = {
        "bundle": bundle.manifest.get("name", ""),
        "engine": chosen.engine.name,
        "device": chosen.engine.device,
        "precision": chosen.variant.precision,
        "choice": chosen.reason,
        "golden_difference": chosen.golden_difference,
        "out": str(out),
        "files": total,
        "failed": failed,
        "statuses": dict(tally.statuses),
        "labels": {name: tally.labels[name] for name in bundle.classes},
        "seconds": round(seconds, 3),
        "tiles_per_second": round(tally.statuses["ok"] / seconds, 1) if seconds else None,
        "labelled": None,
        "verify": None,
    }
    code = ExitCode.SOME_FAILED if failed else ExitCode.OK
    if tally.confusion.sum():
        summary["labelled"] = labelled_metrics(tally.confusion, bundle.classes)
    if tally.compared:
        share = tally.agreed / tally.compared
        verified = share >= LIMITS["min_agreement"]
        summary["verify"] = {
            "tiles": tally.compared,
            "agreement": share,
            "differing_labels": tally.compared - tally.agreed,
            "max_probability_difference": tally.largest_difference,
            "min_agreement": LIMITS["min_agreement"],
            "passed": verified,
            "reference": labelled_metrics(tally.reference_confusion, bundle.classes)
            if tally.reference_confusion.sum()
            else None,
        }
        if not verified:
            code = ExitCode.GATE
    summary["exit_code"] = int(code)
    return summary


def _found(inputs: Sequence[Path]) -> Iterator[FoundFile]:
    if len(inputs) == 1:
        yield from find_files(inputs[0])
        return
    folders = [folder.absolute() for folder in inputs]
    names = [PurePosixPath(*folder.parts) for folder in folders]
    shared = 0
    with contextlib.suppress(IndexError):
        while len({name.parts[shared] for name in names}) == 1:
            shared += 1
    for folder, name in zip(folders, names, strict=True):
        prefix = "/".join(name.parts[shared:])
        for file in find_files(folder):
            own = prefix if not folder.is_dir() else f"{prefix}/{file.path}".lstrip("/")
            yield FoundFile(own, file.location, file.reason, file.listed)


def _listed(folder: Path, listing: Path, subset: str | None) -> Iterator[FoundFile]:
    try:
        text = listing.read_text(encoding="utf-8-sig")  # Excel puts a byte-order mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise EdgelungError(f"cannot read the list {listing}: {error}") from error
    lines = [line.strip("\r") for line in text.split("\n")]
    if "path" not in lines[0].lower().replace(";", ",").replace("\t", ",").split(","):
        if subset is not None:
            raise EdgelungError(f"{listing} has no `path` and `subset` columns for --subset")
        paths = [line for line in lines if line.strip()]
    else:
        paths = _column(listing, text, subset)
    if not paths:
        where = "" if subset is None else f" in subset {subset!r}"
        raise EdgelungError(f"{listing} names no files{where}")
    each = dict.fromkeys(posixpath.normpath(path) for path in paths)  # each file once
    return (FoundFile(path, str(folder / path), listed=True) for path in each)


def _column(listing: Path, text: str, subset: str | None) -> list[str]:
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        columns = rows.fieldnames or []
        needed = ["path"] if subset is None else ["path", "subset"]
        if missing := [name for name in needed if name not in columns]:
            raise EdgelungError(
                f"{listing} has the columns {', '.join(columns)}; expected {', '.join(missing)} "
                "too, with commas between"
            )
        paths = [row["path"] for row in rows if subset is None or row["subset"] == subset]
    except csv.Error as error:
        raise EdgelungError(f"cannot read the list {listing}: {error}") from error
    if not all(paths):
        raise EdgelungError(f"{listing} has a row without a path")
    return paths
