"""`edgelung export --recalibrate`: the temperature from a site's labelled tiles.

Half of the site's groups fit the temperature, the other half measures the calibration error before
and after. The weights and the labels do not change: the most probable class stays the same.
"""

import logging
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgelung.artifacts.manifest import Recalibration
from edgelung.artifacts.results import SetSize
from edgelung.core.errors import EdgelungError
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import GraphBytes
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.evaluation.external import Flags, LabelledTiles
from edgelung.evaluation.intervals import calibration_estimate
from edgelung.evaluation.metrics import Labels, at_temperature, fit_temperature
from edgelung.export.graph import build_graph
from edgelung.export.inputs import ExportInputs
from edgelung.export.tiles import BATCH
from edgelung.inference.evaluate import predict_labelled
from edgelung.inference.labelled import LabelledFiles, labelled_files
from edgelung.inference.record import LabelRule
from edgelung.tiles.names import printable

MIN_GROUPS = 10  # five to fit and five to measure; fewer say nothing about other sources

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteTiles:
    """The labelled tiles of the site: a folder, and a list of their groups."""

    folder: Path
    groups: Path | None = None

    def read(self, classes: tuple[str, ...]) -> LabelledFiles:
        """Find the tiles.

        Raises:
            EdgelungError: as `labelled_files` does, and if there are fewer than MIN_GROUPS groups.
        """
        found = labelled_files(self.folder, classes, self.groups)
        groups = {one.group for one in found.files}
        if len(groups) < MIN_GROUPS:
            raise EdgelungError(
                f"{self.folder} holds {len(groups)} groups; --recalibrate needs {MIN_GROUPS}, half "
                "of them to fit and half to measure: label tiles of more sources"
            )
        return found


def recalibrate(inputs: ExportInputs, found: LabelledFiles, before: float) -> Recalibration:
    """Fit the temperature on half of the site's groups, and measure it on the others.

    Args:
        inputs: of the export.
        found: the site's tiles.
        before: the temperature that the validation tiles gave.

    Raises:
        EdgelungError: if a tile cannot be read.
    """
    tiles = _predict(inputs, found)
    fits = choose_groups(tiles, inputs.config.seed)
    probabilities, truth = tiles.probabilities, tiles.truth
    logits = np.log(np.maximum(probabilities, 1e-30))
    after = fit_temperature(logits[fits], truth[fits])
    own = ~fits
    groups = tiles.groups_of(own)
    scaled = [at_temperature(probabilities[own], one) for one in (before, after)]
    record = Recalibration(
        fitted_on=_size(tiles, fits),
        measured_on=_size(tiles, own),
        grouped=found.grouped,
        temperature_before=before,
        temperature_after=after,
        error_before=calibration_estimate(scaled[0], truth[own], groups),
        error_after=calibration_estimate(scaled[1], truth[own], groups),
        change=calibration_estimate(scaled[1], truth[own], groups, before=scaled[0]),
    )
    _log(record)
    return record


def choose_groups(tiles: LabelledTiles, seed: int) -> Flags:
    """Which tiles fit the temperature: half of the groups of each class, drawn at random.

    A group of several classes counts as one of its first tile's class.
    """
    names, first = np.unique(tiles.groups, return_index=True)
    label: Labels = tiles.truth[first]
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    seen = 0
    for index in np.unique(label):
        own = rng.permutation(names[label == index])
        seen += len(own)
        chosen += own[: seen // 2 - len(chosen)].tolist()  # half of all groups so far
    flags: Flags = np.isin(tiles.groups, chosen)
    return flags


def _predict(inputs: ExportInputs, found: LabelledFiles) -> LabelledTiles:
    """What the full-precision graph says about the tiles at temperature 1.

    Raises EdgelungError if a tile cannot be read.
    """
    graph = build_graph(inputs.student).SerializeToString()
    load = partial(OnnxRuntimeEngine, threads=available_cores())
    with (
        closing(load(GraphBytes(graph))) as engine,
        progress("tiles of the site", len(found.files)) as advance,
    ):
        tiles = predict_labelled(
            found,
            engine,
            inputs.reader.spec,
            len(inputs.student.classes),
            LabelRule(),
            batch_size=BATCH,
            threads=available_cores(),
            advance=advance,
        )
    if failed := np.flatnonzero(~tiles.predicted).tolist():
        raise EdgelungError(
            f"{len(failed)} of {len(found.files)} tiles of --recalibrate cannot be read, "
            f"{printable(found.files[failed[0]].file.path)} for one "
            f"({tiles.statuses[failed[0]]}); repair or remove them"
        )
    return tiles


def _size(tiles: LabelledTiles, flags: Flags) -> SetSize:
    return SetSize(tiles=int(flags.sum()), groups=len(set(tiles.groups_of(flags))))


def _log(record: Recalibration) -> None:
    logger.info(
        "recalibrated: temperature %.3f → %.3f from %d tiles in %d groups; calibration error on "
        "%d other groups %.4f → %.4f",
        *(record.temperature_before, record.temperature_after),
        *(record.fitted_on.tiles, record.fitted_on.groups, record.measured_on.groups),
        *(record.error_before.value, record.error_after.value),
    )
    if record.change.interval is None or record.change.interval[1] > 0:
        logger.info(
            "the other groups do not show that the calibration error is smaller now: label tiles "
            "of more sources"
        )
    if not record.grouped:
        logger.info(
            "without --recalibrate-groups every tile counts as its own group: the error after is "
            "too small if tiles of one slide are in both halves"
        )
