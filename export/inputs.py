"""Read everything that an export needs from the run folder, before any work is done."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelung.artifacts.run import RunConfig, RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.engines.base import Probabilities
from edgelung.export.scale import TileScale, resolve_scale
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import TileReader, TileSet, join_tiles, read_split, set_aside
from edgelung.tiles.reader import ReaderSpec

KNOWN = 0.99  # share of the validation tiles whose score is not above the threshold


@dataclass(frozen=True)
class ExportInputs:
    """What an export reads.

    Attributes:
        run: the run folder.
        config: its run.json.
        student: the trained model.
        reader: reads the tiles, and keeps the decoded ones that fit in memory.
        train, validation, test: the subsets of the split.
        calibration: validation tiles that calibrate; all of them if nothing is calibrated.
        gate: validation tiles that judge: the others, or all of them if nothing is calibrated.
        calibrates: an 8-bit variant or an early exit is wanted, which are calibrated.
        scale: how many micrometres a training tile is wide; None where nobody stated it.
        known: share of the validation tiles that the model shall know.
    """

    run: RunFolder
    config: RunConfig
    student: Student
    reader: TileReader
    train: TileSet
    validation: TileSet
    test: TileSet
    calibration: TileSet
    gate: TileSet
    calibrates: bool
    scale: TileScale | None
    known: float

    @property
    def known_sets(self) -> dict[str, TileSet]:
        """The sets that give the limits of a variant (`edgelung.export.known`), by name."""
        validation = self.gate
        if self.calibrates:
            validation = join_tiles([self.calibration, self.gate])
        return {"validation": validation, "gate": self.gate, "test": self.test}

    @property
    def judging_sets(self) -> dict[str, TileSet]:
        """The sets that evaluate variants, by name."""
        return {"gate": self.gate, "test": self.test}


def read_inputs(
    run: RunFolder,
    *,
    data: Path | None,
    calibrates: bool,
    calibration_tiles: int,
    tile_um: float | None = None,
    known: float = KNOWN,
) -> ExportInputs:
    """Read the run and its split; the tiles themselves are read later.

    Raises:
        EdgelungError: if the run cannot be read, or `tile_um` contradicts it.
    """
    student = read_student(run)
    reader = TileReader(ReaderSpec(size=student.size))
    config = run.read_config()
    scale = resolve_scale(config, tile_um)
    run.check_split(config)
    subsets = read_split(run, data or Path(config.data), student.classes)
    validation = subsets["val"]
    # If nothing is calibrated, all validation tiles can judge.
    calibration, gate = (
        set_aside(validation, calibration_tiles, config.seed)
        if calibrates
        else (validation, validation)
    )
    return ExportInputs(
        run=run,
        config=config,
        student=student,
        reader=reader,
        train=subsets["train"],
        validation=validation,
        test=subsets["test"],
        calibration=calibration,
        gate=gate,
        calibrates=calibrates,
        scale=scale,
        known=known,
    )


def trained_probabilities(
    run: RunFolder, tiles: TileSet, classes: tuple[str, ...]
) -> Probabilities:
    """What the trained model predicted for these tiles, float32 (N, classes).

    Raises:
        EdgelungError: if predictions.csv cannot be read, or lacks a tile or a class.
    """
    predictions = run.read_predictions()
    try:
        columns = [predictions.classes.index(name) for name in classes]
        row_of = {path: row for row, path in enumerate(predictions.paths)}
        rows = [row_of[path] for path in tiles.paths]
    except (KeyError, ValueError) as error:
        raise EdgelungError(
            f"{run.predictions_path()} has no prediction for a tile or a class of the split "
            f"({error}); expected the file that `edgelung train` wrote"
        ) from error
    return predictions.probabilities[np.ix_(rows, columns)].astype(np.float32)
