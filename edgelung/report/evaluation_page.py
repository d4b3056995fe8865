"""The page of `edgelung evaluate`: one self-contained HTML file."""

import os

import numpy as np

from edgelung.artifacts.evaluation import Evaluation, Subset
from edgelung.artifacts.results import Estimate
from edgelung.evaluation.external import (
    LabelledTiles,
    accuracy_by_confidence,
    named_figures,
    title_of,
)
from edgelung.inference.evaluate import Evaluated
from edgelung.inference.labelled import LabelledFile
from edgelung.report.chart import Axis, Series, chart, padded
from edgelung.report.errors import SHOWN_GROUPS, concentration, errors_by_group
from edgelung.report.figures import (
    CURVE_POINTS,
    TilePicture,
    picture,
    reliability_chart,
    roc_chart,
)
from edgelung.report.render import command, now, render
from edgelung.report.verdicts import Headline, Tone, count, percent
from edgelung.tiles.budget import DECODING
from edgelung.tiles.reader import ReaderSpec, TileError, decode_tile, read_found

PICTURE = 112  # pixels
SHOWN_OF_GROUP = 5  # wrong tiles of a group that are shown


def evaluation_page(evaluated: Evaluated) -> str:
    """The page, with pictures of wrong tiles from the groups with the most errors."""
    result, predictions = evaluated.result, evaluated.predictions
    errors = errors_by_group(predictions)[:SHOWN_GROUPS]
    probabilities, truth = predictions.probabilities, predictions.labels
    judged = []
    if len(predictions):
        judged = [
            roc_chart(probabilities, truth, predictions.classes),
            reliability_chart({"here": probabilities}, truth),
            coverage_chart(evaluated.tiles),
        ]
    figures = result.everything.figures
    return render(
        "evaluate.html.j2",
        kind="evaluate",
        title=f"edgelung evaluate: {result.data}",
        headline=evaluation_headline(result),
        facts={
            "date": now(),
            "data": f"{result.data}: {_size(result.everything)}",
            "bundle": result.bundle,
            "engine": f"{result.engine} {result.precision} on {result.device}",
            "SHA-256 of the bundle": result.bundle_sha256[:16],
            "SHA-256 of the list": (result.list_sha256 or "")[:16],
            "command": command(),
        },
        r=result,
        named=named_figures(figures, result.classes) if figures else {},
        by_names=_by_names(result),
        title_of=title_of,
        judged=judged,
        errors=errors,
        concentration=concentration(errors_by_group(predictions), len(set(predictions.groups))),
        pictures={
            one.group: [
                shown
                for row in one.wrong[:SHOWN_OF_GROUP]
                if (shown := _picture(evaluated, row, evaluated.files[row]))
            ]
            for one in errors
        },
    )


def evaluation_headline(result: Evaluation) -> Headline:
    """What the evaluation says, in one line."""
    for concern in result.concerns:
        if concern.do_not_use:
            return Headline(concern.text.removesuffix("."), Tone.BAD)
    figures = result.everything.figures
    if figures is None or figures.balanced_accuracy.value is None:
        return Headline("No tile could be predicted", Tone.BAD)
    text = f"Balanced accuracy {percent(figures.balanced_accuracy.value)}"
    if interval := figures.balanced_accuracy.interval:
        text += f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)"
    verdict = result.test["balanced_accuracy"].verdict if result.test else None
    if verdict:
        text += f": {verdict}" + ("" if "shown" in verdict else " than in the bundle's test")
    missed = [one for one in result.requirements if one.verdict != "pass"]
    if missed:
        text += f"; {count(len(missed), 'requirement')} not met"
    if result.failed:
        text += f"; {count(result.failed, 'tile')} could not be predicted"
    if missed or verdict == "worse here":
        return Headline(text, Tone.BAD)
    said = result.failed or result.concerns or result.cautions or verdict is None
    return Headline(text, Tone.CAUTION if said else Tone.GOOD)


def coverage_chart(tiles: LabelledTiles) -> str:
    """Accuracy of the tiles that are kept, over their share: the least confident are left out."""
    confidence, accuracy = accuracy_by_confidence(tiles)
    total = len(confidence)
    ends = np.flatnonzero(np.diff(confidence, append=-np.inf))  # tiles of one confidence together
    some = ends[np.unique(np.linspace(0, len(ends) - 1, min(len(ends), CURVE_POINTS)).astype(int))]
    points = [(100 * (i + 1) / total, 100 * float(accuracy[i])) for i in some.tolist()]
    low, high = padded((y for _, y in points), 2, 0, 100)
    return chart(
        "Accuracy if the least confident tiles are left out",
        Axis("tiles kept, %", 0, 100),
        Axis("accuracy, %", low, high),
        [Series("all classes", points, dots=False)],
    )


def _size(subset: Subset) -> str:
    tiles = count(sum(subset.statuses.values()), "tile")
    return f"{tiles} in {count(subset.figures.groups, 'group')}" if subset.figures else tiles


def _by_names(result: Evaluation) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Column → value → name → figure; without figures for values without a predicted tile."""
    return {
        column: {
            value: named_figures(one.figures, result.classes) if one.figures else {}
            for value, one in subsets.items()
        }
        for column, subsets in result.by.items()
    }


def _picture(evaluated: Evaluated, row: int, one: LabelledFile) -> TilePicture | None:
    """A predicted tile with its labels; None if the file is gone by now."""
    predictions = evaluated.predictions
    try:
        with DECODING:
            pixels = decode_tile(read_found(one.file), ReaderSpec(size=PICTURE))
    except (TileError, OSError):
        return None
    values = predictions.probabilities[row]
    return TilePicture(
        picture=picture(pixels),
        truth=predictions.classes[predictions.labels[row]],
        path=os.path.basename(predictions.paths[row]),
        label=predictions.classes[int(values.argmax())],
        confidence=float(values.max()),
    )
