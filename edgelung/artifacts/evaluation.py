"""The result of `edgelung evaluate`: how good a bundle is on a site's labelled tiles.

Rates are fractions in 0…1. Intervals are 95 % intervals over groups.
"""

from pathlib import Path
from typing import Literal

from msgspec import Struct

from edgelung.artifacts.results import Concern, Estimate, Estimates, Share
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError

SCHEMA_VERSION = 1
KIND = "edgelung evaluate"  # marks the file
REMEDY = "expected what `edgelung evaluate --json` printed"

DifferenceVerdict = Literal["worse here", "no difference shown", "better here"]
RequirementVerdict = Literal["pass", "fail", "inconclusive"]


class Subset(Struct, frozen=True, kw_only=True):
    """The figures of some of the tiles, whatever their status.

    Attributes:
        statuses: number of tiles by status.
        figures: of the predicted tiles; None without one.
        confusion: rows are the truth, columns the prediction.
    """

    statuses: dict[str, int]
    figures: Estimates | None
    confusion: list[list[int]]


class UnknownTiles(Struct, frozen=True, kw_only=True):
    """What leaving out tiles that the model was not made for changes.

    Attributes:
        unknown, blank: shares of the predicted tiles.
        can_tell: the bundle can tell unknown tissue; otherwise none is unknown.
        without: the figures without the tiles of both kinds; None if none is left.
    """

    unknown: Share
    blank: Share
    can_tell: bool
    without: Estimates | None


class AgainstTest(Struct, frozen=True, kw_only=True):
    """A figure here beside the same figure of the bundle's own test.

    Attributes:
        here: on these tiles.
        test: on the test tiles of the bundle; without an interval where the bundle records none.
        difference: here − test. The two sets of groups are independent. The interval combines the
            distances of both intervals from their estimates by the root of the sum of squares
            (Zou and Donner 2008). None where one of the two has no interval.
        verdict: None where the difference has no interval.
    """

    here: Estimate
    test: Estimate
    difference: Estimate
    verdict: DifferenceVerdict | None


class KeptTiles(Struct, frozen=True, kw_only=True):
    """The most confident tiles. `least_confidence`: of these; `share`: of all predicted tiles."""

    share: float
    tiles: int
    least_confidence: float
    accuracy: float


class PredictionSets(Struct, frozen=True, kw_only=True):
    """Prediction sets of one coverage: how often the true class is in the set, and how large it is.

    `mean_size`: classes in a set, on average over tiles.
    """

    asked: str
    coverage: Share
    mean_size: float


class GroupCount(Struct, frozen=True, kw_only=True):
    """A group with wrong labels."""

    group: str
    tiles: int
    wrong: int


class Requirement(Struct, frozen=True, kw_only=True):
    """One `--require`. It is met if the lower bound of the interval reaches `at_least`.

    `verdict`: 'fail' if even the upper bound does not reach it, 'inconclusive' if only the lower
    bound does not, or there is no interval.
    """

    figure: str
    at_least: float
    estimate: Estimate
    verdict: RequirementVerdict


class Evaluation(Struct, frozen=True, kw_only=True):
    """How good a bundle is on labelled tiles.

    Attributes:
        created: UTC, ISO 8601.
        bundle, bundle_sha256: name of the bundle's folder and SHA-256 of bundle.json.
        data: name of the folder of the tiles. list_sha256: of the list of groups; None without.
        choice: why this engine and variant were chosen.
        grouped: False: no groups were given, so every tile counts as one.
        left_out: reason → images that are not in the evaluation.
        everything: the figures of all tiles, unknown and blank ones included.
        unknown: the effect of leaving those out; None without a predicted tile.
        by: column of the list → value → figures.
        test: figure → comparison with the bundle's own test.
        kept: accuracy of the most confident tiles, all tiles first.
        sets: None if the bundle has no prediction sets.
        errors: groups with wrong labels, those with the most first.
        cautions: what speaks against the figures, one sentence each.
        concerns: why the bundle's model should not be trusted.
        failed: tiles without a prediction.
    """

    kind: str = KIND
    schema_version: int = SCHEMA_VERSION
    note: str
    edgelung: str
    created: str
    bundle: str
    bundle_sha256: str
    engine: str
    device: str
    precision: str
    floating_point: str
    choice: str
    classes: list[str]
    data: str
    list_sha256: str | None
    grouped: bool
    left_out: dict[str, int]
    everything: Subset
    unknown: UnknownTiles | None
    by: dict[str, dict[str, Subset]]
    test: dict[str, AgainstTest]
    kept: list[KeptTiles]
    sets: PredictionSets | None
    errors: list[GroupCount]
    requirements: list[Requirement]
    cautions: list[str]
    concerns: list[Concern]
    failed: int
    exit_code: int


def read_evaluation(path: Path) -> Evaluation:
    """Read a result. Raises EdgelungError that names the file and what is wrong with it."""
    result = typed_json.read(path, Evaluation, REMEDY, SCHEMA_VERSION)
    if result.kind != KIND:
        raise EdgelungError(f"{path} is no result of `edgelung evaluate`; {REMEDY}")
    return result
