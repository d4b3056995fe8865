"""`edgelung evaluate`: a bundle and a site's labelled tiles in; figures with intervals out.

labelled tiles ─► the pipeline of `infer` ─► records ─► `edgelung.evaluation.external`
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.bundle import Bundle, coverage_key
from edgelung.artifacts.evaluation import Evaluation
from edgelung.artifacts.run_predictions import RunPredictions
from edgelung.core.errors import EdgelungError, ExitCode
from edgelung.core.files import sha256_file
from edgelung.core.progress import SILENT, Advance
from edgelung.engines.base import Engine
from edgelung.engines.choose import Chosen
from edgelung.evaluation.concerns import bundle_concerns, starter_concerns
from edgelung.evaluation.external import (
    LabelledTiles,
    against_test,
    by_column,
    group_counts,
    kept_tiles,
    prediction_sets,
    subset_of,
    unknown_tiles,
)
from edgelung.evaluation.intervals import FEW_GROUPS
from edgelung.evaluation.requirements import Required, check_classes, judge
from edgelung.inference.labelled import LabelledFile, LabelledFiles, labelled_files
from edgelung.inference.pipeline import predict_batches
from edgelung.inference.reading import FileReading
from edgelung.inference.record import LabelRule, record_of
from edgelung.inference.session import Options, label_rule, open_engines
from edgelung.tiles.names import printable
from edgelung.tiles.reader import ReaderSpec

COVERAGE = 0.99  # of the prediction sets that are evaluated
MOST_VALUES = 50  # of a column of --by; more are names, not kinds


@dataclass(frozen=True)
class Site:
    """The labelled tiles to evaluate on.

    Attributes:
        folder, groups, follow_links: as in `labelled_files`.
        by: columns of the list whose values get figures of their own.
    """

    folder: Path
    groups: Path | None = None
    by: tuple[str, ...] = ()
    follow_links: bool = False


@dataclass(frozen=True)
class Evaluated:
    """A result, and what its page shows beside it.

    `predictions`: of the predicted tiles, in path order; `files`: where these are.
    """

    result: Evaluation
    tiles: LabelledTiles
    predictions: RunPredictions
    files: tuple[LabelledFile, ...]


def evaluate_site(
    site: Site,
    bundle: Bundle,
    options: Options,
    required: Sequence[Required] = (),
    advance: Advance = SILENT,
) -> Evaluated:
    """Predict labelled tiles and judge the predictions.

    Args:
        site: the tiles.
        bundle: the opened bundle.
        options: engine, precision, batch size and threads; the rest does not matter here.
        required: what the figures must reach.
        advance: the progress bar of the tiles.

    Raises:
        EdgelungError: a wrong folder, list, column or class, or no engine that works; before any
            tile is predicted.
    """
    try:
        check_classes(required, bundle.classes)
    except ValueError as error:
        raise EdgelungError(f"--require: {error}") from error
    found = labelled_files(
        site.folder, bundle.classes, site.groups, site.by, follow_links=site.follow_links
    )
    for index, column in enumerate(found.columns):
        if (count := len({one.columns[index] for one in found.files})) > MOST_VALUES:
            raise EdgelungError(
                f"--by {column}: the column has {count} values; expected at most {MOST_VALUES}"
            )
    advance.set_total(len(found.files))
    with open_engines(bundle, options, None) as engines:
        chosen = engines.chosen
        key = coverage_key(COVERAGE)
        sets = COVERAGE if key in chosen.variant.entry.sets else None
        tiles = predict_labelled(
            found,
            chosen.engine,
            bundle.reader,
            len(bundle.classes),
            label_rule(bundle, chosen.variant, replace(options, coverage=sets)),
            batch_size=engines.batch_size,
            threads=engines.threads,
            advance=advance,
        )
        result = _evaluation(site, bundle, chosen, found, tiles, required)
    rows = np.flatnonzero(tiles.predicted)
    files = tuple(found.files[i] for i in rows)
    predictions = RunPredictions(
        classes=tuple(bundle.classes),
        paths=tuple(printable(one.file.path) for one in files),
        labels=tiles.truth[rows],
        groups=tuple(tiles.groups[i] for i in rows),
        subsets=("",) * len(rows),
        probabilities=tiles.probabilities[rows].astype(np.float64),
    )
    return Evaluated(result, tiles, predictions, files)


def predict_labelled(
    found: LabelledFiles,
    engine: Engine,
    reader: ReaderSpec,
    classes: int,
    rule: LabelRule,
    *,
    batch_size: int,
    threads: int,
    advance: Advance = SILENT,
) -> LabelledTiles:
    """Predict labelled tiles through the pipeline of `infer`; in the order of `found`."""
    batches = predict_batches(
        [one.file for one in found.files],
        FileReading(reader),
        engine,
        batch_size=batch_size,
        threads=threads,
    )
    records = []
    with closing(batches):
        for rows in batches:
            records += [record_of(row, rule) for row in rows]
            advance(len(rows))
    probabilities = np.zeros((len(records), classes))
    sets = np.zeros((len(records), classes), bool)
    for row, record in enumerate(records):
        if record.probabilities is not None:
            probabilities[row] = record.probabilities
            sets[row, record.prediction_set or []] = True
    groups = [one.group if found.grouped else printable(one.group) for one in found.files]
    return LabelledTiles(
        statuses=tuple(record.status for record in records),
        truth=np.array([one.truth for one in found.files], np.int64),
        groups=tuple(groups),
        columns={
            name: tuple(one.columns[index] for one in found.files)
            for index, name in enumerate(found.columns)
        },
        probabilities=probabilities,
        sets=None if rule.set_level is None else sets,
    )


def _evaluation(
    site: Site,
    bundle: Bundle,
    chosen: Chosen,
    found: LabelledFiles,
    tiles: LabelledTiles,
    required: Sequence[Required],
) -> Evaluation:
    classes = list(bundle.classes)
    everything = subset_of(tiles, np.ones(len(tiles.truth), bool))
    figures, test = everything.figures, chosen.variant.entry.test
    judged = judge(required, figures, classes)
    failed = int((~tiles.predicted).sum())
    code = ExitCode.SOME_FAILED if failed else ExitCode.OK
    if any(one.verdict != "pass" for one in judged):
        code = ExitCode.GATE
    return Evaluation(
        note=RESEARCH_USE_ONLY,
        edgelung=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=printable(bundle.folder.absolute().name),
        bundle_sha256=bundle.sha256,
        engine=chosen.engine.name,
        device=chosen.engine.device,
        precision=chosen.variant.precision,
        floating_point=chosen.engine.float_type,
        choice=chosen.reason,
        classes=classes,
        data=printable(site.folder.absolute().name),
        list_sha256=sha256_file(site.groups) if site.groups and site.groups.is_file() else None,
        grouped=found.grouped,
        left_out=dict(found.left_out),
        everything=everything,
        unknown=unknown_tiles(tiles, can_tell=chosen.variant.entry.known is not None),
        by={column: by_column(tiles, column) for column in found.columns},
        test=against_test(figures, test, classes) if figures and test else {},
        kept=kept_tiles(tiles),
        sets=prediction_sets(tiles, coverage_key(COVERAGE)),
        errors=group_counts(tiles),
        requirements=judged,
        cautions=_cautions(found, tiles, classes),
        concerns=[
            *bundle_concerns(bundle.manifest),
            *(starter_concerns() if bundle.is_starter else ()),
        ],
        failed=failed,
        exit_code=int(code),
    )


def _cautions(found: LabelledFiles, tiles: LabelledTiles, classes: Sequence[str]) -> list[str]:
    """What speaks against the figures, one sentence each."""
    cautions = []
    predicted = tiles.predicted
    if not predicted.any():
        return ["No tile could be predicted: there is no figure."]
    if not found.grouped:
        cautions.append(
            "No groups were given, so every tile counts as its own group. Tiles of one slide or "
            "patient are alike: the intervals are too narrow. Name the sources with --groups."
        )
    present = set(tiles.truth[predicted].tolist())
    if absent := [name for index, name in enumerate(classes) if index not in present]:
        cautions.append(f"No tile of {', '.join(absent)}: the averages are over the other classes.")
    pairs = set(zip(tiles.truth[predicted].tolist(), tiles.groups_of(predicted), strict=True))
    fewest, label = min((sum(one == label for one, _ in pairs), label) for label in present)
    if fewest < FEW_GROUPS:
        cautions.append(
            f"{classes[label]} has {fewest} group{'' if fewest == 1 else 's'}: intervals from "
            f"fewer than {FEW_GROUPS} groups per class are too narrow."
        )
    for reason, count in found.left_out.items():
        cautions.append(f"Left out: images that {reason}: {count}.")
    return cautions
