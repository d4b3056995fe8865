"""The run folder: written by `edgelung train`. All other code reads it through this module.

run.json             the resolved recipe, the data, the split's counts and hash
split.csv            every tile: path, class, group, subset, SHA-256
model.safetensors    the student's weights; config.json describes the model in the format of timm
predictions.csv      probabilities of its validation and test tiles
teacher/, baseline/  weights, config.json and predictions.csv of the other models
teacher/NAME/        the same of each model of a teacher that has several; then teacher/ itself has
                     the predictions of their average
teacher/soft_labels.safetensors   logits of all tiles, if tile features gave them
metrics.jsonl        one line per epoch
metrics.json         metrics of every model; written last, so it marks a finished run
report.html          the page
state.pt             the checkpoint of an unfinished run

`train --folds` writes a folder of the same form without weights: see `edgelung.artifacts.folds`.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from edgelung.artifacts.model_config import ModelConfig
from edgelung.artifacts.predictions import probability_columns
from edgelung.artifacts.results import Concern, Intervals, Metrics, ModelTest, SetSize
from edgelung.artifacts.run_predictions import RunPredictions, from_rows
from edgelung.core import typed_json
from edgelung.core.csv_cells import raw_row, write_safely
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import atomic_write, sha256_file
from edgelung.core.own_folders import REPORT_PAGE, RUN_CONFIG, RUN_SPLIT
from edgelung.core.typed_json import Json
from edgelung.tiles.physical_size import MAX_TILE_UM, MIN_TILE_UM

METRICS_VERSION = 1  # metrics.json of edgelung 0.1 has no version; it is read as version 1
SCHEMA_VERSION = 2  # folders of edgelung 0.1 have no version; they are read as version 1
SUBSETS = ("train", "val", "test")
ROLES = ("teacher", "baseline", "student")  # in the order of training
ANEW = "expected a run folder that `edgelung train` wrote; train it again"

Counts = dict[str, dict[str, SetSize]]  # subset → class → tiles and groups


class RunConfig(Struct, frozen=True, kw_only=True):
    """run.json: the settings of the run and a summary of its tiles.

    `follow_links`: links that lead out of the folder of the tiles were followed. `tile_um`: side of
    a training tile in micrometres, as the user stated it; None if nobody did. `folds`: number of
    folds of a cross-validation; 0 for a single run, also for the run of one fold. `origins`: a
    sentence for each start of a model whose origin is in doubt or is for others to vouch for.
    """

    schema_version: int = 1
    edgelung: str
    notice: str
    data: str
    seed: int
    precision: str
    processes: int
    groups: str
    split: str
    test_tiles_with_a_group_mate_in_training: int
    counts: Counts
    sizes: dict[str, int]  # '768x768' → tiles
    recipe: dict[str, Json]
    split_sha256: str = ""
    follow_links: bool = False
    tile_um: Annotated[float, Meta(ge=MIN_TILE_UM, le=MAX_TILE_UM)] | None = None
    folds: int = 0
    origins: list[str] = []

    @property
    def fewest_test_groups(self) -> int:
        """Number of test groups in the class with the fewest."""
        return min(size.groups for size in self.counts["test"].values())


class SplitRow(Struct, frozen=True):
    """A row of split.csv: one tile, its class, its group and its subset."""

    path: str
    label: str
    group: str
    subset: str
    sha256: str


class EpochRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of metrics.jsonl. Losses are means over the epoch.

    The three `val_` figures are None in epochs without label loss, which are not validated.
    """

    stage: str
    epoch: int
    size: int  # pixels
    lr: float
    loss: float
    task_loss: float | None = None
    distill_loss: float | None = None
    guidance_loss: float | None = None
    exit_loss: float | None = None
    seconds: float
    val_loss: float | None = None  # nats
    val_accuracy: float | None = None
    val_balanced_accuracy: float | None = None


class ModelMetrics(Struct, frozen=True, kw_only=True):
    """One model of a run: its timm name, temperature, validation and test metrics.

    `val_intervals`: intervals of the validation metrics; UNSET in files of an older edgelung.
    """

    model: str
    temperature: float
    val: Metrics
    test: ModelTest
    val_intervals: Intervals | UnsetType = UNSET


class FoldMetrics(Struct, frozen=True, kw_only=True):
    """What one model reached on the test tiles of its fold, which are tiles of other groups."""

    fold: int  # from 1
    tiles: int
    groups: int
    accuracy: float
    balanced_accuracy: float
    temperature: float


