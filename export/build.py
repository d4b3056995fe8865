"""`edgelung export`: from a run to a bundle, with the evidence for each variant.

The steps, in the order of `export_run`: read the inputs, decode the tiles, prove the graph against
the trained model, fit the temperature, learn what training tiles look like, build and judge the
candidates, write the bundle.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from msgspec import UNSET, UnsetType

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.manifest import CrossValidation, Sensitivity
from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.core.files import new_folder
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.evaluation.gate import LIMITS, STRICT
from edgelung.evaluation.metrics import TEMPERATURES, fit_temperature
from edgelung.export.bundle_folder import write_bundle_folder
from edgelung.export.calibrate import AUTO, check_method, plan_int8
from edgelung.export.cross_validation import read_cross_validation
from edgelung.export.evaluate import MeasuredVariant, describe_proofs
from edgelung.export.graph import build_graph
from edgelung.export.inputs import KNOWN, ExportInputs, read_inputs, trained_probabilities
from edgelung.export.known import learn_known
from edgelung.export.plan import Plan
from edgelung.export.predict import predict
from edgelung.export.recalibrate import SiteTiles, recalibrate
from edgelung.export.select import Refine
from edgelung.export.target import Goal, choose_target
from edgelung.export.variants import VariantMaker, prepare_variants

# Largest difference of a probability between the trained torch model and the exported FP32 graph.
TORCH_TOLERANCE = 1e-3
CALIBRATION_TILES = 512  # NVIDIA advises 500 or more
EIGHT_BIT = frozenset(p for p in Precision if p.about.weights in ("int8", "fp8"))

logger = logging.getLogger(__name__)


def export_run(
    run: Path,
    out: Path,
    *,
    precisions: frozenset[Precision] = frozenset(),
    qat: bool = False,
    data: Path | None = None,
    calibration: str = AUTO,
    calibration_tiles: int = CALIBRATION_TILES,
    strict: bool = False,
    tile_um: float | None = None,
    known: float = KNOWN,
    site: SiteTiles | None = None,
    cross_validation: Path | None = None,
    goal: Goal | None = None,
) -> Bundle:
    """Write the bundle of a finished run; returns it opened and verified.

    Args:
        run: the run folder.
        out: the bundle folder, which must be new.
        precisions: the variants beside full precision, which is always there. INT8 comes on an FP32
            and on an FP16 base, whichever is named. One with an early exit brings the one without.
        qat: where INT8 does not pass, train it on the training tiles (`edgelung.export.qat`, which
            needs torch).
        data: the folder of the tiles, if it has moved.
        calibration: 'auto' or one of `calibrate.METHODS`.
        calibration_tiles: about how many validation tiles calibrate: whole groups, at most half of
            them. All others judge.
        strict: demand 99.9 % of the balanced accuracy of full precision instead of 99 %.
        tile_um: side of a training tile in micrometres, for a run that does not state it.
        known: share of the validation tiles that the model shall know, averaged over groups; the
            others are as far from the training tiles as what it reports as unknown.
        site: labelled tiles that give the temperature in place of the validation tiles.
        cross_validation: what `edgelung train --folds` wrote, for the model card.
        goal: the speed for which a variant is chosen; see `target.choose_target`.

    Raises:
        EdgelungError: if the run or its tiles cannot be read, or the graph does not reproduce the
            trained model. Nothing is written then.
    """
    check_method(calibration)
    new_folder(out, "bundle")
    inputs = read_inputs(
        RunFolder(run),
        data=data,
        calibrates=bool(precisions - {FULL_PRECISION, Precision.FP16}),
        calibration_tiles=calibration_tiles,
        tile_um=tile_um,
        known=known,
    )
    folds = _folds(cross_validation, inputs)
    refine = _training(inputs) if qat else None
    site_tiles = site.read(inputs.student.classes) if site else None
    inputs.reader.keep(inputs.validation, "decode validation tiles")
    inputs.reader.keep(inputs.test, "decode test tiles")
    temperature = fit_graph_temperature(inputs)
    recalibrated = recalibrate(inputs, site_tiles, temperature) if site_tiles else None
    if recalibrated:
        temperature = recalibrated.temperature_after
    student = learn_known(inputs.student, inputs.train, inputs.reader)
    inputs = replace(inputs, student=student)
    maker = prepare_variants(inputs, temperature, STRICT if strict else LIMITS)
    variants, ranking = _make_variants(maker, precisions, calibration, refine)
    bundle = write_bundle_folder(
        out,
        inputs,
        temperature,
        variants,
        ranking,
        recalibrated=recalibrated,
        folds=folds,
        target=choose_target(goal, variants, inputs) if goal else UNSET,
    )
    _log_proofs(inputs, variants)
    return bundle


def _folds(cross_validation: Path | None, inputs: ExportInputs) -> CrossValidation | UnsetType:
    if cross_validation is None:
        return UNSET
    return read_cross_validation(cross_validation, inputs.run, inputs.student.classes)


def _log_proofs(inputs: ExportInputs, variants: Sequence[MeasuredVariant]) -> None:
    logger.info(
        "%d tiles were read %d times. Checked: %s",
        *(inputs.reader.distinct_tiles, inputs.reader.decodes),
        describe_proofs(variants, len(inputs.validation)),
    )


def fit_graph_temperature(inputs: ExportInputs) -> float:
    """Prove the graph against the trained model, then fit the temperature.

    Both use the probabilities that the FP32 graph predicts for all validation tiles.

    Raises:
        EdgelungError: if they differ from those of the trained model.
    """
    graph = build_graph(inputs.student).SerializeToString()
    output = predict(graph, inputs.validation, inputs.reader, "validation")
    probabilities = output.probabilities
    expected = trained_probabilities(inputs.run, inputs.validation, inputs.student.classes)
    difference = float(np.abs(probabilities - expected).max())
    if not difference <= TORCH_TOLERANCE:
        raise EdgelungError(
            f"the exported graph does not reproduce the trained model: probabilities of the "
            f"validation tiles differ by up to {difference:.3g} (allowed {TORCH_TOLERANCE:g}); "
            "nothing was written. The run's weights and predictions.csv may not belong together"
        )
    logits = np.log(np.maximum(probabilities, 1e-30))
    temperature = fit_temperature(logits, inputs.validation.labels)
    logger.info("temperature %.3f from %d validation tiles", temperature, len(inputs.validation))
    if min(abs(np.log(temperature) - np.log(TEMPERATURES))) < 1e-3:
        logger.info("the temperature is at its bound: %s", _why_at_bound(temperature))
    return temperature


def _why_at_bound(temperature: float) -> str:
    if temperature < 1:
        return "the student is right far more often than its confidence says, so do not rely on it"
    return "the student is wrong far more often than its confidence says, so do not rely on it"


def _make_variants(
    maker: VariantMaker, precisions: frozenset[Precision], method: str, refine: Refine | None
) -> tuple[list[MeasuredVariant], Sensitivity | None]:
    """The variants in the order of the bundle, and the sensitivity of INT8 if that is one."""
    inputs, variants = maker.inputs, [maker.full_precision]
    ranking = plan = None
    if precisions & EIGHT_BIT:
        plan = plan_int8(inputs.student, inputs.calibration, inputs.reader, method)
    if precisions & {Precision.FP16, Precision.FP16_EARLY_EXIT}:
        variants += maker.fp16(plan, early_exit=Precision.FP16_EARLY_EXIT in precisions)
    if plan:
        _log_plan(plan)
        if precisions & EIGHT_BIT - {Precision.FP8}:
            early_exit = Precision.INT8_EARLY_EXIT in precisions
            eight_bit, ranking = maker.int8(plan, refine, early_exit=early_exit)
            variants += eight_bit
        if Precision.FP8 in precisions:
            variants.append(maker.fp8(plan))
    order = list(Precision)
    return sorted(variants, key=lambda variant: order.index(variant.precision)), ranking


def _log_plan(plan: Plan) -> None:
    """Log what calibration decided, and warn about few tiles."""
    record = plan.calibration
    logger.info(
        "calibration %s on %d tiles in %d groups, %d scale migrations%s",
        *(record.method, record.tiles, record.groups, len(record.migration_strength)),
        ", biases corrected" if record.bias_correction else "",
    )
    if record.tiles < CALIBRATION_TILES:
        logger.info(
            "calibrated on %d tiles; %d or more are advised: ranges of fewer tiles may clip "
            "activations of other slides, and the choice of the method is noisier",
            *(record.tiles, CALIBRATION_TILES),
        )


def _training(inputs: ExportInputs) -> Refine:
    """Return the function that trains a plan on the training tiles.

    Raises:
        EdgelungError: if torch or the training tiles are missing: before any work is done.
    """
    try:
        from edgelung.export.qat import refine  # imports torch, so only where it is asked for
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"--qat needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error
    train, reader = inputs.train, inputs.reader
    if not len(train):
        raise EdgelungError("--qat trains on the run's training tiles; its split.csv has none")
    reader.read(train.every(1))  # raises if they are gone
    return lambda plan: refine(plan, train, inputs.calibration, reader)
