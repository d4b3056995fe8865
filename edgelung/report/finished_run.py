"""A finished `infer` run as its page shows it: rows, summary, and where the files are."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.predictions import Prediction, Predictions, decode_predictions, format_of
from edgelung.artifacts.summary import MAX_BYTES, Summary, decode_summary, summary_beside
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.core.folder import read_regular

MAX_ROWS_BYTES = 1 << 31  # about 20 million rows; they are held in memory


@dataclass(frozen=True)
class FinishedRun:
    """The rows of a run and its summary.

    Attributes:
        file: the file of the rows.
        root: the folder that the paths of the rows are relative to.
        digests: file name → SHA-256 in hexadecimal, of the rows and of the summary as they were
            read: what a signature of the run is over.
        summary_file: the file of the summary.
    """

    file: Path
    predictions: Predictions
    summary: Summary
    root: Path
    digests: Mapping[str, str]
    summary_file: Path

    @property
    def sha256(self) -> str:
        """SHA-256 of the file of the rows."""
        return self.digests[self.file.name]

    @property
    def is_unchanged(self) -> bool:
        """True if the file is as the run wrote it."""
        return self.sha256 == self.summary.out_sha256

    def location(self, row: Prediction) -> str | None:
        """Where the file of a row is; None if its path leads out of the root folder.

        The rows may come from somebody else: a page never shows a file from elsewhere.
        """
        root = os.path.normpath(self.root)
        location = os.path.normpath(os.path.join(root, from_printable(row.path)))
        return location if location.startswith(root.rstrip(os.sep) + os.sep) else None


def open_finished_run(
    rows: Path, summary: Path | None = None, root: Path | None = None
) -> FinishedRun:
    """Read the rows of a run and its summary.

    Args:
        rows: .csv, .jsonl or .parquet that `edgelung infer` wrote.
        summary: the run's summary; None looks for it beside the rows.
        root: the folder that was predicted; None takes it from the summary.

    Raises:
        EdgelungError: a file is missing or is not what it should be.
    """
    format_of(rows)
    if not rows.is_file():
        raise EdgelungError(f"{rows} is no file; expected the rows that `edgelung infer` wrote")
    # Read once: the rows that are shown are those that were hashed, whoever replaces the file.
    content_of_rows = _read(rows, MAX_ROWS_BYTES)
    predictions = decode_predictions(rows, content_of_rows)
    beside = summary or summary_beside(rows)
    if not beside.is_file():
        raise EdgelungError(
            f"{rows} has no summary {beside}; expected the rows of a finished run, with the "
            "summary beside them or named by --summary"
        )
    data = _read(beside, MAX_BYTES)
    content = decode_summary(beside, data)
    if summary is None and os.path.basename(content.out) != rows.name:
        raise EdgelungError(
            f"{beside} is the summary of {content.out}, not of {rows.name}; name the right one "
            "with --summary"
        )
    if root is not None and not root.is_dir():
        raise EdgelungError(f"--root {root} is no folder; expected the folder that was predicted")
    folder = root.absolute() if root else _root_of(content.options)
    digests = {rows.name: sha256_bytes(content_of_rows), beside.name: sha256_bytes(data)}
    return FinishedRun(rows, predictions, content, folder, digests, beside)


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises EdgelungError if it cannot be read or is too large."""
    try:
        data = read_regular(path, limit + 1)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise EdgelungError(f"{path} has more than {limit:,} bytes; expected a smaller file")
    return data


def from_printable(path: str) -> str:
    """The file name that `edgelung.inference.record.printable` wrote as valid UTF-8."""

    def original(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], 16)]) if match[1] else b"\\"

    return os.fsdecode(re.sub(rb"\\\\|\\x([0-9a-f]{2})", original, path.encode()))


def _root_of(options: Mapping[str, object]) -> Path:
    """The folder that the paths are relative to: the one input, or what several have in common."""
    inputs = options.get("inputs")
    if (
        not isinstance(inputs, list)
        or not inputs
        or not all(isinstance(one, str) for one in inputs)
    ):
        raise EdgelungError("the summary names no folder; name it with --root")
    if len(inputs) > 1:
        return Path(os.path.commonpath(map(str, inputs)))
    single = Path(inputs[0])
    return single.parent if single.is_file() else single