class RunMetrics(Struct, frozen=True, kw_only=True):
    """metrics.json.

    `unrepeatable`: an operation that is not deterministic on the device. `concerns`: UNSET in files
    of an older edgelung; `evaluation.concerns.run_concerns` then derives them. `folds`: role →
    figures of each fold, in a cross-validation only. There `test` is over all tiles, each predicted
    by the model that did not see its group; `val` is over the validation tiles of all folds;
    `temperature` is the median of the folds' temperatures. `members`: name → metrics of each model
    of a teacher that has several, or that guides beside tile features.
    """

    schema_version: int = METRICS_VERSION
    classes: list[str]
    teacher: ModelMetrics | UnsetType = UNSET
    baseline: ModelMetrics | UnsetType = UNSET
    student: ModelMetrics | UnsetType = UNSET
    unrepeatable: str | None = None
    concerns: list[Concern] | UnsetType = UNSET
    folds: dict[str, list[FoldMetrics]] | UnsetType = UNSET
    members: dict[str, ModelMetrics] | UnsetType = UNSET

    @property
    def models(self) -> dict[str, ModelMetrics]:
        """Metrics by role, in the order of training."""
        by_role = {"teacher": self.teacher, "baseline": self.baseline, "student": self.student}
        return {role: metrics for role, metrics in by_role.items() if metrics is not UNSET}

    @property
    def all_models(self) -> dict[str, ModelMetrics]:
        """Metrics by role, those of the teacher's models ('teacher/NAME') first."""
        members = {} if self.members is UNSET else self.members
        return {f"teacher/{name}": metrics for name, metrics in members.items()} | self.models


