"""README and documentation: complete lists, links that lead somewhere, a short README."""

import re
from pathlib import Path

import pytest

from edgelung.core.errors import ExitCode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += sorted(DOCS.rglob("*.md"))


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 900


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^    make ([\w-]+)", README, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_page_of_exit_codes_is_complete() -> None:
    page = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    for code in ExitCode:
        assert f"| {code.value} |" in page


def test_the_page_of_statuses_is_complete() -> None:
    page = (DOCS / "reference" / "statuses.md").read_text(encoding="utf-8")
    files = [*(ROOT / "edgelung" / "tiles").glob("*.py"), ROOT / "edgelung/inference/pipeline.py"]
    sources = "".join(path.read_text(encoding="utf-8") for path in files)
    found = set(re.findall(r'TileError\(\s*"([\w-]+)"', sources))
    for status in found | {"ok", "review", "truncated", "corrupt", "failed"}:
        assert f"| `{status}` |" in page, status


def test_the_page_of_environment_variables_is_complete() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    for folder in ("edgelung", "train", "export", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r'"(EDGELUNG_\w+)"', path.read_text(encoding="utf-8")):
                assert f"`{name}`" in page, name


def test_every_promise_of_the_security_policy_has_tests() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    names = re.findall(r"`(test_\w+\.py)`", policy)
    assert names
    missing = [name for name in names if not (ROOT / "tests" / "attacks" / name).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files and headings, seen from the repository; the strict build of the site checks its own."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def slug(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown and GitHub form it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in navigation, page
