"""The folder of a cross-validation: written by `edgelung train --folds`.

It has the form of a run folder (`edgelung.artifacts.run`) without weights, so that all that reads a
run's figures reads it too:

run.json          as of a run; `folds` is the number of folds
split.csv         every tile, with the subset 'test': each is tested once
folds.csv         the fold in which each tile is tested
fold-1 … fold-K   complete run folders, trained without the tiles that they test
predictions.csv   every tile, predicted by the model that did not see its group
teacher/, …       predictions.csv of the other models
metrics.json      written last; `test` over all tiles, `folds` by fold
report.html       the page
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgelung.artifacts.run import RunFolder, write_csv
from edgelung.core.csv_cells import raw_row
from edgelung.core.errors import EdgelungError, one_line


@dataclass(frozen=True)
class FoldsFolder(RunFolder):
    """The folder of a cross-validation: its paths, readers and writers."""

    @property
    def folds_path(self) -> Path:
        """folds.csv."""
        return self.path / "folds.csv"

    def fold(self, number: int) -> RunFolder:
        """The run folder of a fold; `number` begins at 1."""
        return RunFolder(self.path / f"fold-{number}")

    def fold_runs(self) -> list[RunFolder]:
        """The run folders of all folds, finished or not."""
        return [self.fold(number) for number in range(1, self.read_config().folds + 1)]

    def write_folds(self, rows: Iterable[tuple[str, int]]) -> None:
        """Write folds.csv: the path of each tile and the number of its fold."""
        write_csv(self.folds_path, ("path", "fold"), rows)

    def read_folds(self) -> dict[str, int]:
        """The number of the fold that tests each tile, by path."""
        try:
            with self.folds_path.open(encoding="utf-8", newline="") as file:
                rows = map(raw_row, csv.DictReader(file))
                return {row["path"]: int(row["fold"]) for row in rows}
        except (OSError, KeyError, ValueError) as error:
            raise EdgelungError(
                f"cannot read {self.folds_path} ({one_line(error)}); expected path,fold; restore "
                "it or start anew"
            ) from error


def opened_folds(path: Path) -> FoldsFolder | None:
    """The cross-validation in a folder; None where there is another run, or none."""
    folder = FoldsFolder(path)
    return folder if folder.config_path.is_file() and folder.folds_path.is_file() else None