@dataclass(frozen=True)
class RunFolder:
    """A run folder: its paths, readers and writers.

    Readers raise EdgelungError that names the file, the fault, and what to do.
    """

    path: Path

    @property
    def config_path(self) -> Path:
        """run.json."""
        return self.path / RUN_CONFIG

    @property
    def split_path(self) -> Path:
        """split.csv."""
        return self.path / RUN_SPLIT

    @property
    def metrics_path(self) -> Path:
        """metrics.json."""
        return self.path / "metrics.json"

    @property
    def history_path(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        """report.html."""
        return self.path / REPORT_PAGE

    @property
    def checkpoint_path(self) -> Path:
        """state.pt."""
        return self.path / "state.pt"

    @property
    def lock_path(self) -> Path:
        """Lock file, held by the training process."""
        return self.path / "state.pt.lock"

    @property
    def soft_labels_path(self) -> Path:
        """teacher/soft_labels.safetensors."""
        return self.model_folder("teacher") / "soft_labels.safetensors"

    def model_folder(self, role: str) -> Path:
        """Folder of the model of a role; for the student the run folder itself."""
        return self.path if role == "student" else self.path / role

    def weights_path(self, role: str = "student") -> Path:
        """model.safetensors of a role."""
        return self.model_folder(role) / "model.safetensors"

    def model_config_path(self, role: str = "student") -> Path:
        """config.json of a role."""
        return self.model_folder(role) / "config.json"

    def predictions_path(self, role: str = "student") -> Path:
        """predictions.csv of a role."""
        return self.model_folder(role) / "predictions.csv"

    @property
    def is_finished(self) -> bool:
        """True once training, evaluation and report are done."""
        return self.metrics_path.is_file()

    def read_config(self) -> RunConfig:
        """Read run.json."""
        return typed_json.read(self.config_path, RunConfig, ANEW, SCHEMA_VERSION)

    def check_one_model(self) -> None:
        """Raise EdgelungError for a cross-validation: it has a model for each fold."""
        if self.config_path.is_file() and (folds := self.read_config().folds):
            raise EdgelungError(
                f"{self.path} is a cross-validation of {folds} folds, not one model; expected a "
                f"run: name that of one fold, such as {self.path / 'fold-1'}, or train one without "
                "--folds"
            )

    def check_split(self, config: RunConfig) -> None:
        """Raise EdgelungError if split.csv has changed since `config` was written."""
        try:
            unchanged = sha256_file(self.split_path) == config.split_sha256
        except OSError as error:
            raise EdgelungError(
                f"cannot read {self.split_path}: {error.strerror}; {ANEW}"
            ) from error
        if not unchanged:
            raise EdgelungError(
                f"{self.split_path} is not the one that the run was made with; restore it, or "
                "train again"
            )

    def write_split(self, rows: Iterable[SplitRow]) -> None:
        """Write split.csv."""
        header = ("path", "class", "group", "subset", "sha256")
        write_csv(
            self.split_path,
            header,
            ((row.path, row.label, row.group, row.subset, row.sha256) for row in rows),
        )

    def write_config(self, config: RunConfig) -> None:
        """Write run.json with the hash of the present split.csv."""
        content = typed_json.plain(config)
        assert isinstance(content, dict)
        sealed = {
            **content,
            "schema_version": SCHEMA_VERSION,
            "split_sha256": sha256_file(self.split_path),
        }
        typed_json.write(self.config_path, sealed)

    def read_split(self) -> list[SplitRow]:
        """The rows of split.csv."""
        try:
            with self.split_path.open(encoding="utf-8", newline="") as file:
                rows = [
                    SplitRow(row["path"], row["class"], row["group"], row["subset"], row["sha256"])
                    for row in map(raw_row, csv.DictReader(file))
                ]
        except (OSError, KeyError, ValueError) as error:
            raise EdgelungError(
                f"cannot read {self.split_path} ({one_line(error)}); "
                "expected path,class,group,subset,sha256"
            ) from error
        if wrong := next((row for row in rows if row.subset not in SUBSETS), None):
            raise EdgelungError(
                f"{self.split_path} has the subset {wrong.subset!r}; expected {', '.join(SUBSETS)}"
            )
        return rows

    def read_metrics(self) -> RunMetrics:
        """Read metrics.json."""
        return typed_json.read(self.metrics_path, RunMetrics, ANEW, METRICS_VERSION)

    def write_metrics(self, metrics: RunMetrics) -> None:
        """Write metrics.json, which marks the run as finished."""
        typed_json.write(self.metrics_path, metrics)

    def read_history(self) -> list[EpochRecord]:
        """The epochs so far, in order; an empty list before the first one."""
        try:
            text = self.history_path.read_text("utf-8") if self.history_path.exists() else ""
            return [
                typed_json.convert(typed_json.parse(line), EpochRecord)
                for line in text.splitlines()
            ]
        except (OSError, ValueError) as error:
            raise EdgelungError(
                f"cannot read {self.history_path}: {one_line(error)}; {ANEW}"
            ) from error

    def write_history(self, history: Iterable[EpochRecord]) -> None:
        """Write the whole metrics.jsonl."""
        with atomic_write(self.history_path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(typed_json.plain(record)) + "\n" for record in history)

    def read_model_config(self, role: str = "student") -> ModelConfig:
        """Read config.json of a role."""
        return typed_json.read(self.model_config_path(role), ModelConfig, ANEW)

    def write_model_config(self, config: ModelConfig, role: str = "student") -> None:
        """Write config.json of a role."""
        typed_json.write(self.model_config_path(role), config)

    def read_predictions(self, role: str = "student") -> RunPredictions:
        """Read predictions.csv of a role."""
        path = self.predictions_path(role)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(map(raw_row, csv.DictReader(file)))
            return from_rows(rows)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise EdgelungError(
                f"cannot read the predictions in {path}: {one_line(error)}; {ANEW}"
            ) from error

    def write_predictions(self, predictions: RunPredictions, role: str = "student") -> None:
        """Write predictions.csv of a role; probabilities with eight decimals."""
        header = ("path", "class", "group", "subset", *probability_columns(predictions.classes))
        rows = zip(
            predictions.paths,
            predictions.labels,
            predictions.groups,
            predictions.subsets,
            predictions.probabilities,
            strict=True,
        )
        write_csv(
            self.predictions_path(role),
            header,
            (
                (path, predictions.classes[label], group, subset, *(f"{p:.8f}" for p in values))
                for path, label, group, subset, values in rows
            ),
        )


def split_counts(rows: Sequence[SplitRow]) -> Counts:
    """Count tiles and groups by subset and class."""
    tiles = Counter((row.subset, row.label) for row in rows)
    groups = Counter(
        (subset, label) for subset, label, _ in {(row.subset, row.label, row.group) for row in rows}
    )
    labels = sorted({row.label for row in rows})
    return {
        subset: {
            label: SetSize(tiles=tiles[subset, label], groups=groups[subset, label])
            for label in labels
        }
        for subset in SUBSETS
    }


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file of a run atomically, with cells that a spreadsheet does not compute."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    write_safely(writer, [header])
    write_safely(writer, rows)
    with atomic_write(path, "w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
