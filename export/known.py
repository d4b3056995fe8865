"""What a student knows: the features of its training tiles, and the limits that follow from them.

The training tiles give the distance (`edgelung.evaluation.known`), the validation tiles, which
fitted nothing, the thresholds and the levels of prediction sets, the test tiles what they are
worth.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgelung.artifacts.bundle import coverage_key
from edgelung.artifacts.manifest import KnownVariant, SetRule
from edgelung.core.system import available_cores
from edgelung.core.terminal import progress
from edgelung.engines.base import Output, Scores, Tiles
from edgelung.evaluation.known import fit_known, rank_correlation, set_level, threshold_of
from edgelung.evaluation.shares import share_of
from edgelung.export.graph import build_graph
from edgelung.export.parallel import map_in_order
from edgelung.export.student import Student
from edgelung.export.tiles import TileReader, TileSet

FIT_TILES = 4096  # of the training tiles, evenly from all groups
BLOCKS_BEHIND = 4  # between the features and the end; docs/explanation/unknown.md has the evidence
COVERAGES = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)


def learn_known(student: Student, tiles: TileSet, reader: TileReader) -> Student:
    """Return the student with what its features of the training tiles look like."""
    block = max(1, student.depth - BLOCKS_BEHIND)
    some = tiles.every(FIT_TILES)
    features = features_of(student, some, reader, block)
    return replace(student, known=fit_known(features, some.labels, block))


def features_of(
    student: Student, tiles: TileSet, reader: TileReader, block: int
) -> npt.NDArray[np.float32]:
    """The mean patch token after a block in full precision, float32 (N, D)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    graph = build_graph(student, features=block).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(batch: Tiles) -> npt.NDArray[np.float32]:
        (features,) = session.run(["features"], {"tiles": batch})
        return np.asarray(features, np.float32)

    parts = []
    with progress("features of training tiles", len(tiles)) as advance:
        for part in map_in_order(run, reader.batches(tiles), available_cores()):
            parts.append(part)
            advance(len(part))
    return np.concatenate(parts)


def known_variant(
    outputs: Mapping[str, Output],
    sets: Mapping[str, TileSet],
    known: float,
    reference: Mapping[str, Output] | None,
    threshold: float | None = None,
) -> KnownVariant | None:
    """The threshold of a variant and what it is worth; None if its graph has no score.

    Args:
        outputs: of the variant, for the sets 'validation', 'gate', and 'test' if there are tiles.
        sets: the tiles of these sets.
        known: share of the validation tiles that shall not be above the threshold.
        reference: the outputs of full precision; None for full precision itself.
        threshold: of a variant with an early exit, that of the variant without one: the tiles that
            go through the whole model have the same scores, the others are known already.
    """
    scores = {name: output.ood for name, output in outputs.items() if output.ood is not None}
    if not scores or not all(np.isfinite(values).all() for values in scores.values()):
        return None
    if threshold is None:
        threshold = _written(threshold_of(scores["validation"], sets["validation"].groups, known))
    test = None
    if "test" in scores:
        test = share_of(scores["test"] <= threshold, sets["test"].groups)
    correlation = same = None
    if reference is not None and (theirs := reference["gate"].ood) is not None:
        limit = threshold_of(_score(reference["validation"]), sets["validation"].groups, known)
        # At an early exit the score is another: only its verdict can be compared.
        stage = outputs["gate"].stage
        whole = np.ones(len(theirs), bool) if stage is None else stage == 2
        if whole.sum() > 1:
            correlation = rank_correlation(scores["gate"][whole], theirs[whole])
        same = float(((scores["gate"] > threshold) == (theirs > limit)).mean())
    return KnownVariant(
        threshold=threshold,
        known_on_test=test,
        rank_correlation=correlation,
        same_verdict=same,
    )


def set_rules(outputs: Mapping[str, Output], sets: Mapping[str, TileSet]) -> dict[str, SetRule]:
    """The prediction sets of each coverage; arguments as in `known_variant`."""
    validation = sets["validation"]
    of_truth = _of_truth(outputs["validation"], validation)
    return {
        coverage_key(coverage): _set_rule(
            set_level(of_truth, validation.groups, coverage), outputs.get("test"), sets["test"]
        )
        for coverage in COVERAGES
    }


def _set_rule(level: float, output: Output | None, test: TileSet) -> SetRule:
    if output is None:
        return SetRule(level=level, coverage_on_test=None, mean_size=None)
    largest = output.probabilities.max(axis=1)
    least = np.minimum(level, largest)
    return SetRule(
        level=level,
        coverage_on_test=share_of(_of_truth(output, test) >= least, test.groups),
        mean_size=float((output.probabilities >= least[:, None]).sum(axis=1).mean()),
    )


def _of_truth(output: Output, tiles: TileSet) -> Scores:
    """The probability of each tile's own class, (N,)."""
    return output.probabilities[np.arange(len(tiles)), tiles.labels]


def _score(output: Output) -> Scores:
    assert output.ood is not None
    return output.ood


def _written(value: float) -> float:
    """Rounded up as rows are printed, so that the limit itself passes."""
    return float(np.ceil(value * 1e6) / 1e6)
