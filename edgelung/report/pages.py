"""The self-contained HTML pages of runs, bundles, comparisons and audits; model cards."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType

from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.manifest import BundleManifest, Sensitivity
from edgelung.artifacts.results import SetSize
from edgelung.artifacts.run import SUBSETS, RunFolder, RunMetrics
from edgelung.core.files import sha256_file
from edgelung.evaluation.comparison import NO_INTERVAL, Comparison
from edgelung.evaluation.concerns import bundle_concerns, run_concerns
from edgelung.evaluation.metrics import at_temperature
from edgelung.report import verdicts
from edgelung.report.errors import (
    SHOWN_GROUPS,
    SHOWN_ROWS,
    concentration,
    errors_by_group,
    group_scores,
)
from edgelung.report.figures import RunPictures, curves, reliability_chart, roc_chart
from edgelung.report.render import command, now, render
from edgelung.report.variants import VariantFigures
from edgelung.tiles.sizes import TrainedSizes

SMALLEST_NATS = 1e-9  # a logarithmic axis cannot show 0


def run_page(run: RunFolder, metrics: RunMetrics, pictures: RunPictures) -> str:
    """report.html of a run, from its files, `metrics` and `pictures`.

    Reads run.json, metrics.jsonl and the student's predictions.csv.
    """
    history = run.read_history()
    models = dict(reversed(metrics.all_models.items()))  # the student first
    stages = {role: [record for record in history if record.stage == role] for role in models}
    config = run.read_config()
    predictions = run.read_predictions().subset("test")
    errors = errors_by_group(predictions)
    probabilities, labels = predictions.probabilities, predictions.labels
    scaled = at_temperature(probabilities, models["student"].temperature)
    judged = [
        roc_chart(probabilities, labels, predictions.classes),
        reliability_chart({"as trained": probabilities, "at its temperature": scaled}, labels),
    ]
    weights = run.weights_path()
    return render(
        "run.html.j2",
        kind="run",
        title=f"edgelung run {run.path.name}",
        headline=verdicts.run_headline(metrics, config),
        facts={
            "date": now(),
            "data": f"{Path(config.data).name}: {_sizes(map(_total, config.counts.values()))}",
            "split": config.split,
            "size of a tile": _micrometres(config.tile_um),
            "student": models["student"].model,
            "SHA-256 of the weights": sha256_file(weights)[:16] if weights.is_file() else "",
            "SHA-256 of split.csv": config.split_sha256[:16],
            "command": command(),
        },
        config=config,
        concerns=run_concerns(metrics, config.counts),
        classes=metrics.classes,
        models=models,
        stages=stages,
        pictures=pictures,
        judged=judged if len(predictions) else [],
        errors=errors[:SHOWN_GROUPS],
        concentration=concentration(errors, len(set(predictions.groups))),
        curves={role: curves(rows, role) for role, rows in stages.items() if rows},
    )


def folds_page(folder: FoldsFolder, metrics: RunMetrics, pictures: RunPictures) -> str:
    """report.html of a cross-validation, from its files, `metrics` and `pictures`."""
    assert metrics.folds is not UNSET
    config, predictions, fold_of = (
        folder.read_config(),
        folder.read_predictions(),
        folder.read_folds(),
    )
    models = dict(reversed(metrics.all_models.items()))  # the student first
    folds = {role: metrics.folds[role] for role in models}
    temperature_of = {fold.fold: fold.temperature for fold in folds["student"]}
    temperatures = np.array([[temperature_of[fold_of[path]]] for path in predictions.paths])
    probabilities, labels = predictions.probabilities, predictions.labels
    scaled = at_temperature(probabilities, temperatures)
    errors = errors_by_group(predictions)
    groups = group_scores(predictions, fold_of)
    return render(
        "folds.html.j2",
        kind="folds",
        title=f"edgelung cross-validation {folder.path.name}",
        headline=verdicts.run_headline(metrics, config),
        facts={
            "date": now(),
            "data": f"{Path(config.data).name}: {_sizes([_total(config.counts['test'])])}",
            "split": config.split,
            "size of a tile": _micrometres(config.tile_um),
            "student": models["student"].model,
            "SHA-256 of split.csv": config.split_sha256[:16],
            "command": command(),
        },
        config=config,
        concerns=run_concerns(metrics, config.counts),
        classes=metrics.classes,
        models=models,
        folds=folds,
        judged=[
            roc_chart(probabilities, labels, predictions.classes),
            reliability_chart({"as trained": probabilities, "at its temperature": scaled}, labels),
        ],
        groups=groups[:SHOWN_ROWS],
        all_groups=len(groups),
        errors=errors[:SHOWN_GROUPS],
        concentration=concentration(errors, len(groups)),
        pictures=pictures,
    )


def bundle_page(manifest: BundleManifest, pictures: VariantFigures) -> str:
    """report.html of a bundle, from its manifest and the result of `variant_figures`."""
    concerns = bundle_concerns(manifest)
    said = any(concern.kind == "gate-undecided" for concern in concerns)
    reasons: dict[str, list[str]] = {}  # the first of each gate, once for all its variants
    for name, entry in manifest.variants.items():
        if not (said and entry.gate.verdict == "inconclusive"):
            for reason in entry.gate.reasons[:1]:
                reasons.setdefault(reason, []).append(name)
    origin = manifest.provenance
    return render(
        "bundle.html.j2",
        kind="bundle",
        title=f"edgelung bundle: {manifest.name}",
        headline=verdicts.bundle_headline(manifest),
        facts={
            "date": f"{origin.created[:16].replace('T', ' ')} UTC" if origin.created else "",
            "run": origin.run,
            "data": _sizes(size for name, size in origin.sets.items() if name in SUBSETS),
            "size of a tile": _micrometres(manifest.tile_um),
            "student": origin.student,
            "SHA-256 of the weights": origin.weights_sha256[:16],
            "SHA-256 of split.csv": origin.split_sha256[:16],
            "command": command(),
        }
        if origin
        else {},
        manifest=manifest,
        concerns=concerns,
        reasons=reasons,
        pictures=pictures,
        nats=_nats(manifest.sensitivity),
    )


def model_card(manifest: BundleManifest) -> str:
    """MODEL_CARD.md of a bundle, from its manifest."""
    return render(
        "card.md.j2",
        title=manifest.name,
        m=manifest,
        p=manifest.provenance,
        sizes=TrainedSizes(manifest.tile_sizes),
        side=_micrometres(manifest.tile_um),
        concerns=bundle_concerns(manifest),
    )


def compare_page(comparison: Comparison) -> str:
    """The page of `edgelung compare`: Table II, the intervals, and the paired differences."""
    models = comparison.models
    lowest = min(
        min(m.test.intervals.balanced_accuracy[0], m.test.balanced_accuracy or 1) for m in models
    )
    ends = [
        abs(end)
        for model in models
        if model.difference
        for end in (*(model.difference.interval or ()), model.difference.balanced_accuracy)
    ]
    return render(
        "compare.html.j2",
        kind="compare",
        title="edgelung: runs compared",
        headline=verdicts.compare_headline(comparison),
        facts={
            "date": now(),
            "runs": ", ".join(dict.fromkeys(model.run for model in models)),
            "data": ", ".join(f"{n:,} test tiles" for n in {m.test.tiles: 0 for m in models}),
            "command": command(),
        },
        models=models,
        no_interval=NO_INTERVAL,
        floor=min(int(lowest * 20) / 20, 0.95),
        reach=1.1 * max([*ends, 0.005]),
    )


def audit_page(name: str, audit: dict[str, Any], pictures: dict[str, Any]) -> str:
    """report.html of an audit, from audit.json as plain values and the pictures by section."""
    values = {"known": None, "against": None} | audit
    return render(
        "audit.html.j2",
        kind="audit",
        title=f"edgelung audit: {name}",
        headline=verdicts.audit_headline(
            audit["tiles"],
            audit["groups"],
            len(audit["groups_across_classes"]),
            len(audit["unreadable"]),
            (values["against"]["shown_in_training"], values["against"]["test"])
            if values["against"]
            else None,
        ),
        facts={"date": now(), "data": name, "command": command()},
        f=values,
        p=pictures,
    )


def _total(sizes: dict[str, SetSize]) -> SetSize:
    return SetSize(
        tiles=sum(size.tiles for size in sizes.values()),
        groups=sum(size.groups for size in sizes.values()),
    )


def _sizes(sets: Iterable[SetSize]) -> str:
    sizes = list(sets)
    groups = sum(size.groups for size in sizes)
    return f"{sum(size.tiles for size in sizes):,} tiles in {groups:,} groups"


def _micrometres(side: float | UnsetType | None) -> str:
    """'192 × 192 µm'; '' where it is not known."""
    return f"{side:g} × {side:g} µm" if isinstance(side, float) else ""


def _nats(sensitivity: Sensitivity | None) -> tuple[float, float]:
    """The ends of a logarithmic axis for all divergences."""
    if sensitivity is None:
        return SMALLEST_NATS, 1.0
    parts = [*sensitivity.blocks, *sensitivity.linears]
    values = [value for part in parts for value in (part.alone, part.all_but)]
    known = [value for value in values if value > SMALLEST_NATS] or [1.0]
    return min(known) / 2, max(known) * 2
