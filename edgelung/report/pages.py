"""The self-contained HTML pages of a run and of a bundle."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.report import figures


def run_page(run: Path, metrics: dict[str, Any]) -> str:
    """report.html of a run folder, from its run.json and metrics.jsonl and from `metrics`."""
    config = json.loads((run / "run.json").read_text("utf-8"))
    lines = run / "metrics.jsonl"
    history = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
    stages = {
        name: [record for record in history if record["stage"] == name]
        for name in ("teacher", "student")
    }
    return _render(
        "run.html.j2",
        title=f"edgelung run {run.name}",
        config=config,
        metrics=metrics,
        curves={name: figures.curves(rows, name) for name, rows in stages.items() if rows},
        confusions={
            name: figures.confusion(
                metrics[name]["test"]["confusion"], metrics["classes"], f"{name}, test"
            )
            for name in stages
        },
    )


def bundle_page(manifest: dict[str, Any]) -> str:
    """report.html of a bundle, from its manifest."""
    variants = manifest["variants"]
    return _render(
        "bundle.html.j2",
        title=f"edgelung bundle: {manifest['name']}",
        manifest=manifest,
        confusions={
            name: figures.confusion(
                entry["test"]["confusion"], manifest["classes"], f"{name}, test"
            )
            for name, entry in variants.items()
            if "test" in entry
        },
    )


def audit_page(name: str, audit: dict[str, Any], pictures: dict[str, Any]) -> str:
    """report.html of an audit: its figures, contact sheets and aligned pairs."""
    figures_of = {"known": None} | audit
    return _render("audit.html.j2", title=f"edgelung audit: {name}", f=figures_of, p=pictures)


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("edgelung.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.2f} %"
    return environment.get_template(template).render(
        notice=RESEARCH_USE_ONLY, version=__version__, **values
    )
