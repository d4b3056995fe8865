"""Writes the tables of README.md and docs/ from the files in benchmarks/results.

    python benchmarks/tables.py            # write
    python benchmarks/tables.py --check    # exit code 1 if a text differs from the files

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. The modules of `figures`
have a function for each NAME. Below each table stands its source: the file, the machine, the
commit, and a word if it is of an earlier version, export or bundle than the one that is shipped.
"""

import argparse
import re
import sys
from pathlib import Path

from figures import (
    accuracy,
    card,
    early_exit,
    folds,
    install,
    serving,
    slides,
    speed,
    training,
    unknown,
)
from figures.table import ROOT, Table

from edgelung import __version__
from edgelung.artifacts.bundle import SEAL, starter_bundle

TABLES = (
    accuracy.TABLES | speed.TABLES | card.TABLES | install.TABLES | slides.TABLES | unknown.TABLES
)
TABLES |= early_exit.TABLES | serving.TABLES | folds.TABLES | training.TABLES
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shipped_starter() -> str:
    """SHA-256 of the shipped starter's bundle.json."""
    return (starter_bundle() / SEAL).read_text(encoding="ascii").split()[0]


def source(name: str, content: dict[str, object], link: str) -> str:
    """The line that names a result file, its machine, and what differs from the shipped version."""
    machine = content.get("machine") or content.get("host") or {}
    assert isinstance(machine, dict)
    facts = [str(machine[key]) for key in ("cpu",) if key in machine]
    facts += [", ".join(machine["gpus"])] if machine.get("gpus") else []
    facts += [f"{machine['cores']} cores"] if "cores" in machine else []
    facts += [f"commit {machine['commit']}"] if "commit" in machine else []
    version = machine.get("edgelung") or machine.get("packages", {}).get("edgelung")
    if version and version != __version__:
        facts.append(f"edgelung {version}, an earlier version")
    if again := content.get("exported_again"):
        assert isinstance(again, dict)
        facts.append(f"variants exported again at commit {again['commit']}")
    if "export" in content:
        facts.append(str(content["export"]))
    bundle = content.get("bundle_sha256")
    if bundle and bundle != shipped_starter():
        facts.append(f"bundle {str(bundle)[:12]}, which is not the shipped starter")
    return f"[{name}]({link}{name})" + (f" ({'; '.join(facts)})" if facts else "")


def render(table: Table, page: Path) -> str:
    """The table and its sources as Markdown, for a page; `page` is relative to the repository."""
    up = len(page.parts) - 1
    link = "../" * up + "benchmarks/results/"
    lines = [table.note, ""] if table.note else []
    lines += [f"| {' | '.join(table.header)} |", "|" + "---|" * len(table.header)]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    sources = [source(name, content, link) for name, content in table.sources.items()]
    if page.name == "README.md":  # short: the results page names machines and commits
        return "\n".join(lines).replace("](", f"]({link}") + "\n"
    return "\n".join([*lines, "", f"Source: {'; '.join(sources)}.", ""])


def rewrite(page: Path, root: Path = ROOT) -> tuple[str, str]:
    """The text of a page as it is, and with its tables written anew."""
    text, place = page.read_text(encoding="utf-8"), page.relative_to(root)
    return text, BLOCK.sub(lambda m: m[1] + render(TABLES[m[2]](), place) + m[3], text)


def main() -> None:
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    differing = []
    for page in pages():
        before, after = rewrite(page)
        if before != after:
            differing.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(after, encoding="utf-8")
    if differing:
        print("differ from benchmarks/results:" if check else "written:", ", ".join(differing))
        sys.exit(1 if check else 0)


if __name__ == "__main__":
    main()
