"""MkDocs hooks: pages that are generated from the code, and the result files that pages link to."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from edgelung.artifacts import bench_result, bundle, evaluation, run, summary

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FORMATS = [
    ("Summary of a run of `infer`: rows.summary.json", summary.Summary),
    ("Bundle: bundle.json", bundle.BundleManifest),
    ("Run folder: run.json", run.RunConfig),
    ("Run folder: a line of metrics.jsonl", run.EpochRecord),
    ("Run folder: metrics.json", run.RunMetrics),
    ("Figures of `evaluate --json`", evaluation.Evaluation),
    ("Figures of `bench --out`", bench_result.BenchResult),
]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the result files that pages link to, and the security policy, which stands at the top."""
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "security.md", content=policy))
    for path in sorted(RESULTS.iterdir()):
        target = f"benchmarks/results/{path.name}"
        if path.suffix == ".json":
            files.append(File.generated(config, target, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the generated parts, and let links out of docs/ lead to the site's copies."""
    for name, parts in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(parts()))
    markdown = re.sub(r"\]\(\.\./((?:\.\./)*)SECURITY\.md", r"](\1security.md", markdown)
    return re.sub(r"\]\(\.\./((?:\.\./)*benchmarks/results/)", r"](\1", markdown)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that would load something from a network."""
    if found := re.search(
        r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="https?://[^"]*', output
    ):
        raise PluginError(f"{page.file.src_uri} loads from a network: {found[0]}")
    return output


def schemas() -> Iterator[str]:
    """The fields of every artefact, from its msgspec type, and its JSON Schema."""
    for title, kind in FORMATS:
        (_,), definitions = msgspec.json.schema_components([kind], ref_template="{name}")
        yield f"## {title}\n"
        yield from definition(definitions[kind.__name__])
        for name in sorted(set(definitions) - {kind.__name__}):
            yield f'??? note "{name}"\n'
            text = "\n".join(definition(definitions[name]))
            yield from (f"    {line}" for line in text.splitlines())
        schema = msgspec.json.format(msgspec.json.encode(msgspec.json.schema(kind)), indent=2)
        yield '\n??? abstract "JSON Schema"\n\n    ```json'
        yield from (f"    {line}" for line in schema.decode().splitlines())
        yield "    ```\n"


def definition(schema: dict[str, Any]) -> Iterator[str]:
    """One type: its docstring, and its fields as a table."""
    text, _, attributes = schema.get("description", "").partition("Attributes:")
    yield f"{' '.join(text.split())}\n"
    meanings = field_meanings(attributes)
    required = schema.get("required", ())
    head = ["field", "type", "always there"] + (["meaning"] if meanings else [])
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for name, field in schema.get("properties", {}).items():
        cells = [f"`{name}`", type_words(field), "yes" if name in required else "no"]
        cells += [meanings.get(name, "").replace("|", "\\|")] if meanings else []
        yield f"| {' | '.join(cells)} |"
    yield ""


def field_meanings(attributes: str) -> dict[str, str]:
    """The meanings in a docstring's section `Attributes:` (`one, other: what they hold.`)."""
    entries = re.split(r"(?:^|(?<=[.;])) *(?=(?:\w+, )*\w+: )", " ".join(attributes.split()))
    meanings = {}
    for entry in filter(None, entries):
        names, _, text = entry.partition(": ")
        meanings |= dict.fromkeys(names.split(", "), text.strip())
    return meanings


def type_words(field: dict[str, Any]) -> str:
    """A JSON Schema type in words."""
    if "anyOf" in field:
        return " or ".join(type_words(option) for option in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"])
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = str(field.get("type", "any JSON"))
    if kind == "array" and "items" in field and field["items"]:
        return f"list of {type_words(field['items'])}"
    if kind == "array" and "prefixItems" in field:
        return "list of " + ", ".join(type_words(item) for item in field["prefixItems"])
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object of {type_words(field['additionalProperties'])}"
    return kind


GENERATED = {"schemas": schemas}
