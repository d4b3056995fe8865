"""Where a run writes: its rows, its summary, and its journal while it is not complete."""

import os
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.predictions import (
    CSV,
    FORMATS,
    PredictionsFormat,
    format_of,
    is_predictions,
)
from edgelung.artifacts.summary import rows_name_of, summary_beside
from edgelung.core.errors import EdgelungError
from edgelung.core.files import JOURNAL_SUFFIX, check_output_file

STANDARD_OUTPUT = Path("-")


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
            out = Path(os.path.realpath(out))
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
    if rows.is_file() and rows.stat().st_size and not is_predictions(rows):
        raise EdgelungError(
            f"--out {rows} exists and is no list of predictions; it was left alone: choose another "
            "name"
        )
    return kind


def _summary_beside(rows: Path, named: Path | None) -> Path:
    """The summary of a run that writes `rows`: as `named`, or beside them."""
    summary = named or summary_beside(rows)
    if summary.resolve() == rows.resolve():
        raise EdgelungError(f"the rows and their summary cannot both be {rows}; see --summary")
    return _checked_summary(summary)


def _checked_summary(summary: Path) -> Path:
    check_output_file(summary, "--summary")
    if summary.exists() and summary.stat().st_size and rows_name_of(summary) is None:
        raise EdgelungError(
            f"{summary} exists and is no summary of a run; it was left alone: name another file "
            "with --summary"
        )
    return summary
