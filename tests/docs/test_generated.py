"""The parts of the documentation that are generated from the code."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import typer

from edgelung.artifacts.manifest import BundleManifest
from edgelung.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"


def load(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """What MkDocs runs; skipped without it."""
    pytest.importorskip("mkdocs", reason="pip install 'edgelung[docs]'")
    return load("hooks")


@pytest.fixture(scope="module")
def commands() -> ModuleType:
    return load("commands")


def test_the_reference_of_the_commands_is_that_of_the_code(commands: ModuleType) -> None:
    """If this fails: `make tables`."""
    text = commands.PAGE.read_text(encoding="utf-8")
    assert commands.rewrite(text) == text


def test_an_option_that_the_reference_lacks_is_found(commands: ModuleType) -> None:
    text = commands.PAGE.read_text(encoding="utf-8")
    changed = text.replace("`--recipe NAME`", "`--recipe FILE`")
    assert changed != text
    assert commands.rewrite(changed) == text


def test_every_command_and_option_is_in_the_reference(commands: ModuleType) -> None:
    page = commands.PAGE.read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"\n## {name}\n" in page
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            form = parameter.opts[0] if parameter.param_type_name == "option" else ""
            assert form in section, (name, form)


def test_every_field_of_a_bundle_is_in_the_reference(hooks: ModuleType) -> None:
    page = "\n".join(hooks.schemas())
    for field in BundleManifest.__struct_fields__:
        assert f"| `{field}` |" in page


def test_every_generated_part_has_a_place(hooks: ModuleType) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for name in hooks.GENERATED:
        assert text.count(f"<!-- generated: {name} -->") == 1


def test_a_link_to_a_result_file_leads_to_the_copy_in_the_site(hooks: ModuleType) -> None:
    linked = "[x](../benchmarks/results/x.json) [y](../../benchmarks/results/y.json)"
    assert hooks.on_page_markdown(linked) == (
        "[x](benchmarks/results/x.json) [y](../benchmarks/results/y.json)"
    )


def test_a_link_to_the_security_policy_leads_to_its_page(hooks: ModuleType) -> None:
    linked = "[x](../SECURITY.md) [y](../../SECURITY.md)"
    assert hooks.on_page_markdown(linked) == "[x](security.md) [y](../security.md)"
