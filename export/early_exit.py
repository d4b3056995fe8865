"""The early exit of a variant: its head and its thresholds, from the engine's own features.

A linear head on the mean patch token, fitted on training groups; the whole model's accuracy comes
from groups that fitted nothing. Two bounds over groups give the confidence at which a tile leaves:
on the labels that change among the calibration tiles, and on the share of groups that are lost,
with the training groups among them, each predicted by a head that did not see its group
(docs/explanation/early-exit.md). If several blocks are possible, the exit stands after the
one that spares the calibration tiles most work.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.bundle import graph_name
from edgelung.artifacts.manifest import Calibration, EarlyExit
from edgelung.artifacts.run import RunConfig
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import GraphBytes, Probabilities
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
from edgelung.export.eight_bit import Array
from edgelung.export.graph import quantized_products
from edgelung.export.graph_stages import ExitHead, build_exit_features, build_exit_stages
from edgelung.export.inputs import ExportInputs
from edgelung.export.linear_head import LinearHead, fit_head, softmax
from edgelung.export.parallel import map_in_order
from edgelung.export.plan import Plan
from edgelung.export.student import Student
from edgelung.export.tiles import TileReader, TileSet

BLOCKS_PER_EXIT = 6  # an exit that was not trained stands after a sixth of the blocks: 2 of 12
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


@dataclass(frozen=True)
class ExitBase:
    """The variant that gets an early exit, as its graph is written (see `graph.build_graph`).

    Attributes:
        precision: of the variant with the exit.
        student: its weights.
        scales, means, calibration, kept_in_float: of an INT8 variant.
        peak: largest |activation| of full precision; None if the base is FP32.
    """

    precision: Precision
    student: Student
    scales: Mapping[str, float] = field(default_factory=dict)
    means: Mapping[str, Array] = field(default_factory=dict)
    calibration: Calibration | None = None
    kept_in_float: tuple[str, ...] = ()
    peak: float | None = None


def int8_base(plan: Plan, kept_in_float: tuple[str, ...]) -> ExitBase:
    """The INT8 variant of a plan."""
    return ExitBase(
        Precision.INT8_EARLY_EXIT,
        plan.student,
        plan.scales_without(frozenset(kept_in_float)),
        plan.means,
        plan.calibration,
        kept_in_float,
    )


def early_exit_candidate(
    base: ExitBase,
    inputs: ExportInputs,
    temperature: float,
    reference: Probabilities,
    threshold: float,
) -> Candidate | None:
    """A variant with an early exit; None if too few groups could show that it is safe.

    Args:
        base, temperature: of the variant without it.
        inputs: the tiles.
        reference: what full precision predicts for the calibration tiles, (N, classes).
        threshold: scores above it are unknown in the variant without it.
    """
    student, scales, means, precision = base.student, base.scales, base.means, base.precision
    blocks = exit_blocks(student, trained_exits(inputs.config))
    features = build_exit_features(student, blocks, scales, means, precision)
    graph = features.SerializeToString()
    train, calibration = inputs.train.every(FIT_TILES), inputs.calibration
    at_train = exit_features(graph, train, inputs.reader)
    at_calibration = exit_features(graph, calibration, inputs.reader)
    predicted = reference.argmax(axis=1)
    candidates = {
        block: (
            ExitTiles(at_train[i], train.labels, train.groups),
            ExitTiles(at_calibration[i], predicted, calibration.groups),
        )
        for i, block in enumerate(blocks)
    }
    fitted = cheapest_exit(candidates, student.depth, threshold)
    if fitted is None:
        return None
    head, rule = fitted
    first, second = build_exit_stages(student, head, temperature, scales, means, precision)
    after = second.SerializeToString()
    entry = EarlyExit(
        file=graph_name(precision, stage=2),
        bytes=len(after),
        block=head.known.block,
        tokens=student.tokens,
        width=student.width,
        confidence=rule.confidence,
        known_up_to=rule.known_up_to,
        fitted_on=train.size,
        calibrated_on=calibration.size,
        max_changed_labels=MAX_CHANGED,
        max_lost_groups=MAX_LOST,
    )
    return Candidate(
        precision=precision,
        graph=first.SerializeToString(),
        quantized_products=quantized_products(first) + quantized_products(second),
        peak=base.peak,
        calibration=base.calibration,
        kept_in_float=base.kept_in_float,
        second=SecondStage(after, entry),
    )


def cheapest_exit(
    candidates: Mapping[int, tuple[ExitTiles, ExitTiles]], depth: int, threshold: float
) -> tuple[ExitHead, ExitRule] | None:
    """The exit that spares most work, of those that the groups show to be safe.

    Every exit keeps the same bounds, so they differ in work alone: the blocks that a calibration
    tile passes on average. These tiles gave the thresholds too, so the gate, which judges the one
    exit that is chosen, is what proves it.

    Args:
        candidates: by block, training and calibration tiles as for `fit_exit`.
        depth: number of blocks.
        threshold: see `fit_exit`.
    """
    best, least = None, float("inf")
    for block, (train, calibration) in candidates.items():
        fitted = fit_exit(train, calibration, block, threshold)
        if fitted is None:
            continue
        head, rule = fitted
        x = calibration.features
        answers = LinearHead(head.weight, head.bias).probabilities(x), head.known.scores(x)
        continues = 1 - float(rule.leaves(*(a.astype(np.float32) for a in answers)).mean())
        work = block + continues * (depth - block)
        logger.info(
            "early exit after block %d: %.0f %% of the calibration tiles continue, %.1f of %d "
            "blocks for a tile",
            *(block, 100 * continues, work, depth),
        )
        if work < least:
            best, least = fitted, work
    return best


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


def exit_blocks(student: Student, trained: Sequence[int] = ()) -> list[int]:
    """The blocks after which the exit may stand, ascending, none behind that of the score.

    A sixth of the blocks, and those with exits that were trained.
    """
    assert student.known is not None
    usual = min(max(1, student.depth // BLOCKS_PER_EXIT), student.known.block)
    return sorted({usual, *(block for block in trained if 1 <= block <= student.known.block)})


def trained_exits(config: RunConfig) -> list[int]:
    """The blocks after which the recipe of a run trained an exit."""
    student = config.recipe.get("student")
    blocks = student.get("exits") if isinstance(student, dict) else None
    return [b for b in blocks if isinstance(b, int)] if isinstance(blocks, list) else []


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


def exit_features(graph: bytes, tiles: TileSet, reader: TileReader) -> list[Features]:
    """What the graph of `build_exit_features` computes for the tiles, float64 (N, D) each."""
    load = partial(OnnxRuntimeEngine, threads=available_cores())
    parts = []
    with (
        closing(load(GraphBytes(graph))) as engine,
        progress("features at the early exit", len(tiles)) as advance,
    ):
        for part in map_in_order(engine.run, reader.batches(tiles), engine.concurrency):
            parts.append(part)
            advance(len(part[0]))
    return [np.concatenate(of_one).astype(np.float64) for of_one in zip(*parts, strict=True)]
