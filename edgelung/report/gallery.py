"""The page of predictions: a gallery of tiles that can be filtered, most urgent first.

All rows travel in the page as JSON columns. The first tiles have thumbnails in the page, the others
are shown by relative link. Sizes are bounded: see MAX_ROWS and PAGE_BYTES.
"""

import base64
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from edgelung.artifacts.predictions import Prediction
from edgelung.artifacts.summary import Summary
from edgelung.core.system import available_cores
from edgelung.core.workers import Workers
from edgelung.report.finished_run import FinishedRun
from edgelung.report.render import render, typed
from edgelung.report.verdicts import count, predictions_headline
from edgelung.tiles.budget import DECODING
from edgelung.tiles.find import class_of
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile, read_bytes
from edgelung.tiles.status import NO_FAILURE, Status

KIND = "view"  # marks the page: only a page with this mark is overwritten
MAX_ROWS = 100_000  # the most urgent; a browser filters these in milliseconds
MAX_THUMBNAILS = 2_000
THUMBNAIL = 112  # pixels
PAGE_BYTES = 14_500_000  # rows and thumbnails; the rest of the page takes about 25 kB
ROWS_BYTES = 9_000_000  # paths may be long: then fewer rows are shown

_SCRIPT = (resources.files("edgelung.report") / "gallery.js").read_text(encoding="utf-8")


class Entry(NamedTuple):
    """A row as the page shows it. `label`, `truth`: class indices or −1."""

    row: Prediction
    label: int
    truth: int
    location: str | None

    @property
    def priority(self) -> tuple[int, float]:
        """Sorts what needs a look first: lower comes first."""
        confidence = self.row.confidence or 0.0
        if self.row.status == Status.SKIPPED:
            return 4, 0.0
        if self.row.status not in NO_FAILURE:
            return 0, 0.0
        if self.row.status != Status.OK:
            return 1, confidence
        if self.truth not in (-1, self.label):
            return 2, -confidence
        return 3, confidence


def predictions_page(
    run: FinishedRun,
    page: Path,
    advance: Callable[[int], None] = lambda tiles: None,
    *,
    signed: str = "",
) -> str:
    """The page of a run, to be written at `page`, which its links start from.

    `advance` is called with the number of thumbnails made. `signed`: who signed the run, in words.
    """
    summary, classes = run.summary, run.predictions.classes
    entries = sorted(_entries(run), key=lambda entry: entry.priority)
    shown = [
        entry._replace(location=None) if entry.location and run.leads_out(entry.location) else entry
        for entry in _within_budget(entries[:MAX_ROWS])
    ]
    columns = _columns(shown)
    room = PAGE_BYTES - len(script_json(columns).encode())
    columns["thumbnails"], missing = _thumbnails(run, shown, room, advance)
    columns |= {"classes": classes, "base": _base(run.root, page)}
    statuses = Counter(entry.row.status for entry in entries)
    labels = Counter(entry.row.label for entry in entries if entry.row.label)
    failed = sum(n for status, n in statuses.items() if status not in NO_FAILURE)
    return render(
        "predictions.html.j2",
        kind=KIND,
        title=f"edgelung predictions {run.file.name}",
        headline=predictions_headline(statuses, failed, summary.concerns),
        facts=_facts(run) | ({"rows signed": signed} if signed else {}),
        concerns=summary.concerns,
        warnings=_warnings(run, len(shown), missing),
        labels={name: labels[name] for name in classes},
        statuses=dict(statuses.most_common()),
        classes=classes,
        page_statuses=columns["statuses"],
        has_truth=any(entry.truth >= 0 for entry in shown),
        data=script_json(columns),
        script=Markup(_SCRIPT),
        script_hash=Markup(script_hash(_SCRIPT)),
    )


def script_json(value: object) -> Markup:
    """JSON for a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def script_hash(script: str) -> str:
    """The hash by which a Content-Security-Policy allows one inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def is_page(path: Path) -> bool:
    """True if the file is a page that `edgelung view` wrote."""
    with path.open("rb") as file:
        return f'<meta name="generator" content="edgelung {KIND}">'.encode() in file.read(2048)


def _entries(run: FinishedRun) -> list[Entry]:
    classes = run.predictions.classes
    index = {name: i for i, name in enumerate(classes)}

    @lru_cache(maxsize=1024)
    def truth_of(folder: str) -> int:
        truth = class_of(os.path.join(folder, "tile"), classes)
        return -1 if truth is None else truth

    entries = []
    for row in run.predictions.rows:
        location = run.location(row)
        label = -1
        if row.label is not None:
            label = index[row.label]
        elif row.probabilities is not None:  # left to people; the page shows what it would be
            label = row.probabilities.index(max(row.probabilities))
        truth = truth_of(os.path.dirname(location)) if location else -1
        entries.append(Entry(row, label, truth, location))
    return entries


