"""Write the bundle folder, once, from measured variants."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType, structs

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.bundle import (
    GOLDEN_FOLDER,
    MODEL_CARD,
    REPORT,
    Bundle,
    open_bundle,
    write_bundle,
)
from edgelung.artifacts.manifest import (
    BundleManifest,
    CrossValidation,
    GoldenEntry,
    KnownTissue,
    Provenance,
    Recalibration,
    Sensitivity,
    Target,
)
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.class_names import composed
from edgelung.core.files import atomic_folder, sha256_file
from edgelung.core.typed_json import Json
from edgelung.evaluation.concerns import bundle_concerns
from edgelung.evaluation.shares import share_of
from edgelung.export.evaluate import MeasuredVariant
from edgelung.export.inputs import ExportInputs
from edgelung.export.known import FIT_TILES
from edgelung.export.tiles import read_checked
from edgelung.report.pages import bundle_page, model_card
from edgelung.report.variants import variant_figures
from edgelung.tiles.sizes import frequent

GOLDEN_PER_CLASS = 3
GOLDEN_PER_STAGE = 3  # of a variant with an early exit, at least
GOLDEN_CANDIDATES = 16  # per class, of which the least certain are taken


def write_bundle_folder(
    out: Path,
    inputs: ExportInputs,
    temperature: float,
    variants: Sequence[MeasuredVariant],
    sensitivity: Sensitivity | None,
    *,
    recalibrated: Recalibration | None,
    folds: CrossValidation | UnsetType,
    target: Target | UnsetType = UNSET,
) -> Bundle:
    """Write everything into a temporary folder beside `out`, and rename it to `out`.

    `variants`: full precision first. `recalibrated`: how the temperature was fitted on a site.
    `folds`: what a cross-validation says of the recipe. `target`: the variant for a target speed.
    """
    indices = choose_golden(inputs.gate.labels, variants[0].probabilities["gate"])
    indices = _of_both_stages(indices, variants)
    golden = _golden_entries(inputs, variants, indices)
    manifest = BundleManifest(
        name=f"{inputs.student.architecture} of {inputs.run.path.name}",
        notice=RESEARCH_USE_ONLY,
        classes=[composed(name) for name in inputs.student.classes],
        preprocessing=inputs.reader.spec.to_json(),
        temperature=temperature,
        variants={variant.precision: variant.entry for variant in variants},
        sensitivity=sensitivity,
        golden=golden,
        known=_known(inputs, variants[0]),
        recalibrated=recalibrated,
        cross_validation=folds,
        target=target,
        tile_sizes=frequent(inputs.config.sizes.items()),
        tile_um=inputs.scale.tile_um if inputs.scale else UNSET,
        provenance=_provenance(inputs, variants),
    )
    concerns = bundle_concerns(manifest, inputs.config.counts["test"])
    manifest = structs.replace(manifest, concerns=concerns)
    pictures = variant_figures(
        {variant.precision: variant.probabilities for variant in variants},
        {name: tiles.labels for name, tiles in inputs.judging_sets.items()},
        {name: tiles.paths for name, tiles in inputs.judging_sets.items()},
        inputs.student.classes,
        lambda path: _pixels(inputs, path),
    )
    with atomic_folder(out) as folder:
        for variant in variants:
            candidate = variant.evaluation.candidate
            (folder / variant.entry.file).write_bytes(candidate.graph)
            if candidate.second is not None:
                (folder / candidate.second.entry.file).write_bytes(candidate.second.graph)
        (folder / GOLDEN_FOLDER).mkdir()
        for entry, tile in zip(golden, inputs.gate.take(indices).tiles, strict=True):
            (folder / entry.file).write_bytes(read_checked(inputs.gate.data, tile))
        (folder / REPORT).write_text(bundle_page(manifest, pictures), encoding="utf-8")
        (folder / MODEL_CARD).write_text(model_card(manifest), encoding="utf-8")
        write_bundle(folder, manifest)
        open_bundle(folder, OWN_WORK)  # what `infer` would refuse is not kept
    return open_bundle(out, OWN_WORK)


def choose_golden(
    labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32]
) -> list[int]:
    """Choose the golden tiles among the gate tiles: indices, by class.

    The least certain of a handful per class: a probability near 1 would hide a wrong engine.

    Args:
        labels: int64 (N,).
        probabilities: float32 (N, classes), of full precision.
    """
    indices: list[int] = []
    for label in range(probabilities.shape[1]):
        own = np.flatnonzero(labels == label)
        some = own[:: max(1, len(own) // GOLDEN_CANDIDATES)][:GOLDEN_CANDIDATES]
        confidence = probabilities[some].max(axis=1)
        indices += some[confidence.argsort()[:GOLDEN_PER_CLASS]].tolist()
    return indices


def _of_both_stages(indices: list[int], variants: Sequence[MeasuredVariant]) -> list[int]:
    """The golden tiles, with some that leave at each early exit and some that do not.

    Without tiles about which two runtimes disagree much: those are at the edge of leaving.
    """
    with_exit = [v for v in variants if v.outputs["gate"].stage is not None]
    if not with_exit:
        return indices
    steady = np.logical_and.reduce([_is_steady(variant) for variant in with_exit])
    kept = [index for index in indices if steady[index]]
    for variant in with_exit:
        output = variant.outputs["gate"]
        assert output.stage is not None
        confidence = output.probabilities.max(axis=1)
        for stage in (1, 2):
            own = np.flatnonzero(steady & (output.stage == stage))
            own = own[confidence[own].argsort(kind="stable")]
            missing = GOLDEN_PER_STAGE - sum(output.stage[index] == stage for index in kept)
            # From the middle: the least certain tiles that leave are at the edge of leaving.
            middle = [int(index) for index in own[len(own) // 2 :] if index not in kept]
            kept += middle[: max(0, missing)]
    return kept


def _is_steady(variant: MeasuredVariant) -> npt.NDArray[np.bool_]:
    """True for the gate tiles about which two runtimes agree (N,); all, if only one was there."""
    probabilities, other = variant.outputs["gate"].probabilities, variant.evaluation.in_openvino
    if other is None:
        return np.ones(len(probabilities), bool)
    difference = np.abs(probabilities - other.probabilities).max(axis=1)
    return np.asarray(difference < variant.precision.about.golden_tolerance / 2)


def _golden_entries(
    inputs: ExportInputs, variants: Sequence[MeasuredVariant], indices: Sequence[int]
) -> list[GoldenEntry]:
    entries = []
    for number, index in enumerate(indices):
        tile = inputs.gate.tiles[index]
        entries.append(
            GoldenEntry(
                file=f"{GOLDEN_FOLDER}/{number:02d}{Path(tile.path).suffix.lower()}",
                label=composed(inputs.student.classes[tile.label]),
                probabilities={
                    variant.precision: variant.probabilities["gate"][index].tolist()
                    for variant in variants
                },
                ood={
                    variant.precision: float(score[index])
                    for variant in variants
                    if (score := variant.outputs["gate"].ood) is not None
                },
            )
        )
    return entries


def _known(inputs: ExportInputs, full_precision: MeasuredVariant) -> KnownTissue | None:
    """How the bundle tells unknown tissue; None if the graphs have no score."""
    known, variant = inputs.student.known, full_precision.entry.known
    score = full_precision.outputs["validation"].ood
    if known is None or variant is None or score is None:
        return None
    return KnownTissue(
        score="mahalanobis, mean patch token",
        block=known.block,
        fitted_on=inputs.train.every(FIT_TILES).size,
        known=inputs.known,
        validation=share_of(score <= variant.threshold, inputs.known_sets["validation"].groups),
    )


def _pixels(inputs: ExportInputs, path: str) -> npt.NDArray[np.uint8]:
    """The pixels of a gate or test tile, uint8 (H, W, 3)."""
    for tiles in inputs.judging_sets.values():
        if path in (paths := tiles.paths):
            pixels: npt.NDArray[np.uint8] = inputs.reader.read(tiles.take([paths.index(path)]))[0]
            return pixels
    raise KeyError(path)


def _provenance(inputs: ExportInputs, variants: Sequence[MeasuredVariant]) -> Provenance:
    sets = {
        "train": inputs.train.size,
        "val": inputs.validation.size,
        "test": inputs.test.size,
        "gate, of val": inputs.gate.size,
    }
    calibrated = [entry.calibration for v in variants if (entry := v.entry).calibration]
    eight_bits = None
    if inputs.calibrates:
        sets["calibration, of val"] = inputs.calibration.size
    if calibrated:
        eight_bits = (
            f"inputs of the linears, symmetric ({calibrated[0].method}), weights per output "
            "channel, scales migrated from LayerNorm and values into the next linear; on an FP32 "
            "base queries and keys too"
        )
    return Provenance(
        edgelung=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=inputs.run.path.name,
        student=inputs.student.architecture,
        weights_sha256=sha256_file(inputs.run.weights_path()),
        split_sha256=sha256_file(inputs.run.split_path),
        groups=inputs.config.groups,
        split=inputs.config.split,
        recipe=_without_folders(inputs.config.recipe),
        sets=sets,
        eight_bits=eight_bits,
        tile_um_stated_to=inputs.scale.stated_to if inputs.scale else UNSET,
        origins=inputs.config.origins,
    )


def _without_folders(values: dict[str, Json]) -> dict[str, Json]:
    """A recipe with files by name only: a bundle leaves the computer that it was made on."""
    return {
        key: _without_folders(value)
        if isinstance(value, dict)
        else Path(value).name
        if key in ("weights", "features")
        else value
        for key, value in values.items()
    }
