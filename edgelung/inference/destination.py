"""Where a run writes: its rows, its summary, and its journal while it is not complete."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.predictions import (
    CSV,
    FORMATS,
    PredictionsFormat,
    format_of,
    holds_predictions,
)
from edgelung.artifacts.summary import check_summary, summary_beside
from edgelung.core.errors import EdgelungError
from edgelung.core.files import JOURNAL_SUFFIX, WriteError, check_output_file
from edgelung.core.folder import Folder

STANDARD_OUTPUT = Path("-")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """What `--out` and `--summary` stand for. Made once, by `parse`, which checks all of it.

    Attributes:
        rows: the file that gets the rows; None for standard output.
        format: how the rows are written.
        summary: the file that gets the summary; None if it is not written.
    """

    rows: Path | None
    format: PredictionsFormat
    summary: Path | None

    @classmethod
    def parse(cls, out: Path, summary: Path | None = None) -> "Destination":
        """Check both names before hours of work.

        Args:
            out: the file for the rows (.csv, .jsonl or .parquet), or `-`: CSV on standard output.
            summary: the file for the summary; None puts it beside the rows.

        Raises:
            EdgelungError: a name has the wrong suffix or lies in no folder, its library is not
                installed, or it is taken by a file that is not what the run would write.
        """
        if out == STANDARD_OUTPUT:
            return cls(None, CSV, None if summary is None else _checked_summary(summary))
        if out.is_symlink():  # a finished file is renamed into place, which would replace the link
            out = _target_of(out)
        return cls(out, _checked_format(out), _summary_beside(out, summary))

    @property
    def name(self) -> str:
        """The name for people and for the summary: the path as given, or '-'."""
        return os.fsencode(self.rows or STANDARD_OUTPUT).decode(errors="backslashreplace")

    @property
    def journal(self) -> Path | None:
        """The journal of the run; None for standard output."""
        return self.rows and self.rows.with_name(self.rows.name + JOURNAL_SUFFIX)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that stay when the run is complete. They are never input of the same run."""
        return tuple(path for path in (self.rows, self.summary) if path)


def _checked_format(rows: Path) -> PredictionsFormat:
    check_output_file(rows)
    if rows.suffix.lower() not in FORMATS:
        *names, last = FORMATS
        raise EdgelungError(
            f"--out {rows}: expected a name that ends in {', '.join(names)} or {last}, "
            "or - for standard output"
        )
    kind = format_of(rows)
    with Folder(rows.parent) as folder:
        check_rows(folder, rows.name, kind)
    return kind


def check_rows(folder: Folder, name: str, kind: PredictionsFormat) -> None:
    """Raise EdgelungError if `name` in an open folder is there and holds no predictions."""
    try:
        handle = folder.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return
    except OSError as error:  # a link, a socket, or a file that cannot be read
        folder.check_regular(name, f"--out {folder.path / name}")
        raise WriteError(folder.path / name, error) from error
    with os.fdopen(handle, "rb") as file:
        folder.check_regular(name, f"--out {folder.path / name}")
        if os.fstat(handle).st_size and not holds_predictions(file, kind):
            raise EdgelungError(
                f"--out {folder.path / name} exists and is no list of predictions; it was left "
                "alone: choose another name"
            )


def _target_of(link: Path) -> Path:
    """The file that a link of this user stands for.

    Raises EdgelungError if the link is another user's, or leads to no regular file.
    """
    try:
        target, owner = Path(os.path.realpath(link)), link.lstat().st_uid
    except OSError as error:  # replaced while it was read
        raise EdgelungError(f"cannot read the link --out {link}: {error.strerror}") from error
    if not target.is_file():
        raise EdgelungError(
            f"--out {link} is a link to {target}, which is no regular file; name the file itself"
        )
    if hasattr(os, "geteuid") and owner != os.geteuid():
        raise EdgelungError(
            f"--out {link} is a link of another user, to {target}; name the file itself"
        )
    logger.info("--out %s is a link: the rows are written to %s", link, target)
    return target


def _summary_beside(rows: Path, named: Path | None) -> Path:
    """The summary of a run that writes `rows`: as `named`, or beside them."""
    summary = named or summary_beside(rows)
    if summary.resolve() == rows.resolve():
        raise EdgelungError(f"the rows and their summary cannot both be {rows}; see --summary")
    return _checked_summary(summary)


def _checked_summary(summary: Path) -> Path:
    check_output_file(summary, "--summary")
    with Folder(summary.parent) as folder:
        check_summary(folder, summary.name)
    return summary
