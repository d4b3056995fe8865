"""The self-contained HTML pages of a run and of a bundle."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.run import CONFIG, ROLES, fewest_test_groups
from edgelung.evaluation.intervals import caution, written
from edgelung.report import figures


def run_page(run: Path, metrics: dict[str, Any], pictures: dict[str, Any]) -> str:
    """report.html of a run folder: its run.json and metrics.jsonl, `metrics` and `pictures`."""
    config = json.loads((run / CONFIG).read_text("utf-8"))
    lines = run / "metrics.jsonl"
    text = lines.read_text("utf-8") if lines.exists() else ""  # of no epochs at all
    history = [json.loads(line) for line in text.splitlines()]
    roles = [role for role in reversed(ROLES) if role in metrics]
    stages = {role: [record for record in history if record["stage"] == role] for role in roles}
    return _render(
        "run.html.j2",
        title=f"edgelung run {run.name}",
        config=config,
        metrics=metrics,
        roles=roles,
        pictures=pictures,
        curves={name: figures.curves(rows, name) for name, rows in stages.items() if rows},
        confusions={
            name: figures.confusion(
                metrics[name]["test"]["confusion"], metrics["classes"], f"{name}, test"
            )
            for name in roles
        },
    )


def bundle_page(manifest: dict[str, Any], pictures: dict[str, Any]) -> str:
    """report.html of a bundle, from its manifest and its `variant_figures`."""
    variants = manifest["variants"]
    return _render(
        "bundle.html.j2",
        title=f"edgelung bundle: {manifest['name']}",
        manifest=manifest,
        pictures=pictures,
        confusions={
            name: figures.confusion(
                entry["test"]["confusion"], manifest["classes"], f"{name}, test"
            )
            for name, entry in variants.items()
            if "test" in entry
        },
    )


def model_card(manifest: dict[str, Any]) -> str:
    """MODEL_CARD.md of a bundle, from its manifest."""
    return _render("card.md.j2", title=manifest["name"], m=manifest, p=manifest["provenance"])


def compare_page(comparison: dict[str, Any]) -> str:
    """The page of `edgelung compare`: Table II, differences, one dot a model."""
    rows = comparison["models"]
    names = [f"{row['run']}: {row['role']} {row['model']}" for row in rows]
    return _render(
        "compare.html.j2",
        title="edgelung: runs compared",
        c=comparison,
        plot=figures.estimates(
            names,
            [row["balanced_accuracy"] for row in rows],
            [row["intervals"]["balanced_accuracy"] for row in rows],
            "balanced accuracy on the test tiles, %, with 95 % interval over groups",
        ),
    )


def audit_page(name: str, audit: dict[str, Any], pictures: dict[str, Any]) -> str:
    """report.html of an audit: its figures, contact sheets and aligned pairs."""
    figures_of = {"known": None} | audit
    return _render("audit.html.j2", title=f"edgelung audit: {name}", f=figures_of, p=pictures)


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
    environment.filters["fewest_test_groups"] = fewest_test_groups
    return environment.get_template(template).render(
        notice=RESEARCH_USE_ONLY, version=__version__, **values
    )
