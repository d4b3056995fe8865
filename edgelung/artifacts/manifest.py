"""bundle.json as types: classes, preprocessing, variants with gate results, provenance, hashes.

`edgelung.artifacts.bundle` reads and writes it.
"""

import sys
from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

from edgelung.artifacts.results import (
    Concern,
    Estimate,
    GateResult,
    LostGroups,
    SetSize,
    Share,
    VariantTest,
)
from edgelung.core.typed_json import Json
from edgelung.tiles.physical_size import MAX_TILE_UM, MIN_TILE_UM

SCHEMA_VERSION = 1

Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]  # so neither NaN nor infinity


class MethodScore(Struct, frozen=True, kw_only=True):
    """Loss of a calibration method on the tiles that compare the methods."""

    flipped: int
    mean_probability_difference: float


class QatRecord(Struct, frozen=True, kw_only=True):
    """Quantization-aware training of a variant: tiles used, loss at the start and at the end."""

    tiles: int
    loss_before: float
    loss_after: float


class Calibration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the 8-bit ranges of a variant were chosen.

    `asked` is the requested method, `method` the one that was used. `scores` holds the loss of each
    method on `scored_tiles` of the calibration tiles. `migration_strength`: SmoothQuant's α of each
    operation whose scale was migrated.
    """

    asked: str
    method: str
    tiles: int
    groups: int
    scores: dict[str, MethodScore]
    scored_tiles: int
    bias_correction: bool
    migration_strength: dict[str, float]
    qat: QatRecord | None = None


class PartSensitivity(Struct, frozen=True, kw_only=True):
    """Divergence of the output if only this part is in INT8, or all but this part; nats."""

    name: str
    linears: list[str]
    alone: float
    all_but: float


class Sensitivity(Struct, frozen=True, kw_only=True):
    """Divergence caused by INT8, most harmful part first; nats, mean over `tiles` tiles."""

    everything: float = field(name="all")
    linears: list[PartSensitivity]
    blocks: list[PartSensitivity]
    tiles: int


class KnownVariant(Struct, frozen=True, kw_only=True):
    """How a variant tells tissue that the model was not made for.

    `threshold`: higher scores are unknown. `known_on_test`: share of the test tiles that are not
    above. `rank_correlation` (Spearman) and `same_verdict`: with full precision, on the tiles of
    the gate; None for full precision itself.
    """

    threshold: float
    known_on_test: Share | None
    rank_correlation: float | None = None
    same_verdict: float | None = None


class SetRule(Struct, frozen=True, kw_only=True):
    """Prediction sets of one coverage: classes of at least `level`, and always the most probable.

    `coverage_on_test`: share of the test tiles whose class is in the set. `mean_size`: of the sets
    of the test tiles. Both None without test tiles.
    """

    level: float
    coverage_on_test: Share | None
    mean_size: float | None


class EarlyExit(Struct, frozen=True, kw_only=True):
    """The early exit of a variant whose model is two graphs (`edgelung.engines.early_exit`).

    `file`, `bytes`: the second graph. `block`: the first graph ends after this block, counted from
    1, and hands on `tokens` tokens of `width` channels. `confidence`, `known_up_to`: a tile leaves
    if its largest probability there is at least this, and its score there not above this.
    `fitted_on`: training tiles of the exit. `calibrated_on`: validation tiles that gave both
    limits. `max_changed_labels`, `max_lost_groups`: the bounds that `confidence` keeps there, on
    the share of labels that change, and of groups in which more than a tenth do. `left`: share of
    the tiles that left, by set ('gate', 'test'). `groups`: the groups in which labels changed, by
    set.
    """

    file: str
    bytes: int
    block: int
    tokens: int
    width: int
    confidence: float
    known_up_to: float
    fitted_on: SetSize
    calibrated_on: SetSize
    max_changed_labels: float
    max_lost_groups: float
    left: dict[str, Share] = {}
    groups: dict[str, LostGroups] = {}


class VariantEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One variant: its file, how it was made, and the evidence for it.

    `kept_in_float`: parts that stay in floating point because the gate failed with them in INT8.
    `tiles_per_second`: speed of the network alone, by CPU engine, on the exporting machine.
    `known`, `sets`: None and empty in bundles of an older edgelung. `sets` is keyed by coverage.
    `early_exit`: None for a model of one graph.
    """

    file: str
    bytes: int
    base: str
    meant_for: str
    quantized_linears: int
    judged_by: str
    tiles_per_second: dict[str, float]
    gate: GateResult
    kept_in_float: list[str] | None = field(name="given_back", default=None)
    calibration: Calibration | None = None
    test: VariantTest | None = None
    known: KnownVariant | None = None
    sets: dict[str, SetRule] = {}
    early_exit: EarlyExit | None = None


class GoldenEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A golden tile: its file, its class, and by variant its probabilities and its score."""

    file: str
    label: str = field(name="class")
    probabilities: dict[str, list[float]]
    ood: dict[str, float] = {}


class KnownTissue(Struct, frozen=True, kw_only=True):
    """How the bundle tells tissue that the model was not made for.

    `block`: the score is the distance of the mean patch token after this block. `fitted_on`: the
    training tiles that it measures the distance from. `known`: share of the validation tiles that
    the threshold lets pass, averaged over groups. `validation`: what it let pass, with its
    interval over groups.
    """

    score: str
    block: int
    fitted_on: SetSize
    known: float
    validation: Share


class Recalibration(Struct, frozen=True, kw_only=True):
    """How the temperature was fitted on a site's labelled tiles (`export --recalibrate`).

    `fitted_on`, `measured_on`: the two halves of the site's groups. `grouped`: False if every tile
    counted as its own group. `temperature_before`: the one that the validation tiles gave.
    `error_before`, `error_after`: expected calibration error of full precision on `measured_on` at
    either temperature; `change`: after − before, paired over groups.
    """

    fitted_on: SetSize
    measured_on: SetSize
    grouped: bool
    temperature_before: float
    temperature_after: float
    error_before: Estimate
    error_after: Estimate
    change: Estimate


class CrossValidation(Struct, frozen=True, kw_only=True):
    """What a recipe is worth: every tile predicted by a model that saw no tile of its group.

    `recipe`: its description. `same_recipe`: it is that of the bundle's run, but for the seed.
    `same_tiles`: its tiles are those of the bundle's run.
    """

    recipe: str
    same_recipe: bool
    same_tiles: bool
    folds: int
    tiles: int
    groups: int
    accuracy: Estimate
    balanced_accuracy: Estimate


class VariantSpeed(Struct, frozen=True, kw_only=True):
    """Speed of a variant in one CPU engine on the exporting machine, with all cores.

    `tiles_per_second`: of the network alone, in batches. `latency_ms`: 90th percentile for a single
    tile; None if no latency was asked for.
    """

    engine: str
    tiles_per_second: Positive
    latency_ms: Positive | None = None


class Target(Struct, frozen=True, kw_only=True):
    """The speed that was asked for at export, and the variant that was chosen for it.

    `variant`: what `--precision auto` takes on CPUs if the target was `reached`; else the fastest.
    `latency_ms`, `tiles_per_second`: the target; None if not asked for. `measured`: by variant.
    """

    variant: str
    reached: bool
    latency_ms: Positive | None
    tiles_per_second: Positive | None
    measured: dict[str, VariantSpeed]

    def __post_init__(self) -> None:
        if self.latency_ms is None and self.tiles_per_second is None:
            raise ValueError("a target without a number; expected latency_ms or tiles_per_second")

    @property
    def asked(self) -> str:
        """The target in words."""
        latency, speed = self.latency_ms, self.tiles_per_second
        parts = [f"at most {latency:g} ms for a single tile"] if latency is not None else []
        return " and ".join(
            [*parts, *([f"at least {speed:g} tiles/s"] if speed is not None else [])]
        )

    @property
    def outcome(self) -> str:
        """Which variant reached the target, in words."""
        if self.reached:
            return f"{self.variant} reached it; --precision auto takes it on CPUs"
        return (
            f"no variant that passed its gate reached it; the fastest was {self.variant}, and "
            "--precision auto chooses as without a target"
        )


class Provenance(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Origin of the model. `recipe` is the recipe as resolved by `edgelung train`.

    `tile_um_stated_to`: the command that the user stated `tile_um` to, 'train' or 'export'.
    `origins`: as in run.json; empty in bundles of an older edgelung.
    """

    edgelung: str
    created: str
    run: str
    student: str
    weights_sha256: str
    split_sha256: str
    groups: str
    split: str
    recipe: dict[str, Json]
    sets: dict[str, SetSize]
    eight_bits: str | None
    tile_um_stated_to: str | UnsetType = UNSET
    origins: list[str] = []


class FileEntry(Struct, frozen=True, kw_only=True):
    """A file of the bundle: its hash and its size."""

    sha256: str
    bytes: int


class BundleManifest(Struct, frozen=True, kw_only=True):
    """bundle.json.

    `tile_sizes`: number of training tiles by '<width>x<height>' in pixels; empty in older bundles.
    `tile_um`: side of a training tile in micrometres, 5 to 5,000; UNSET where nobody stated it.
    `known`: None in bundles of an older edgelung, which know no unknown tissue.
    `recalibrated`: None if the validation tiles gave the temperature.
    `cross_validation`: UNSET if `edgelung export` was given none.
    `target`: UNSET if none was asked for; an older edgelung does not know it and chooses without.
    `concerns`: UNSET in bundles of an older edgelung; `evaluation.concerns.bundle_concerns` then
    derives them.
    """

    schema_version: int = SCHEMA_VERSION
    name: str = ""
    notice: str = ""
    classes: list[str]
    preprocessing: dict[str, Json]
    temperature: float
    variants: dict[str, VariantEntry]
    sensitivity: Sensitivity | None = None
    golden: list[GoldenEntry]
    known: KnownTissue | None = None
    recalibrated: Recalibration | None = None
    cross_validation: CrossValidation | UnsetType = UNSET
    target: Target | UnsetType = UNSET
    tile_sizes: dict[str, int] = {}
    tile_um: Annotated[float, Meta(ge=MIN_TILE_UM, le=MAX_TILE_UM)] | UnsetType = UNSET
    concerns: list[Concern] | UnsetType = UNSET
    provenance: Provenance | None = None
    files: dict[str, FileEntry] = {}