def _within_budget(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The first entries whose texts fit in ROWS_BYTES."""
    size = 0
    folders: set[str] = set()
    for number, entry in enumerate(entries):
        folder, _, name = entry.row.path.rpartition("/")
        texts = [name, entry.row.error, *({folder} - folders)]
        folders.add(folder)
        size += len(script_json(texts).encode()) + 20  # numbers and commas
        if size > ROWS_BYTES:
            return entries[:number]
    return entries


def _columns(entries: Sequence[Entry]) -> dict[str, object]:
    """The entries as columns. Confidence is in 1/10,000, rounded down: 0.99999 is not 1."""
    folders: dict[str, int] = {}
    statuses: dict[str, int] = {}
    rows: dict[str, list[int] | list[str]] = {
        "folder": [
            folders.setdefault("".join(entry.row.path.rpartition("/")[:2]), len(folders))
            for entry in entries
        ],
        "name": [entry.row.path.rpartition("/")[2] for entry in entries],
        "status": [statuses.setdefault(entry.row.status, len(statuses)) for entry in entries],
        "label": [entry.label for entry in entries],
        "truth": [entry.truth for entry in entries],
        "confidence": [
            -1 if entry.row.confidence is None else int(entry.row.confidence * 10_000 + 1e-6)
            for entry in entries
        ],
    }
    # A backslash: the path is a printable form and no name that a link could use.
    outside = {i: 1 for i, e in enumerate(entries) if e.location is None or "\\" in e.row.path}
    # 'review' needs no reason: the confidence stands beside it.
    errors = {
        i: entry.row.error
        for i, entry in enumerate(entries)
        if entry.row.error and entry.row.status != Status.REVIEW
    }
    return {
        "rows": {**rows, "outside": outside},
        "folders": list(folders),
        "statuses": list(statuses),
        "errors": errors,
    }


def _thumbnails(
    run: FinishedRun, entries: Sequence[Entry], room: int, advance: Callable[[int], None]
) -> tuple[dict[int, str], int]:
    """Base64 of the first predicted tiles by row, and how many of them could not be read."""
    spec = ReaderSpec(size=THUMBNAIL)

    def thumbnail(entry: Entry) -> str:
        data = io.BytesIO()
        try:
            assert entry.location is not None
            with DECODING:
                opening = partial(run.open_tile, entry.location)
                pixels = decode_tile(read_bytes(entry.location, open_file=opening), spec)
        except (TileError, OSError):
            return ""
        finally:
            advance(1)
        Image.fromarray(pixels).save(data, "WEBP", quality=60)
        return base64.b64encode(data.getvalue()).decode()

    first = [i for i, e in enumerate(entries) if e.row.confidence is not None and e.location]
    first = first[:MAX_THUMBNAILS]
    with Workers(available_cores()) as pool:
        made = dict(zip(first, pool.map(thumbnail, (entries[i] for i in first)), strict=True))
    thumbnails: dict[int, str] = {}
    for index, text in made.items():
        room -= len(text) + 12
        if text and room > 0:
            thumbnails[index] = text
    return thumbnails, sum(not text for text in made.values())


def _base(root: Path, page: Path) -> str | None:
    """The root folder as a link from the page; None where there is none (another drive)."""
    try:
        relative = os.path.relpath(root, page.absolute().parent)
    except ValueError:
        return None
    return "./" + quote(os.fsencode(Path(relative).as_posix())) + "/"


def _facts(run: FinishedRun) -> dict[str, str]:
    summary = run.summary
    return {
        "date": f"{summary.ended[:16].replace('T', ' ')} UTC",
        "data": run.root.name,
        "rows": run.file.name,
        "bundle": summary.bundle,
        "engine": f"{summary.engine} {summary.precision} on {summary.device}",
        "speed": f"{summary.tiles_per_second} tiles/s" if summary.tiles_per_second else "",
        "SHA-256 of the bundle": summary.bundle_sha256[:16],
        "SHA-256 of the rows": run.sha256[:16],
        "options": _options(summary),
    }


def _options(summary: Summary) -> str:
    """The options that the rows depend on, as one would type them. A list is named by its hash."""
    words = []
    for name, value in summary.options.items():
        if name.startswith("--") and value not in (None, False):
            words += [name] if value is True else [name, str(value)]
    return typed(words)


def _warnings(run: FinishedRun, shown: int, missing: int) -> list[str]:
    warnings = []
    rows = len(run.predictions.rows)
    if not run.is_unchanged:
        warnings.append("The rows have changed since the run ended: the summary is of other rows.")
    if shown < rows:
        warnings.append(f"The page shows the {shown:,} most urgent rows of {rows:,}.")
    if missing:
        were = "it was; name its folder" if missing == 1 else "they were; name their folder"
        warnings.append(f"{count(missing, 'tile')} cannot be read where {were} with --root.")
    if run.summary.other_sizes:
        warnings.append(
            f"{run.summary.other_sizes:,} tiles are of other sizes than the training tiles "
            f"({run.summary.trained_sizes})."
        )
    return warnings
