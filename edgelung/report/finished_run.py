"""A finished `infer` run as its page shows it: rows, summary, and where the files are."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.predictions import (
    MAX_ROWS_BYTES,
    Prediction,
    Predictions,
    decode_predictions,
    format_of,
)
from edgelung.artifacts.summary import MAX_BYTES, Summary, decode_summary, summary_beside
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.core.folder import open_below, open_for_reading, read_regular
from edgelung.tiles.names import from_printable


@dataclass(frozen=True)
class FinishedRun:
    """The rows of a run and its summary.

    Attributes:
        file: the file of the rows.
        root: the folder that the paths of the rows are relative to.
        digests: file name → SHA-256 in hexadecimal, of the rows and of the summary as they were
            read: what a signature of the run is over.
        summary_file: the file of the summary.
        allowed: the real paths that tiles may be in; None if the run followed links, which may lead
            anywhere.
    """

    file: Path
    predictions: Predictions
    summary: Summary
    root: Path
    digests: Mapping[str, str]
    summary_file: Path
    allowed: tuple[str, ...] | None

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
        below = location.startswith(root.rstrip(os.sep) + os.sep)
        return location if below and _is_path(location) else None

    def leads_out(self, location: str) -> bool:
        """True if a link leads from there to elsewhere, which the run did not follow."""
        return self.allowed is not None and self._real(location) is None

    def open_tile(self, location: str) -> int:
        """Open a tile; links lead nowhere else, even if they are changed meanwhile.

        Returns a descriptor. Raises OSError.
        """
        if self.allowed is None:
            return open_for_reading(location)
        found = self._real(location)
        if found is None:
            raise OSError(errno.ELOOP, "a link that leads out of the folder", location)
        return open_below(*found)

    def _real(self, location: str) -> tuple[str, str] | None:
        """The allowed real path that the tile is in, and its own; None if it is in none."""
        real = os.path.realpath(location)
        for place in self.allowed or ():
            if real == place:  # a tile that was named itself
                return os.path.dirname(place), real
            if real.startswith(os.path.join(place, "")):
                return place, real
        return None


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
    if root:
        folder, places = root.absolute(), [os.fspath(root)]
    else:
        inputs = _inputs_of(content.options)
        folder = _root_of(inputs)
        # An input may be a link in the folder that several have in common.
        places = inputs if len(inputs) == 1 else [os.fspath(folder), *inputs]
    # A list of files may name links, and the run read what they lead to.
    followed = content.options.get("--follow-links") or content.options.get("--files")
    allowed = None if followed else tuple(map(os.path.realpath, places))
    digests = {rows.name: sha256_bytes(content_of_rows), beside.name: sha256_bytes(data)}
    return FinishedRun(rows, predictions, content, folder, digests, beside, allowed)


def _read(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. Raises EdgelungError if it cannot be read or is too large."""
    try:
        data = read_regular(path, limit + 1)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise EdgelungError(f"{path} has more than {limit:,} bytes; expected a smaller file")
    return data


def _inputs_of(options: Mapping[str, object]) -> list[str]:
    """What was predicted. Raises EdgelungError if the summary does not say so in absolute paths."""
    inputs = options.get("inputs")
    if isinstance(inputs, list) and inputs and all(isinstance(one, str) for one in inputs):
        if all(os.path.isabs(one) and _is_path(one) for one in inputs):
            return inputs
        raise EdgelungError("the summary names its folder wrongly; name the folder with --root")
    raise EdgelungError("the summary names no folder; name it with --root")


def _is_path(text: str) -> bool:
    """True if a file can have the name: no NUL, no surrogate that stands for no byte."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _root_of(inputs: list[str]) -> Path:
    """The folder that the paths are relative to: the one input, or what several have in common."""
    if len(inputs) > 1:
        try:
            return Path(os.path.commonpath(inputs))
        except ValueError as error:  # on two drives of Windows
            raise EdgelungError("the summary names no common folder; use --root") from error
    single = Path(inputs[0])
    return single.parent if single.is_file() else single
