"""Render the self-contained HTML pages of runs, bundles, comparisons and audits; model cards."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.bundle import BundleManifest
from edgelung.artifacts.run import RunFolder, RunMetrics
from edgelung.evaluation.comparison import NO_INTERVAL, Comparison
from edgelung.evaluation.concerns import bundle_concerns, run_concerns
from edgelung.evaluation.intervals import caution, written
from edgelung.report import figures
from edgelung.report.figures import RunPictures
from edgelung.report.variants import VariantFigures
from edgelung.tiles.sizes import TrainedSizes


def run_page(run: RunFolder, metrics: RunMetrics, pictures: RunPictures) -> str:
    """report.html of a run, from its configuration, its history, `metrics` and `pictures`."""
    history = run.read_history()
    models = dict(reversed(metrics.models.items()))  # the student first
    stages = {role: [record for record in history if record.stage == role] for role in models}
    config = run.read_config()
    return _render(
        "run.html.j2",
        title=f"edgelung run {run.path.name}",
        config=config,
        concerns=run_concerns(metrics, config.counts),
        classes=metrics.classes,
        models=models,
        pictures=pictures,
        curves={role: figures.curves(rows, role) for role, rows in stages.items() if rows},
        confusions={
            role: figures.confusion(model.test.confusion, metrics.classes, f"{role}, test")
            for role, model in models.items()
        },
    )


def bundle_page(manifest: BundleManifest, pictures: VariantFigures) -> str:
    """report.html of a bundle, from its manifest and the result of `variant_figures`."""
    return _render(
        "bundle.html.j2",
        title=f"edgelung bundle: {manifest.name}",
        manifest=manifest,
        concerns=bundle_concerns(manifest),
        pictures=pictures,
        confusions={
            name: figures.confusion(entry.test.confusion, manifest.classes, f"{name}, test")
            for name, entry in manifest.variants.items()
            if entry.test
        },
    )


def model_card(manifest: BundleManifest) -> str:
    """MODEL_CARD.md of a bundle, from its manifest."""
    return _render(
        "card.md.j2",
        title=manifest.name,
        m=manifest,
        p=manifest.provenance,
        sizes=TrainedSizes(manifest.tile_sizes),
        concerns=bundle_concerns(manifest),
    )


def compare_page(comparison: Comparison) -> str:
    """The page of `edgelung compare`: Table II, the paired differences, and a plot."""
    models = comparison.models
    return _render(
        "compare.html.j2",
        title="edgelung: runs compared",
        models=models,
        no_interval=NO_INTERVAL,
        plot=figures.estimates(
            [model.title for model in models],
            [model.test.balanced_accuracy or 0.0 for model in models],
            [model.test.intervals.balanced_accuracy for model in models],
            "balanced accuracy on the test tiles, %, with 95 % interval over groups",
        ),
    )


def audit_page(name: str, audit: dict[str, Any], pictures: dict[str, Any]) -> str:
    """report.html of an audit, from audit.json as plain values and the pictures by section."""
    values = {"known": None} | audit
    return _render("audit.html.j2", title=f"edgelung audit: {name}", f=values, p=pictures)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("edgelung.report", ""),
        autoescape=not template.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.2f} %"
    environment.filters["points"] = lambda value: f"{100 * value:.2f}"
    environment.filters["span"] = written
    environment.filters["caution"] = caution
    return environment.get_template(template).render(
        notice=RESEARCH_USE_ONLY, version=__version__, **values
    )
