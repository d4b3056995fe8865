"""The early exit of an INT8 variant: its head and its thresholds, from the engine's own features.

A linear head on the mean patch token, fitted on training groups; the whole model's accuracy comes
from groups that fitted nothing. Two bounds over groups give the confidence at which a tile leaves:
on the labels that change among the calibration tiles, and on the share of groups that are lost,
with the training groups among them, each predicted by a head that did not see its group
(docs/explanation/early-exit.md).
"""

import logging
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import ceil

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.bundle import graph_name
from edgelung.artifacts.manifest import EarlyExit
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import GraphBytes, Probabilities, Tiles
from edgelung.engines.exit_rule import ExitRule
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.evaluation.early_exit import (
    DECIMALS,
    changed_labels_bound,
    lost_groups_bound,
    lowest_confidence,
)
from edgelung.evaluation.known import fit_known, threshold_of
from edgelung.evaluation.metrics import Labels, fit_temperature
from edgelung.export.candidates import Candidate, SecondStage
from edgelung.export.graph import quantized_products
from edgelung.export.graph_stages import ExitHead
from edgelung.export.inputs import ExportInputs
from edgelung.export.linear_head import fit_head, softmax
from edgelung.export.parallel import map_in_order
from edgelung.export.plan import Plan
from edgelung.export.tiles import TileReader, TileSet

BLOCKS_PER_EXIT = 6  # the exit stands after a sixth of the blocks: 2 of 12
FIT_TILES = 16_384  # of the training tiles, evenly from all groups
FOLDS = 5  # of the training groups, each predicted by a head of the others
KNOWN = 0.95  # share of the calibration tiles that the score lets leave; the others continue
MAX_CHANGED = 0.005  # bound on the share of labels that leaving early changes
MAX_LOST = 0.02  # bound on the share of groups that it changes more than a tenth of

Features = npt.NDArray[np.float64]  # (N, D)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExitTiles:
    """Tiles at the exit: features (N, D), the labels (N,) that leaving must not change, groups."""

    features: Features
    labels: Labels
    groups: list[str]


def early_exit_candidate(
    plan: Plan,
    inputs: ExportInputs,
    temperature: float,
    kept_in_float: tuple[str, ...],
    reference: Probabilities,
    threshold: float,
) -> Candidate | None:
    """The INT8 variant with an early exit; None if too few groups could show that it is safe.

    Args:
        plan, temperature, kept_in_float: of the INT8 variant.
        inputs: the tiles.
        reference: what full precision predicts for the calibration tiles, (N, classes).
        threshold: scores above it are unknown in the INT8 variant.
    """
    kept, block = frozenset(kept_in_float), exit_block(plan)
    graph = plan.exit_features(block, kept).SerializeToString()
    train, calibration = inputs.train.every(FIT_TILES), inputs.calibration
    fitted = fit_exit(
        ExitTiles(exit_features(graph, train, inputs.reader), train.labels, train.groups),
        ExitTiles(
            exit_features(graph, calibration, inputs.reader),
            reference.argmax(axis=1),
            calibration.groups,
        ),
        block,
        threshold,
    )
    if fitted is None:
        return None
    head, rule = fitted
    first, second = plan.exit_stages(head, temperature, kept)
    after = second.SerializeToString()
    entry = EarlyExit(
        file=graph_name(Precision.INT8_EARLY_EXIT, stage=2),
        bytes=len(after),
        block=head.known.block,
        tokens=plan.student.tokens,
        width=plan.student.width,
        confidence=rule.confidence,
        known_up_to=rule.known_up_to,
        fitted_on=train.size,
        calibrated_on=calibration.size,
        max_changed_labels=MAX_CHANGED,
        max_lost_groups=MAX_LOST,
    )
    return Candidate(
        precision=Precision.INT8_EARLY_EXIT,
        graph=first.SerializeToString(),
        quantized_products=quantized_products(first) + quantized_products(second),
        calibration=plan.calibration,
        kept_in_float=kept_in_float,
        second=SecondStage(after, entry),
    )


def fit_exit(
    train: ExitTiles, calibration: ExitTiles, block: int, threshold: float
) -> tuple[ExitHead, ExitRule] | None:
    """Fit the head on training tiles, and the thresholds.

    Args:
        train: the training tiles.
        calibration: tiles that fitted neither the student nor the head.
        block: the exit stands after this block.
        threshold: of the whole model's score. A tile that leaves is never unknown, so its score has
            to be below that as well.

    Returns:
        None if the groups are too few to show that an early exit is safe.
    """
    known = fit_known(train.features, train.labels, block)
    logits = _cross_fitted(train)
    temperature = fit_temperature(logits, train.labels)
    head = fit_head(train.features, train.labels).at(temperature)

    limit = threshold_of(known.scores(calibration.features), calibration.groups, KNOWN)
    known_up_to = ceil(min(limit, threshold) * 10**DECIMALS) / 10**DECIMALS
    confidences, changes = [], []
    predicted = (head.probabilities(calibration.features), softmax(logits / temperature))
    for tiles, probabilities in zip((calibration, train), predicted, strict=True):
        may_leave = known.scores(tiles.features) <= known_up_to
        confidences.append(probabilities.max(axis=1))
        changes.append((probabilities.argmax(axis=1) != tiles.labels) & may_leave)
    by_labels = lowest_confidence(
        confidences[0], changes[0], changed_labels_bound(calibration.groups), MAX_CHANGED
    )
    by_groups = lowest_confidence(
        np.concatenate(confidences),
        np.concatenate(changes),
        lost_groups_bound([*calibration.groups, *train.groups]),
        MAX_LOST,
    )
    if by_labels is None or by_groups is None:
        return None
    logger.info(
        "early exit: confidence %.4f keeps changed labels, %.4f keeps lost groups within its bound",
        *(by_labels, by_groups),
    )
    rule = ExitRule(max(by_labels, by_groups), known_up_to)
    return ExitHead(head.weight, head.bias, known), rule


def exit_block(plan: Plan) -> int:
    """The block after which the exit stands, not behind the one that gives the score."""
    assert plan.student.known is not None
    return min(max(1, plan.student.depth // BLOCKS_PER_EXIT), plan.student.known.block)


def _cross_fitted(train: ExitTiles) -> Features:
    """Logits (N, classes), of each tile from a head that did not see its group."""
    x, labels = train.features, train.labels
    names, index = np.unique(train.groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[index] % FOLDS
    classes = int(labels.max()) + 1
    logits = np.zeros((len(x), classes))
    for number in range(FOLDS):
        own = fold == number
        if own.any() and not own.all():
            logits[own] = fit_head(x[~own], labels[~own], classes).logits(x[own])
    return logits


def exit_features(graph: bytes, tiles: TileSet, reader: TileReader) -> Features:
    """What the graph (`Plan.exit_features`) computes for the tiles, float64 (N, D)."""
    load = partial(OnnxRuntimeEngine, threads=available_cores())
    parts = []
    with (
        closing(load(GraphBytes(graph))) as engine,
        progress("features at the early exit", len(tiles)) as advance,
    ):

        def run(batch: Tiles) -> npt.NDArray[np.float32]:
            return engine.run(batch)[0]

        for part in map_in_order(run, reader.batches(tiles), engine.concurrency):
            parts.append(part)
            advance(len(part))
    return np.concatenate(parts).astype(np.float64)
